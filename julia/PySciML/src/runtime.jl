"""
What emitted kernels call: functions that are total (NaN outside their domain, where Base throws),
and small linear algebra, sorts and gathers over flat buffers.

An array is handed over as `(buffer, first, strides...)`: the position of its first element and
one stride an axis, in the row-major order of the graph. Nothing here allocates, and everything
is generic in the element type.
"""
module Runtime

using LinearAlgebra: BLAS
using SpecialFunctions: digamma, erf, erfc, logabsgamma

export exp_, expm1_, log_, log1p_, log2_, log10_, sqrt_, sin_, cos_, tan_, asin_, acos_, atanh_,
    acosh_, tanh_, lgamma_, sigmoid, softplus, pow_, fmod_, remainder_, floordiv_, to_integer,
    digamma, erf, erfc, matvec!, outer!, matmul!, product!, solve!, argmax_, argmin_,
    cumsum_!, cumprod_!, sort_!, argsort_!, searchsorted_

# -- total functions ---------------------------------------------------------------------------

nan(x) = oftype(float(x), NaN)

for (name, base, lowest) in (
        (:log_, :log, 0), (:log1p_, :log1p, -1), (:log2_, :log2, 0), (:log10_, :log10, 0),
        (:sqrt_, :sqrt, 0), (:acosh_, :acosh, 1),
    )
    @eval @inline $name(x) = x < $lowest ? nan(x) : $base(x)
end
@inline sqrt_(x::Union{Float32, Float64}) = Base.sqrt_llvm(x)
for (name, base) in ((:asin_, :asin), (:acos_, :acos), (:atanh_, :atanh))
    @eval @inline $name(x) = abs(x) > 1 ? nan(x) : $base(x)
end
for (name, base) in ((:sin_, :sin), (:cos_, :cos), (:tan_, :tan))
    @eval @inline $name(x) = isinf(x) ? nan(x) : $base(x)
end

lgamma_(x) = isinf(x) ? abs(x) : first(logabsgamma(x))

@inline function pow_(x, y)
    return x < 0 && !isinteger(y) ? nan(x * y) : x^y
end
@inline pow_(x::Integer, y::Integer) = y < 0 ? zero(x) : x^y

@inline fmod_(x, y) = rem(x, y)
@inline fmod_(x::Integer, y::Integer) = y == 0 ? zero(x) : rem(x, y)
@inline function remainder_(x, y)
    r = rem(x, y)
    return r != 0 && ((r < 0) != (y < 0)) ? r + y : r
end
@inline remainder_(x::Integer, y::Integer) = y == 0 ? zero(x) : mod(x, y)
@inline function floordiv_(x, y)
    y == 0 && return x / y
    q = (x - remainder_(x, y)) / y
    whole = floor(q)
    return q - whole > 0.5 ? whole + 1 : whole
end
@inline floordiv_(x::Integer, y::Integer) = y == 0 ? zero(x) : fld(x, y)

@inline to_integer(x::Union{Float32, Float64}) = unsafe_trunc(Int, x)
@inline to_integer(x::Integer) = Int(x)
@inline to_integer(x) = trunc(Int, x)

@inline softplus(x) = max(x, zero(x)) + log1p_unit(exp_(-abs(x)))

include("fastmath.jl")

# -- products ----------------------------------------------------------------------------------

# y = A x, for A (m, k): n is 1. Along rows where they are contiguous, else down the columns.
@inline function matvec!(C, oc, c0, c1, A, oa, a0, a1, B, ob, b0, b1, m, n, k)
    return if a0 == 1 && a1 != 1 && c0 == 1
        @inbounds begin
            x = B[ob]
            @simd ivdep for i in 0:(m - 1)
                C[oc + i] = A[oa + i] * x
            end
            for l in 1:(k - 1)
                y = B[ob + b0 * l]
                @simd ivdep for i in 0:(m - 1)
                    C[oc + i] = muladd(A[oa + i + a1 * l], y, C[oc + i])
                end
            end
        end
    else
        @inbounds for i in 0:(m - 1)
            total = A[oa + a0 * i] * B[ob]
            @simd for l in 1:(k - 1)
                total = muladd(A[oa + a0 * i + a1 * l], B[ob + b0 * l], total)
            end
            C[oc + c0 * i] = total
        end
    end
