# Where a driven rate's derivatives change faster than the solution: a mesh that resolves them.
#
# The solver's steps tell how fast the solution changes. Where the rate depends on time otherwise than
# through the state, its derivatives may change faster: f_p where a control is zero so far, f_u where the
# state is. The steps are too long then for the adjoint, or for its integral beside f_p. Their values at
# the three nodes of every interval tell what the Radau rule makes of them there: entry by entry where
# these are few, else in some directions. Not looked at: rates with pieces in time, between which f_p jumps, so that no mesh resolves
# it (of functions that could not be captured nobody knows), and residuals.

# The rule's error for cos(w t), in units of h |cos|, is this times the 5/2-th power of the second
# divided difference at its nodes: 1.4e-5 (h w)^5, and the difference is (h w)^2 / 2.
const RADAU_ERROR = 7.9e-5
# Differences beyond `SEEN` times the values near by tell of no rate, as the nodes skip whole waves (it is
# (h w)^2 / 2 where they do not, about 5 where they do): such intervals are cut in `BLIND`.
const SEEN, BLIND = 1.0, 8
# Larger states are looked at together: of so many entries some always bend.
const APART = 50
# Up to how many derivatives are looked at one by one, and what has little part beside the largest.
const EACH, LITTLE = 400, 0.03
# Most rounds of cutting, and most intervals.
const ROUNDS, MOST_INTERVALS = 6, 10_000

# Weights of the second divided difference, of values in the nodes' order.
const SECOND = ntuple(3) do i
    inv(prod(RADAU_C[j] - RADAU_C[i] for j in 1:3 if j != i))
end

"""
    resolving(mesh, functions, n, interp, p, reltol, nx = n)

The mesh with its intervals cut where they do not resolve f_u and f_p to `reltol`; as it is where that
cannot be told, or no mesh will do. `interp` gives the state, of `nx` entries, as a solution's does.
"""
resolving(mesh, functions, n, interp, p, reltol, nx = n) = mesh
function resolving(
        mesh::Vector{T}, f::Functions{T}, n, interp, p::Vector{T}, reltol, nx = n
    ) where {T}
    (f.driven && length(mesh) > 1) || return mesh
    along = Along(f, mesh, interp, p, n, nx)
    interp(along.u, mesh[1], nothing, Val{0}, p, :right)
    moves_with_time!(along, mesh[1], mesh[end]) || return mesh
    fine, blind = mesh, false
    for _ in 1:ROUNDS
        parts, blind = parts_for_time(fine, along, interp, max(T(reltol), eps(T)))
        all(==(1), parts) && return fine
        # no wave, but jumps: no mesh resolves those
        sum(parts) <= max(MOST_INTERVALS, 4 * length(fine)) || return mesh
        fine = subdivided(fine, parts)
    end
    return blind ? mesh : fine
end

# How many intervals each step needs; nothing where one will do for all.
function parts_for_steps(
        times::Vector{T}, f::Functions{T}, n, interp, p::Vector{T}, reltol
    ) where {T}
    f.driven || return Int[]
    steps = joined_mesh(times, T[])
    mesh = resolving(steps, f, n, interp, p, reltol)
    length(mesh) == length(steps) && return Int[]
    place = Dict(t => i for (i, t) in enumerate(mesh))
    return [place[times[i + 1]] - place[times[i]] for i in 1:(length(times) - 1)]
end

# f_u and f_p at one place after the other: J and P, or where these are large, what steps of u and p
# change. What is called back in Python takes the problem's own parameters, whatever it is given: there
# products with f_p are taken in place of steps. What is in one of the `groups` is looked at together.
struct Along{T}
    functions::Functions{T}
    p::Vector{T}
    J::Matrix{T}
    P::Matrix{T}
    by_u::Vector{Vector{T}}
    by_p::Vector{Vector{T}}
    pulled::Vector{T}                     # of what is called back, else empty
    weights::Vector{T}
    u::Vector{T}
    x::Vector{T}
    y::Vector{T}
    one::Vector{T}
    other::Vector{T}
    moved::NTuple{3, Vector{T}}
    groups::Vector{UnitRange{Int}}
end
function Along(f::Functions{T}, mesh, interp, p::Vector{T}, n, nx) where {T}
    of(m) = zeros(T, m)
    u, np, none = of(nx), length(p), Vector{T}[]
    J, P = zeros(T, n * nx <= EACH ? n : 0, nx), zeros(T, n * np <= EACH ? n : 0, np)
    by_u = isempty(J) ? directions(sizes!(u, mesh, interp, p)) : none
    by_p = isempty(P) && np > 0 ? directions(abs.(p)) : none
    foreign = !isempty(by_p) && ensure!(f.value).source isa Foreign
    groups = UnitRange{Int}[]
    grow!(count, together) = for _ in 1:(together ? 1 : count)
        first_ = isempty(groups) ? 1 : last(groups[end]) + 1
        push!(groups, first_:(first_ + (together ? count : 1) - 1))
    end
    grow!(length(J), false)
    foreach(_ -> grow!(n, n > APART), by_u)
    grow!(length(P), false)
    foreach(_ -> foreign ? grow!(1, false) : grow!(n, n > APART), by_p)
    all_ = isempty(groups) ? 0 : last(groups[end])
    return Along{T}(
        f, p, J, P, by_u, by_p, of(foreign ? np : 0), T[cos(2 * i^2 + 1) for i in 0:(n - 1)], u,
        of(nx), of(np), of(n), of(n), (of(all_), of(all_), of(all_)), groups
    )
