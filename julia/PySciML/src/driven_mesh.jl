# Where a driven rate's derivatives change faster than the solution: a mesh that resolves them.
#
# The solver's steps tell how fast the solution changes. Where the rate depends on time otherwise than
# through the state, its derivatives may change faster: f_p where a control is zero so far, f_u where the
# state is. The steps are too long then for the adjoint, or for its integral beside f_p. Their values at
# the three nodes of every interval tell what the Radau rule makes of them there: entry by entry where
# these are few, else in a direction. Parameters and states that have a part in the solution beside the
# largest are not looked at, as the steps follow them; nor are rates with pieces in time, between which
# f_p jumps, so that no mesh resolves it (of functions that could not be captured nobody knows).

# The rule's error for cos(w t), in units of h |cos|, is this times the 5/2-th power of the second
# divided difference at its nodes: 1.4e-5 (h w)^5, and the difference is (h w)^2 / 2.
const RADAU_ERROR = 7.9e-5
# Differences beyond `SEEN` times the values near by may tell of no rate, and beyond `SKIPPED` tell of none,
# as the nodes skip whole waves (it is (h w)^2 / 2 where they do not, up to 5 where they do): these are cut
# in `BLIND`. One below `KNOWN` is taken at its word.
const SEEN, SKIPPED, KNOWN, BLIND = 1.0, 2.5, 0.2, 8
# Larger states are looked at together: of so many entries some always bend.
const APART = 50
# Up to how many derivatives are looked at one by one; and what has little part beside the largest, among
# as many entries and among more: of those some are always small, and move as the others do.
const EACH, LITTLE, OF_MANY = 400, 0.03, 1.0e-6
# Most rounds of cutting, and most intervals.
const ROUNDS, MOST_INTERVALS = 8, 10_000

# Weights of the second divided difference, of values in the nodes' order.
const SECOND = ntuple(3) do i
    inv(prod(RADAU_C[j] - RADAU_C[i] for j in 1:3 if j != i))
end

"""
    resolving(mesh, functions, n, interp, p, reltol, nx = n)

The mesh with its intervals cut where they do not resolve f_u and f_p to `reltol`; as it is where that
cannot be told, or no mesh will do. `interp` gives the state, of `nx` entries, as a solution's does.
"""
function resolving(mesh::Vector{T}, functions, n, interp, p, reltol, nx = n) where {T}
    (isdriven(functions) && length(mesh) > 1) || return mesh
    a = Along(functions, mesh, interp, p, n, nx)
    moves_with_time!(a, mesh[1], mesh[end], interp) || return mesh
    fine, tol = mesh, max(T(reltol), eps(T))
    seen = looked_at(a, fine, interp)
    for _ in 1:ROUNDS
        ratio = ratios(seen, fine, tol)
        parts = parts_for_time(ratio, fine, tol)
        all(==(1), parts) && return fine
        # no wave, but jumps: no mesh resolves those
        sum(parts) <= max(MOST_INTERVALS, 4 * length(fine)) || return mesh
        finer = subdivided(fine, parts)
        seen = looked_at(a, finer, interp, seen, ratio, parts)
        fine = finer
    end
    return any(>(SEEN), ratios(seen, fine, tol)) ? mesh : fine
end

# How many intervals each step needs; nothing where one will do for all.
function parts_for_steps(times::Vector{T}, functions, n, interp, p, reltol) where {T}
    isdriven(functions) || return Int[]
    steps = joined_mesh(times)
    mesh = resolving(steps, functions, n, interp, p, reltol)
    length(mesh) == length(steps) && return Int[]
    place = Dict(t => i for (i, t) in enumerate(mesh))
    return [place[times[i + 1]] - place[times[i]] for i in 1:(length(times) - 1)]
end

"""
    isdriven(functions)

Whether the rate depends on time otherwise than through the state, and without pieces in it.
"""
isdriven(functions) = false
isdriven(f::Union{Functions, Residual}) = f.driven