end

# C = a b', for columns a (m) and b (n): k is 1.
@inline function outer!(C, oc, c0, c1, A, oa, a0, a1, B, ob, b0, b1, m, n, k)
    @inbounds for i in 0:(m - 1)
        x = A[oa + a0 * i]
        @simd ivdep for j in 0:(n - 1)
            C[oc + c0 * i + c1 * j] = x * B[ob + b1 * j]
        end
    end
    return
end

# C = A B: rows of B added up where those are contiguous, else inner products.
@inline function matmul!(C, oc, c0, c1, A, oa, a0, a1, B, ob, b0, b1, m, n, k)
    return if b1 == 1 && c1 == 1
        @inbounds for i in 0:(m - 1)
            x = A[oa + a0 * i]
            @simd ivdep for j in 0:(n - 1)
                C[oc + c0 * i + j] = x * B[ob + j]
            end
            for l in 1:(k - 1)
                y = A[oa + a0 * i + a1 * l]
                @simd ivdep for j in 0:(n - 1)
                    C[oc + c0 * i + j] = muladd(y, B[ob + b0 * l + j], C[oc + c0 * i + j])
                end
            end
        end
    else
        @inbounds for i in 0:(m - 1), j in 0:(n - 1)
            total = A[oa + a0 * i] * B[ob + b1 * j]
            @simd for l in 1:(k - 1)
                total = muladd(A[oa + a0 * i + a1 * l], B[ob + b0 * l + b1 * j], total)
            end
            C[oc + c0 * i + c1 * j] = total
        end
    end
end

"""
    product!(C, oc, c0, c1, A, oa, a0, a1, B, ob, b0, b1, m, n, k)

`C = A B` of any size: BLAS where the element type and the strides allow it, else loops.
"""
@noinline function product!(C, oc, c0, c1, A, oa, a0, a1, B, ob, b0, b1, m, n, k)
    if blas!(C, oc, c0, c1, A, oa, a0, a1, B, ob, b0, b1, m, n, k)
        return
    end
    if n == 1
        matvec!(C, oc, c0, c1, A, oa, a0, a1, B, ob, b0, b1, m, n, k)
    elseif k == 1
        outer!(C, oc, c0, c1, A, oa, a0, a1, B, ob, b0, b1, m, n, k)
    else
        matmul!(C, oc, c0, c1, A, oa, a0, a1, B, ob, b0, b1, m, n, k)
    end
    return
end

blas!(C, oc, c0, c1, A, oa, a0, a1, B, ob, b0, b1, m, n, k) = false

# How BLAS can read a matrix of the strides: 'N' where its rows are contiguous, 'T' where its columns
# are, with the distance between them; ' ' where neither is, as where rows overlap or are one.
@inline function blas_layout(s0, s1, rows, cols)
    (s1 == 1 || cols == 1) && (rows == 1 || s0 >= cols) && return 'N', max(s0, cols)
    (s0 == 1 || rows == 1) && (cols == 1 || s1 >= rows) && return 'T', max(s1, rows)
    return ' ', 0
end

# `y = M x` for a matrix of `blas_layout`'s kind; false where a vector runs backwards or stands still.
@inline function gemv!(y, oy, sy, layout, ld, M, om, rows, cols, x, ox, sx)
    sy, sx = rows == 1 ? 1 : sy, cols == 1 ? 1 : sx
    (sy < 1 || sx < 1 || layout == ' ') && return false
    # what BLAS sees is the transpose where rows are contiguous
    layout == 'N' ? call_gemv!('T', cols, rows, M, om, ld, x, ox, sx, y, oy, sy) :
        call_gemv!('N', rows, cols, M, om, ld, x, ox, sx, y, oy, sy)
    return true
