# exp, expm1 and tanh without branches, so that loops over them run in SIMD. All follow the
# classical argument reduction x = k log(2) + r, |r| <= log(2)/2, with a Taylor polynomial for
# exp(r) - 1; errors stay within 3 units in the last place of a normal result, which the tests
# check. Results below 1.5 times the smallest normal number are 0.

@inline exp_(x) = exp(x)
@inline expm1_(x) = expm1(x)
@inline tanh_(x) = tanh(x)

# Adding this leaves the nearest integer in the last bits of the sum.
rounder(::Type{Float64}) = 6.755399441055744e15      # 1.5 * 2^52
rounder(::Type{Float32}) = 1.2582912f7               # 1.5 * 2^23
# log(2) in two parts, the first with so few bits that its multiples are exact.
log2_parts(::Type{Float64}) = (6.93147180369123816490e-1, 1.90821492927058770002e-10)
log2_parts(::Type{Float32}) = (6.9313812256f-1, 9.0580006145f-6)
taylor(::Type{Float64}) = ntuple(i -> 1 / prod(Float64, 1:(i + 1)), Val(12))   # of (e^r - 1 - r)/r^2
taylor(::Type{Float32}) = ntuple(i -> 1 / prod(Float32, 1:(i + 1)), Val(6))
const TAYLOR64, TAYLOR32 = taylor(Float64), taylor(Float32)
taylor_of(::Type{Float64}) = TAYLOR64
taylor_of(::Type{Float32}) = TAYLOR32
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
    return whole, muladd(r * r, evalpoly(r, taylor_of(T)), r)
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

# e^x - 1 where x is in range and at most 0: exact near 0, where k is 0
@inline function expm1_below(x::T) where {T}
    k, p = reduced(x)
    scale = power_of_two(T, k)
    return muladd(scale, p, scale - one(T))
end

@inline function tanh_(x::T) where {T <: Union{Float32, Float64}}
    size = abs(x)
    e = expm1_below(T(-2) * ifelse(size > T(22), T(22), size))
    return copysign(-e / (e + T(2)), x)
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
