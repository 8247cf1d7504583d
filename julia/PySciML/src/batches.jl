# The parameters' gradient, gathered over many points: one call takes a batch of them, in which
# the products of a network become matrix products.

"Points that one call takes; the number in Python's role `vjp:p*32`."
const BATCH = 32

"Parameters up to which one point after the other is as fast."
const FEW_PARAMETERS = 1024

"""
    Gathered{T}

The sum of `weight * f_p' w` over the points given by `gather!`, in `dp` after `finish!`.
"""
mutable struct Gathered{T}
    functions::Functions{T}
    p::Vector{T}
    batched::Bool
    count::Int
    w::Vector{T}
    u::Vector{T}
    t::Vector{T}
    part::Vector{T}
    dp::Vector{T}
end

# `n` entries of the state, `nw` of the function's value.
function Gathered(f::Functions{T}, p::Vector{T}, n::Integer, nw::Integer = n) where {T}
    batched = length(p) > FEW_PARAMETERS && available(f.vjp_p_batch)
    m = batched ? BATCH : 1
    return Gathered{T}(
        f, p, batched, 0, zeros(T, m * nw), zeros(T, m * n), zeros(T, m), zeros(T, length(p)),
        zeros(T, length(p))
    )
end

function available(k::Kernel)
    try
        ensure!(k)
        return true
    catch error
        error isa Unavailable || rethrow()
        return false
    end
end

function gather!(g::Gathered{T}, weight::T, w, u, t) where {T}
    isempty(g.p) && return
    if !g.batched
        g.functions.vjp_p(g.part, w, u, g.p, t)
        add!(g.dp, weight, g.part)
        return
    end
    n, nw = length(g.u) ÷ BATCH, length(g.w) ÷ BATCH
    @inbounds for i in 1:nw
        g.w[g.count * nw + i] = weight * w[i]
    end
    @inbounds for i in 1:n
        g.u[g.count * n + i] = u[i]
    end
    g.count += 1
    g.t[g.count] = t
    g.count == BATCH && flush!(g)
    return
end

function flush!(g::Gathered{T}) where {T}
    g.functions.vjp_p_batch(g.part, g.w, g.u, g.p, g.t)
    add!(g.dp, one(T), g.part)
    g.count = 0
    return
end

# What is left, the batch filled up with its first point, weighted with zero.
function finish!(g::Gathered{T}) where {T}
    g.count == 0 && return g.dp
    n, nw = length(g.u) ÷ BATCH, length(g.w) ÷ BATCH
    fill!(view(g.w, (g.count * nw + 1):length(g.w)), zero(T))
    for k in g.count:(BATCH - 1)
        copyto!(g.u, k * n + 1, g.u, 1, n)
        g.t[k + 1] = g.t[1]
    end
    flush!(g)
    return g.dp
end

# y += a x, for as many entries as y has; on a device they have the same
add!(y, a, x) = (y .+= a .* x; y)
@inline function add!(y::Vector, a, x)
    @inbounds @simd for i in eachindex(y)
        y[i] = muladd(a, x[i], y[i])
    end
    return y
end