end

for (T, gemv, gemm) in (
        (Float64, BLAS.@blasfunc(dgemv_), BLAS.@blasfunc(dgemm_)),
        (Float32, BLAS.@blasfunc(sgemv_), BLAS.@blasfunc(sgemm_)),
    )
    @eval @inline function call_gemv!(trans, m, n, A::DenseArray{$T}, oa, ld, x, ox, sx, y, oy, sy)
        GC.@preserve A x y ccall(
            ($(QuoteNode(gemv)), BLAS.libblastrampoline), Cvoid,
            (
                Ref{UInt8}, Ref{BLAS.BlasInt}, Ref{BLAS.BlasInt}, Ref{$T}, Ptr{$T},
                Ref{BLAS.BlasInt}, Ptr{$T}, Ref{BLAS.BlasInt}, Ref{$T}, Ptr{$T},
                Ref{BLAS.BlasInt}, Clong,
            ),
            trans, m, n, one($T), pointer(A, oa), ld, pointer(x, ox), sx, zero($T),
            pointer(y, oy), sy, 1
        )
        return
    end
    @eval function blas!(
            C::DenseArray{$T}, oc, c0, c1, A::DenseArray{$T}, oa, a0, a1,
            B::DenseArray{$T}, ob, b0, b1, m, n, k
        )
        transb, ldb = blas_layout(b0, b1, k, n)
        transa, lda = blas_layout(a0, a1, m, k)
        # a product of one column or row: gemm takes up to four times as long there
        n == 1 && gemv!(C, oc, c0, transa, lda, A, oa, m, k, B, ob, b0) && return true
        m == 1 && gemv!(C, oc, c1, blas_layout(b1, b0, n, k)..., B, ob, n, k, A, oa, a1) &&
            return true
        # BLAS counts by columns: it is asked for C' = B' A', so rows must be contiguous in C
        transc, ldc = blas_layout(c0, c1, m, n)
        (transc != 'N' || transb == ' ' || transa == ' ') && return false
        GC.@preserve A B C ccall(
            ($(QuoteNode(gemm)), BLAS.libblastrampoline), Cvoid,
            (
                Ref{UInt8}, Ref{UInt8}, Ref{BLAS.BlasInt}, Ref{BLAS.BlasInt}, Ref{BLAS.BlasInt},
                Ref{$T}, Ptr{$T}, Ref{BLAS.BlasInt}, Ptr{$T}, Ref{BLAS.BlasInt},
                Ref{$T}, Ptr{$T}, Ref{BLAS.BlasInt}, Clong, Clong,
            ),
            transb, transa, n, m, k, one($T), pointer(B, ob), ldb, pointer(A, oa), lda,
            zero($T), pointer(C, oc), ldc, 1, 1
        )
        return true
    end
end

"""
    solve!(A, oa, a0, a1, X, ox, x0, x1, n, m)

Overwrite `X` (n, m) with the solution of `A Y = X` by elimination with partial pivoting; `A`
(n, n) is overwritten too.
"""
@noinline function solve!(A, oa, a0, a1, X, ox, x0, x1, n, m)
    @inbounds for c in 0:(n - 1)
        best = c
        for r in (c + 1):(n - 1)
            abs(A[oa + a0 * r + a1 * c]) > abs(A[oa + a0 * best + a1 * c]) && (best = r)
        end
        if best != c
            for j in c:(n - 1)
                i1, i2 = oa + a0 * c + a1 * j, oa + a0 * best + a1 * j
                A[i1], A[i2] = A[i2], A[i1]
            end
            for j in 0:(m - 1)
                i1, i2 = ox + x0 * c + x1 * j, ox + x0 * best + x1 * j
                X[i1], X[i2] = X[i2], X[i1]
            end
        end
        pivot = inv(A[oa + a0 * c + a1 * c])
        for r in (c + 1):(n - 1)
            factor = A[oa + a0 * r + a1 * c] * pivot
            for j in (c + 1):(n - 1)
                A[oa + a0 * r + a1 * j] -= factor * A[oa + a0 * c + a1 * j]
            end
            for j in 0:(m - 1)
                X[ox + x0 * r + x1 * j] -= factor * X[ox + x0 * c + x1 * j]
            end
        end
    end
    @inbounds for c in (n - 1):-1:0
        pivot = A[oa + a0 * c + a1 * c]
        for j in 0:(m - 1)
            total = X[ox + x0 * c + x1 * j]
            for l in (c + 1):(n - 1)
                total -= A[oa + a0 * c + a1 * l] * X[ox + x0 * l + x1 * j]
            end
            X[ox + x0 * c + x1 * j] = total / pivot
        end
    end
    return
