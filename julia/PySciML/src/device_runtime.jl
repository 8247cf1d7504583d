"""
What kernels over whole arrays call, on any kind of array: nothing here reads or writes one element
from the host. What no broadcast says is a broadcast over the positions (from 0) of the result, of
a function that reads whole arrays behind a `Ref`. Axes are Julia's, arrays those of the graph with
their dimensions reversed.
"""
module DeviceRuntime

using ..Runtime: argmax_, argmin_, precedes, solve!

export gather, gather_or_keep, gather_or_zero, gather_pair, scattered, overwritten, argmax_along,
    argmin_along, cumsum_along, cumprod_along, sort_along, argsort_along, batched_product, solved

# A new array of `dims` and type `T` like `x`, filled with `f` of each position.
function tabulate(f::F, x, ::Type{T}, dims, args...) where {F, T}
    out = similar(x, T, prod(dims))
    out .= f.(args..., 0:(length(out) - 1))
    return reshape(out, dims)
end

# -- gathers -----------------------------------------------------------------------------------

@inline gather(x, i) = @inbounds x[i + 1]
@inline gather_or_keep(x, i, otherwise) = i < 0 ? convert(eltype(x), otherwise) : @inbounds x[i + 1]
@inline gather_or_zero(x, i) = i < 0 ? zero(eltype(x)) : @inbounds x[i + 1]
@inline gather_pair(x, i, j) = gather(x, i) + gather_or_zero(x, j)

# One thread a place, which looks through all indices: for indices that are not known beforehand.
"""
    scattered(index, values, size)

Zeros with `values` added at `index` (from 0).
"""
scattered(index, values, size) =
    tabulate(sum_at, values, eltype(values), (size,), Ref(index), Ref(values))
@inline function sum_at(index, values, place)
    total = zero(eltype(values))
    for k in 1:length(index)
        @inbounds total += index[k] == place ? values[k] : zero(total)
    end
    return total
end

"""
    overwritten(base, index, values)

`base` with `values` at `index` (from 0); the last one where several go to one place.
"""
overwritten(base, index, values) =
    tabulate(last_at, base, eltype(base), size(base), Ref(base), Ref(index), Ref(values))
@inline function last_at(base, index, values, place)
    @inbounds found = base[place + 1]
    for k in 1:length(index)
        @inbounds found = index[k] == place ? oftype(found, values[k]) : found
    end
    return found
end

# -- along one axis ------------------------------------------------------------------------------

# The length of an axis, and the distance between neighbours along it.
lanes(x, axis) = size(x, axis), prod(size(x)[1:(axis - 1)])
# Where the lane of a position begins, and how far along it lies.
@inline function lane(i, n, step)
    outer, rest = divrem(i, n * step)
    along, inner = divrem(rest, step)
    return outer * n * step + inner + 1, along
end

for (name, f) in ((:argmax_along, :argmax_), (:argmin_along, :argmin_))
    at = Symbol(f, :at)
    @eval @inline $at(x, n, step, i) =
        $f(x, (i ÷ step) * n * step + i % step + 1, step, n)
    @eval function $name(x, axis)
        n, step = lanes(x, axis)
        dims = ntuple(k -> k == axis ? 1 : size(x, k), ndims(x))
        return tabulate($at, x, Int, dims, Ref(x), n, step)
    end
end

# Prefix sums by doubling, as each rests on those of half its length.
for (name, op) in ((:cumsum_along, :+), (:cumprod_along, :*))
    @eval function $name(x, axis)
        n, step = lanes(x, axis)
        y, reach = reshape(copy(x), step, n, :), 1
        while reach < n
            longer = copy(y)
            view(longer, :, (reach + 1):n, :) .=
                $op.(view(y, :, (reach + 1):n, :), view(y, :, 1:(n - reach), :))
            y, reach = longer, 2reach
        end
        return reshape(y, size(x))
    end
end

# How many elements of its lane come before the one at position i.
@inline function rank_at(x, n, step, descending, i)
    first, along = lane(i, n, step)
    @inbounds own = x[i + 1]
    rank = 0
    for k in 0:(n - 1)
        @inbounds other = x[first + step * k]
        earlier = precedes(other, own, descending)
        rank += earlier | (!precedes(own, other, descending) & (k < along))
    end
    return rank
end
@inline function place_of_rank(ranks, n, step, i)
    first, along = lane(i, n, step)
    for k in 0:(n - 1)
        @inbounds ranks[first + step * k] == along && return k
    end
    return 0
end
@inline function along_lane(x, places, n, step, i)
    first, _ = lane(i, n, step)
    return @inbounds x[first + step * places[i + 1]]
end

"""
    argsort_along(x, axis, descending)

The places (from 0) of the sorted elements, NaN last, equal ones in their order.
"""
function argsort_along(x, axis, descending)
    n, step = lanes(x, axis)
    ranks = tabulate(rank_at, x, Int, size(x), Ref(x), n, step, descending)
    return tabulate(place_of_rank, x, Int, size(x), Ref(ranks), n, step)
end
function sort_along(x, axis, descending)
    n, step = lanes(x, axis)
    places = argsort_along(x, axis, descending)
    return tabulate(along_lane, x, eltype(x), size(x), Ref(x), Ref(places), n, step)
end

# -- linear algebra ------------------------------------------------------------------------------

"""
    batched_product(A, B)

`A[:, :, i] * B[:, :, i]` for every `i`.
"""
function batched_product(A, B)
    m, k, batch = size(A)
    n = size(B, 2)
    return tabulate(product_at, A, eltype(A), (m, n, batch), Ref(A), Ref(B), m, n, k)
end
@inline function product_at(A, B, m, n, k, position)
    batch, rest = divrem(position, m * n)
    j, i = divrem(rest, m)
    a, b = batch * m * k + i + 1, (batch * n + j) * k + 1
    total = zero(eltype(A))
    for l in 0:(k - 1)
        @inbounds total = muladd(A[a + l * m], B[b + l], total)
    end
    return total
end

"""
    solved(A, B)

`X` with `X[:, :, i] * A[:, :, i] = B[:, :, i]` for every `i` (which a matrix has one of), by
elimination with one thread a system.
"""
function solved(A, B)
    m, n = size(B, 1), size(B, 2)
    left, X = copy(A), copy(B)
    batch = length(A) ÷ (n * n)
    tabulate(solve_at!, A, Bool, (batch,), Ref(left), Ref(X), n, m)
    return X
end
@inline function solve_at!(A, X, n, m, i)
    solve!(A, i * n * n + 1, n, 1, X, i * n * m + 1, m, 1, n, m)
    return true
end

end