end

# The entries' largest sizes.
function sizes!(u, mesh, interp, p)
    size = zero(u)
    for t in view(mesh, 1:(length(mesh) - 1))
        interp(u, t, nothing, Val{0}, p, :right)
        size .= max.(size, abs.(u))
    end
    return size
end

# Small steps of which every entry has its part, for entries of some size; the second, where there is
# one, is of those that have little part in the first.
function directions(size::Vector{T}) where {T}
    largest = maximum(size; init = zero(T))
    largest > 0 || (largest = one(T))
    part = T[cbrt(eps(T)) * cos(2 * i^2 + 1) for i in 0:(length(size) - 1)]
    little = size .< T(LITTLE) * largest
    first_ = (size .+ T(1.0e-3) * largest) .* part
    return !any(little) || all(little) ? [first_] : [first_, largest .* part .* little]
end

function along!(to, a::Along, t)
    f, at = a.functions, 0
    function put!(x)
        copyto!(to, at + 1, x, 1, length(x))
        at += length(x)
        return
    end
    isempty(a.J) || (f.jac(a.J, a.u, a.p, t); put!(a.J))
    for d in a.by_u
        f.value(a.one, (a.x .= a.u .+ d; a.x), a.p, t)
        f.value(a.other, (a.x .= a.u .- d; a.x), a.p, t)
        put!(a.one .-= a.other)
    end
    isempty(a.P) || (f.paramjac(a.P, a.u, a.p, t); put!(a.P))
    isempty(a.pulled) || f.vjp_p(a.pulled, a.weights, a.u, a.p, t)
    for d in a.by_p
        if isempty(a.pulled)
            f.value(a.one, a.u, (a.y .= a.p .+ d; a.y), t)
            f.value(a.other, a.u, (a.y .= a.p .- d; a.y), t)
            put!(a.one .-= a.other)
        else
            to[at += 1] = dot(a.pulled, d)
        end
    end
    return to
end

# Whether they are others at other times.
function moves_with_time!(a::Along{T}, t0, t1) where {T}
    isempty(a.groups) && return false
    first_, now = along!(a.moved[1], a, t0), a.moved[2]
    return any(along!(now, a, T(t0 + x * (t1 - t0))) != first_ for x in (0.29, 0.53, 1))
end

# How many parts each interval needs, and whether any is not seen through.
function parts_for_time(mesh::Vector{T}, a::Along{T}, interp, reltol) where {T}
    count, groups = length(mesh) - 1, a.groups
    rows = length(groups)
    largest, second, whole = zeros(T, rows, count), zeros(T, rows, count), zeros(T, rows)
    bend = zero(a.moved[1])
    for k in 1:count
        from, to = mesh[k], mesh[k + 1]
        h = to - from
        for i in 1:3
            t = i == 3 ? from : T(to - RADAU_C[i] * h)
            interp(a.u, t, nothing, Val{0}, a.p, i == 3 ? :right : :left)
            along!(a.moved[i], a, t)
        end
        x, y, z = a.moved
        bend .= SECOND[1] .* x .+ SECOND[2] .* y .+ SECOND[3] .* z
        for (r, group) in enumerate(groups)
            largest[r, k] = maximum(norm(view(m, group)) for m in a.moved)
            second[r, k] = norm(view(bend, group))
        end
        whole .+= abs(h) .* view(largest, :, k)
    end
    # what is not finite, as a root's derivative at zero, cannot be told
    for r in 1:rows
        all(isfinite, view(second, r, :)) || (second[r, :] .= 0)
    end
    parts, blind = ones(count), false
    for k in 1:count
        h, ratio, near = abs(mesh[k + 1] - mesh[k]), zero(T), max(k - 2, 1):min(k + 2, count)
        for r in 1:rows
            # Waves take themselves away in the integral, and the adjoint may be large where f_p is
            # small: an interval is held to the tolerance of what is near by, where it counts
            second[r, k] > 0 && h * largest[r, k] > reltol * whole[r] / count || continue
            ratio = max(ratio, second[r, k] / maximum(view(largest, r, near)))
        end
        need = RADAU_ERROR * Float64(ratio)^2.5 / reltol
        need > 1 && (parts[k] = ceil(1.1 * need^0.2))
        if ratio > SEEN
            parts[k], blind = BLIND, true
        end
    end
    return as_neighbours(parts, mesh), blind
end

# Three nodes that skip whole waves may lie on a line by chance; not in the intervals beside too: no
# interval is longer than the parts of one near it that is cut.
function as_neighbours(parts::Vector{Float64}, mesh)
    count = length(parts)
    return map(1:count) do k
        h, shortest = abs(mesh[k + 1] - mesh[k]), Inf
        for j in max(k - 2, 1):min(k + 2, count)
            parts[j] > 1 && (shortest = min(shortest, abs(mesh[j + 1] - mesh[j]) / parts[j]))
        end
        clamp(ceil(Int, h / shortest - 1.0e-6), 1, 2BLIND)
    end
end

function subdivided(mesh::Vector{T}, parts::Vector{Int}) where {T}
    out = T[mesh[1]]
    for (k, m) in enumerate(parts)
        a, b = mesh[k], mesh[k + 1]
        append!(out, T(a + (b - a) * i / m) for i in 1:(m - 1))
        push!(out, b)
    end
    return out
end