# f_u and f_p at one place after the other: J and P, or where these are large, what a step of u or p
# changes; empty where there is nothing to look at. What is called back in Python takes the problem's
# own parameters, whatever it is given: there the product with f_p is taken in place of a step. What is
# in one of the `groups` is looked at together.
struct Along{T, E, V}
    equation::E
    p::V
    J::Matrix{T}
    P::Matrix{T}
    by_u::V
    by_p::V
    pulled::V                     # of what is called back, else empty
    weights::V
    u::V
    du::V                         # of residuals, else empty
    x::V
    y::V
    base::V
    ahead::V
    nodes::NTuple{3, V}
    bend::V
    groups::Vector{UnitRange{Int}}
end
function Along(f, mesh::Vector{T}, interp, p::V, n, nx) where {T, V}
    of(m) = fill!(similar(p, T, m), zero(T))
    u, np, host = of(nx), length(p), V <: Array
    by_u, by_p = little_step(sizes!(u, mesh, interp, p)), little_step(abs.(p))
    J, P, groups = zeros(T, 0, 0), zeros(T, 0, 0), UnitRange{Int}[]
    grow!(count, together) = for _ in 1:(together ? 1 : count)
        first_ = isempty(groups) ? 1 : last(groups[end]) + 1
        push!(groups, first_:(first_ + (together ? count : 1) - 1))
    end
    together, foreign = !host || n > APART, false
    if !isempty(by_u) && host && n * nx <= EACH
        J, by_u = zeros(T, n, nx), of(0)
        grow!(n * nx, false)
    elseif !isempty(by_u)
        grow!(n, together)
    end
    if !isempty(by_p) && f isa Functions && n * np <= EACH
        P, by_p = zeros(T, n, np), of(0)
        grow!(n * np, false)
    elseif !isempty(by_p)
        foreign = host && ensure!(f.value).source isa Foreign
        foreign ? grow!(1, false) : grow!(n, together)
    end
    all_ = isempty(groups) ? 0 : last(groups[end])
    weights = copyto!(of(n), T[cos(2 * i^2 + 1) for i in 0:(n - 1)])
    e = Equation{T, typeof(f)}(f, nothing, n)
    return Along{T, typeof(e), V}(
        e, p, J, P, by_u, by_p, of(foreign ? np : 0), weights, u, of(isresidual(e) ? nx : 0),
        of(nx), of(np), of(n), of(n), (of(all_), of(all_), of(all_)), of(all_), groups
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

# A small step of which every entry has its part that has little part beside the largest, by its size;
# empty where none has.
function little_step(size::AbstractVector{T}) where {T}
    largest = maximum(size; init = zero(T))
    little = size .<= T(length(size) > EACH ? OF_MANY : LITTLE) * largest
    any(little) || return similar(size, 0)
    largest > 0 || (largest = one(T))
    part = T[cbrt(eps(T)) * cos(2 * i^2 + 1) for i in 0:(length(size) - 1)]
    return largest .* copyto!(similar(size), part) .* little
end

# The state at t, into `a.u`, with its rate where that counts.
function state!(a::Along, t, interp, side)
    interp(a.u, t, nothing, Val{0}, a.p, side)
    isempty(a.du) || interp(a.du, t, nothing, Val{1}, a.p, side)
    return
end

function along!(to, a::Along, t)
    e, at = a.equation, 0
    function put!(x)
        copyto!(to, at + 1, x, 1, length(x))
        at += length(x)
        return
    end
    isempty(a.J) || (jacobian!(a.J, e, a.du, a.u, a.p, t); put!(a.J))
    steps_p = !isempty(a.by_p) && isempty(a.pulled)
    (steps_p || !isempty(a.by_u)) && value!(a.base, e, a.du, a.u, a.p, t)
    if !isempty(a.by_u)
        value!(a.ahead, e, a.du, (a.x .= a.u .+ a.by_u; a.x), a.p, t)
        put!(a.ahead .-= a.base)
    end
    isempty(a.P) || (e.functions.paramjac(a.P, a.u, a.p, t); put!(a.P))
    if !isempty(a.pulled)
        pull_p!(a.pulled, e, a.weights, a.du, a.u, a.p, t)
        to[at + 1] = dot(a.pulled, a.by_p)
    elseif steps_p
        value!(a.ahead, e, a.du, a.u, (a.y .= a.p .+ a.by_p; a.y), t)
        put!(a.ahead .-= a.base)
    end
    return to
end

# Whether they are others at other times.
function moves_with_time!(a::Along, t0::T, t1::T, interp) where {T}
    isempty(a.groups) && return false
    state!(a, t0, interp, :right)
    first_, now = along!(a.nodes[1], a, t0), a.nodes[2]
    return any((0.29, 0.53, 1)) do x
        along!(now, a, T(t0 + x * (t1 - t0)))
        any(now .!= first_)
    end
end

# Each group's largest size in every interval, one column each, and its second divided difference.
struct Seen{T}
    largest::Matrix{T}
    second::Matrix{T}
end
function looked_at(a::Along{T}, mesh, interp) where {T}
    rows, count = length(a.groups), length(mesh) - 1
    seen = Seen(zeros(T, rows, count), zeros(T, rows, count))
    for k in 1:count
        look!(seen, k, a, mesh, interp)
    end
    return seen
end

# As it was, where intervals were cut in `parts`: of one that was seen through what its parts show follows
# from the whole.
function looked_at(a::Along{T}, mesh, interp, before::Seen, ratio, parts) where {T}
    rows, count, at = length(a.groups), length(mesh) - 1, 0
    seen = Seen(zeros(T, rows, count), zeros(T, rows, count))
    for (k, m) in enumerate(parts)
        known = m == 1 || all(<=(KNOWN), view(ratio, nearby(k, ratio)))
        for _ in 1:m
            at += 1
            if known
                @views seen.largest[:, at] .= before.largest[:, k]
                @views seen.second[:, at] .= before.second[:, k] ./ m^2
            else
                look!(seen, at, a, mesh, interp)
            end
        end
    end
    return seen
end

# The intervals around the k-th.
nearby(k, all_) = max(k - 2, 1):min(k + 2, length(all_))

extent(x, group) = norm(view(x, group))
extent(x::Array, group) = length(group) == 1 ? abs(x[group[1]]) : norm(view(x, group))

function look!(seen::Seen, k, a::Along{T}, mesh, interp) where {T}
    from, to = mesh[k], mesh[k + 1]
    for i in 1:3
        t = i == 3 ? from : T(to - RADAU_C[i] * (to - from))
        state!(a, t, interp, i == 3 ? :right : :left)
        along!(a.nodes[i], a, t)
    end
    x, y, z = a.nodes
    a.bend .= T(SECOND[1]) .* x .+ T(SECOND[2]) .* y .+ T(SECOND[3]) .* z
    for (r, group) in enumerate(a.groups)
        seen.largest[r, k] = max(extent(x, group), extent(y, group), extent(z, group))
        seen.second[r, k] = extent(a.bend, group)
    end
    return
end

# The difference that counts most in each interval, in units of the values near by.
function ratios(seen::Seen{T}, mesh, reltol) where {T}
    rows, count = size(seen.second)
    out, h = zeros(T, count), abs.(diff(mesh))
    for r in 1:rows
        largest, second = view(seen.largest, r, :), view(seen.second, r, :)
        # what is not finite, as a root's derivative at zero, cannot be told
        all(isfinite, second) || continue
        # Waves take themselves away in the integral, and the adjoint may be large where f_p is small: an
        # interval is held to the tolerance of what is near by, where it counts
        least = reltol * dot(h, largest) / count
        for k in 1:count
            second[k] > 0 && h[k] * largest[k] > least || continue
            out[k] = max(out[k], second[k] / maximum(view(largest, nearby(k, out))))
        end
    end
    return out
end

# How many parts each interval needs.
function parts_for_time(ratio::Vector, mesh, reltol)
    parts = map(ratio) do x
        need = RADAU_ERROR * Float64(x)^2.5 / reltol
        m = need > 1 ? ceil(1.1 * need^0.2) : 1.0
        x > SKIPPED ? Float64(BLIND) : x > SEEN ? clamp(m, 2.0, Float64(BLIND)) : m
    end
    return as_neighbours(parts, mesh)
end

# Three nodes that skip whole waves may lie on a line by chance; not in the intervals beside too: no
# interval is longer than the parts of one near it that is cut.
function as_neighbours(parts::Vector{Float64}, mesh)
    return map(eachindex(parts)) do k
        h, shortest = abs(mesh[k + 1] - mesh[k]), Inf
        for j in nearby(k, parts)
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