end

# -- along one axis ------------------------------------------------------------------------------

for (name, better) in ((:argmax_, :>), (:argmin_, :<))
    @eval function $name(x, first, stride, n)
        best = 0
        @inbounds for i in 1:(n - 1)
            old, new = x[first + stride * best], x[first + stride * i]
            if !isnan(old) && (isnan(new) || $better(new, old))
                best = i
            end
        end
        return best
    end
end

for (name, op) in ((:cumsum_!, :+), (:cumprod_!, :*))
    @eval function $name(to, ot, st, x, ox, sx, n)
        n == 0 && return
        @inbounds total = to[ot] = x[ox]
        @inbounds for i in 1:(n - 1)
            total = $op(total, x[ox + sx * i])
            to[ot + st * i] = total
        end
        return
    end
end

# NaN comes last whichever way it is sorted
@inline precedes(a, b, descending) = isnan(b) ? !isnan(a) : descending ? a > b : a < b

# Heap sort of n things: `after(i, j)` whether thing i belongs behind thing j, `swap(i, j)`.
@inline function heapsort!(after::A, swap::S, n) where {A, S}
    for start in (n ÷ 2 - 1):-1:0
        sink!(after, swap, start, n)
    end
    for last in (n - 1):-1:1
        swap(0, last)
        sink!(after, swap, 0, last)
    end
    return
end

@inline function sink!(after::A, swap::S, i, n) where {A, S}
    while true
        child = 2i + 1
        child >= n && return
        if child + 1 < n && after(child + 1, child)
            child += 1
        end
        after(child, i) || return
        swap(i, child)
        i = child
    end
    return
end

function sort_!(to, ot, st, x, ox, sx, n, descending)
    @inbounds for i in 0:(n - 1)
        to[ot + st * i] = x[ox + sx * i]
    end
    after(i, j) = @inbounds precedes(to[ot + st * j], to[ot + st * i], descending)
    function swap(i, j)
        a, b = ot + st * i, ot + st * j
        return @inbounds to[a], to[b] = to[b], to[a]
    end
    heapsort!(after, swap, n)
    return
end

function argsort_!(to, ot, st, x, ox, sx, n, descending)
    @inbounds for i in 0:(n - 1)
        to[ot + st * i] = i
    end
    function after(i, j)  # equal keys keep their order
        @inbounds a, b = to[ot + st * i], to[ot + st * j]
        @inbounds p, q = x[ox + sx * a], x[ox + sx * b]
        return precedes(q, p, descending) || (!precedes(p, q, descending) && a > b)
    end
    function swap(i, j)
        a, b = ot + st * i, ot + st * j
        return @inbounds to[a], to[b] = to[b], to[a]
    end
    heapsort!(after, swap, n)
    return
end

function searchsorted_(x, first, stride, n, value, right)
    lo, hi = 0, n
    while lo < hi
        middle = (lo + hi) ÷ 2
        @inbounds key = x[first + stride * middle]
        if key < value || (right && key == value) || (isnan(value) && (right || !isnan(key)))
            lo = middle + 1
        else
            hi = middle
        end
    end
    return lo
end

end
