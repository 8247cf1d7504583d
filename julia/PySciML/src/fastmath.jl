# exp, expm1, tanh and sigmoid without branches, so that loops over them run in SIMD. All follow the
# classical argument reduction x = k log(2) + r, |r| <= log(2)/2, with a polynomial for the rest;
# errors stay within 3 units in the last place of a normal result, which the tests check. Results
# below 1.5 times the smallest normal number are 0.

@inline exp_(x) = exp(x)
@inline expm1_(x) = expm1(x)
@inline tanh_(x) = tanh(x)
@inline sigmoid(x) = inv(one(x) + exp_(-x))

# Adding this leaves the nearest integer in the last bits of the sum.
rounder(::Type{Float64}) = 6.755399441055744e15      # 1.5 * 2^52
rounder(::Type{Float32}) = 1.2582912f7               # 1.5 * 2^23
# log(2) in two parts, the first with so few bits that its multiples are exact.
log2_parts(::Type{Float64}) = (6.93147180369123816490e-1, 1.90821492927058770002e-10)
log2_parts(::Type{Float32}) = (6.9313812256f-1, 9.0580006145f-6)
# The polynomial of `count` coefficients through the values of `f` at Chebyshev's points of [a, b].
function fitted(f, ::Type{T}, a, b, count) where {T}
    return setprecision(BigFloat, 256) do
        x = [(a + b + (b - a) * cospi(big(2i - 1) / 2count)) / 2 for i in 1:count]
        powers = [x[i]^(j - 1) for i in 1:count, j in 1:count]
        Tuple(T.(powers \ f.(x)))
    end
end
const HALF = setprecision(() -> log(big(2)) / 2, BigFloat, 256)
# (e^r - 1 - r) / r^2 for |r| <= log(2)/2, which is off by 1e-16 with ten coefficients, by 6e-8 with five
beyond_linear(r) = iszero(r) ? inv(oftype(r, 2)) : (expm1(r) - r) / r^2
const EXP64 = fitted(beyond_linear, Float64, -HALF, HALF, 10)
const EXP32 = fitted(beyond_linear, Float32, -HALF, HALF, 5)
exp_of(::Type{Float64}) = EXP64
exp_of(::Type{Float32}) = EXP32
# r coth(r) by r^2 for |r| <= log(2)/4, which is off by 1e-18 with six, by 3e-9 with three
const COTH64 = fitted(z -> sqrt(z) * coth(sqrt(z)), Float64, zero(HALF), (HALF / 2)^2, 6)
const COTH32 = fitted(z -> sqrt(z) * coth(sqrt(z)), Float32, zero(HALF), (HALF / 2)^2, 3)
coth_of(::Type{Float64}) = COTH64
coth_of(::Type{Float32}) = COTH32

integer_of(::Type{Float64}) = Int64
integer_of(::Type{Float32}) = Int32
bits_of(::Type{Float64}) = (52, 1023)
bits_of(::Type{Float32}) = (23, 127)
# where exp is finite, and where it and half of it are normal
range_of(::Type{Float64}) = (-708.04, 709.782712893384)
range_of(::Type{Float32}) = (-86.98f0, 88.72283f0)

# k as bits and e^r - 1, for x = k log(2) + r; for finite x in range, NaN from NaN.
@inline function reduced(x::T) where {T <: Union{Float32, Float64}}
    shifted = muladd(x, T(1.4426950408889634), rounder(T))
    k = shifted - rounder(T)
    high, low = log2_parts(T)
    r = muladd(k, -low, muladd(k, -high, x))
    whole = reinterpret(integer_of(T), shifted) - reinterpret(integer_of(T), rounder(T))
    return whole, muladd(r * r, evalpoly(r, exp_of(T)), r)
end

# 2^k for integers with a normal result
@inline function power_of_two(::Type{T}, k) where {T}
    digits, bias = bits_of(T)
    return reinterpret(T, (k + integer_of(T)(bias)) << digits)
end

@inline function exp_(x::T) where {T <: Union{Float32, Float64}}
    k, p = reduced(x)
    y = muladd(p, power_of_two(T, k - one(k)), power_of_two(T, k - one(k))) * T(2)
    low, high = range_of(T)
    return ifelse(x > high, T(Inf), ifelse(x < low, zero(T), y))
end

# For x >= 0 in range 2^-k, q and r with e^-x = 2^-k (q - r) / (q + r), where q = r coth(r): exact near 0,
# where k is 0, and quotients of sums with e^-x take one division.
@inline function as_quotient(x::T) where {T <: Union{Float32, Float64}}
    shifted = muladd(x, T(1.4426950408889634), rounder(T))
    k = shifted - rounder(T)
    high, low = log2_parts(T)
    r = muladd(k, -low / 2, muladd(k, -high / 2, x / 2))
    whole = reinterpret(integer_of(T), shifted) - reinterpret(integer_of(T), rounder(T))
    return power_of_two(T, -whole), evalpoly(r * r, coth_of(T)), r
end

# (1 - e^-2|x|) / (1 + e^-2|x|)
@inline function tanh_(x::T) where {T <: Union{Float32, Float64}}
    size = abs(x)
    scale, q, r = as_quotient(T(2) * ifelse(size > T(22), T(22), size))
    less, more = one(T) - scale, one(T) + scale
    return copysign(muladd(q, less, r * more) / muladd(q, more, r * less), x)
end

@inline function sigmoid(x::T) where {T <: Union{Float32, Float64}}
    size, edge = abs(x), -first(range_of(T))
    scale, q, r = as_quotient(ifelse(size > edge, edge, size))
    over, under = q + r, scale * (q - r)
    y = ifelse(x < zero(T), under, over) / (over + under)
    return ifelse(x < -edge, zero(T), y)
end

@inline function expm1_(x::T) where {T <: Union{Float32, Float64}}
    k, p = reduced(x)
    scale = power_of_two(T, k - one(k))
    y = muladd(scale, p, scale - T(0.5)) * T(2)
    low, high = range_of(T)
    return ifelse(x > high, T(Inf), ifelse(x < -T(40), -one(T), y))
end

# log(1 + x) for 0 <= x <= 1, as 2 atanh(x / (2 + x))
@inline log1p_unit(x) = log1p(x)
const ATANH64 = ntuple(i -> 1 / Float64(2i - 1), Val(18))
const ATANH32 = ntuple(i -> 1 / Float32(2i - 1), Val(8))
atanh_of(::Type{Float64}) = ATANH64
atanh_of(::Type{Float32}) = ATANH32
@inline function log1p_unit(x::T) where {T <: Union{Float32, Float64}}
    s = x / (T(2) + x)
    return T(2) * s * evalpoly(s * s, atanh_of(T))
end
