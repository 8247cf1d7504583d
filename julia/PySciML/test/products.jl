# Products and solves over flat row-major buffers against LinearAlgebra.

using LinearAlgebra
using PySciML: Runtime
using Random: Xoshiro
using Test

# a matrix as a buffer with its strides: rows contiguous, or columns
rows(A) = (vec(permutedims(A)), 1, size(A, 2), 1)
columns(A) = (vec(copy(A)), 1, 1, size(A, 1))

@testset "products" begin
    rng = Xoshiro(2)
    for T in (Float32, Float64), (m, n, k) in ((1, 1, 1), (3, 1, 5), (4, 7, 1), (9, 8, 11), (40, 3, 40)),
            layout_a in (rows, columns), layout_b in (rows, columns)
        A, B = randn(rng, T, m, k), randn(rng, T, k, n)
        for f in (Runtime.matmul!, Runtime.product!)
            C = zeros(T, m * n)
            f(C, 1, n, 1, layout_a(A)..., layout_b(B)..., m, n, k)
            @test permutedims(reshape(C, n, m)) ≈ A * B
        end
    end
    # one row or column standing for all, rows that overlap, negative steps: not what BLAS can read
    x = randn(rng, 400)
    value(o, s0, s1, rows, cols) = [x[o + s0 * i + s1 * j] for i in 0:(rows - 1), j in 0:(cols - 1)]
    m, n, k = 9, 8, 11
    for a in ((1, 0, 1), (1, 1, 0), (1, 2, 1), (1, 1, 3), (300, -11, 1), (1, 0, 0), (1, 11, 1)),
            b in ((1, 0, 1), (1, 1, 0), (1, 3, 1), (1, 1, 2), (200, 8, -1), (1, 8, 1))
        C = zeros(m * n)
        Runtime.product!(C, 1, n, 1, x, a..., x, b..., m, n, k)
        @test permutedims(reshape(C, n, m)) ≈ value(a..., m, k) * value(b..., k, n)
        for (p, q) in ((1, n), (m, 1))
            C = zeros(p * q)
            Runtime.product!(C, 1, q, 1, x, a..., x, b..., p, q, k)
            @test permutedims(reshape(C, q, p)) ≈ value(a..., p, k) * value(b..., k, q)
        end
    end
    a, b, c = randn(rng, 6), randn(rng, 5), zeros(6 * 5)
    Runtime.product!(c, 1, 5, 1, a, 1, 1, 1, b, 1, 1, 1, 6, 5, 1)
    @test permutedims(reshape(c, 5, 6)) ≈ a * b'
end

@testset "solves" begin
    rng = Xoshiro(3)
    for n in (1, 2, 5, 12)
        A, X = randn(rng, n, n), randn(rng, n, 2)
        buffer, right = vec(permutedims(A)), vec(permutedims(X))
        Runtime.solve!(buffer, 1, n, 1, right, 1, 2, 1, n, 2)
        @test permutedims(reshape(right, 2, n)) ≈ A \ X
    end
end
