# The branch-free functions against Base's in extended precision, and at the ends of their range.

using PySciML: Runtime
using Random: Xoshiro
using Test

ulps(got::T, exact) where {T} = Float64(abs(big(got) - exact) / eps(T(exact)))

@testset "elementary functions in $T" for T in (Float32, Float64)
    rng = Xoshiro(1)
    xs = T[randn(rng, 2000); 20 .* randn(rng, 2000); 300 .* randn(rng, 2000); 1.0e-3 .* randn(rng, 500)]
    logistic(x) = inv(1 + exp(-x))
    elementary = (
        (Runtime.exp_, exp), (Runtime.expm1_, expm1), (Runtime.tanh_, tanh),
        (Runtime.sigmoid, logistic),
    )
    for (mine, exact) in elementary
        worst = maximum(xs) do x
            value = exact(big(x))
            floatmin(T) * 2 < abs(value) < floatmax(T) ? ulps(mine(x), value) : 0.0
        end
        @test worst <= 3
    end
    @test maximum(x -> ulps(Runtime.log1p_unit(x), log1p(big(x))), rand(rng, T, 2000)) <= 3.5
    @test Runtime.exp_(T(Inf)) === T(Inf) && Runtime.exp_(T(-Inf)) === zero(T)
    @test Runtime.exp_(log(floatmax(T)) + 1) === T(Inf)
    @test Runtime.expm1_(T(-Inf)) === -one(T) && Runtime.expm1_(T(Inf)) === T(Inf)
    @test Runtime.tanh_(T(Inf)) === one(T) && Runtime.tanh_(T(-Inf)) === -one(T)
    @test Runtime.tanh_(-zero(T)) === -zero(T)
    @test Runtime.sigmoid(T(Inf)) === one(T) && Runtime.sigmoid(T(-Inf)) === zero(T)
    @test Runtime.sigmoid(zero(T)) === T(0.5)
    @test all(f -> isnan(f(T(NaN))), first.(elementary))
    @test Runtime.tanh_(T(1.0e-30)) == T(1.0e-30) && Runtime.expm1_(T(1.0e-30)) == T(1.0e-30)
end
