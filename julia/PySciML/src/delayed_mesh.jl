# Where the gradients of delay equations look up delayed states: on the solution's mesh, each from
# within the step that it lies in.

"Passings of passings are cut at this often: the state has a jump, then its slope, then its curvature."
const SMOOTHED = 2

"""
    delayed_mesh(d, sol, p, same, reltol, jumps, passed) -> mesh, passing

The solver's steps, cut where a delayed time passes one of the `jumps`, times at which the state
jumps, or a moment at which one did; and for each point of the mesh the delayed times and (numbers of)
jumps of which one passes the other there. The solver has ended steps where lags that move `passed`
jumps (as in `History`): the solution alone tells that moment only as well as its interpolant is.
"""
function delayed_mesh(d::Delayed{T}, sol, p, same, reltol, jumps, passed) where {T}
    steps = unique(sol.t)
    mesh, passing = copy(steps), Tuple{T, Int, Int}[]
    known = Set(jumps)
    # each with the number of its jump, and how smooth the state is there
    moments = [(t, findfirst(==(t), jumps), 1) for t in known]
    for (at, j, order) in moments                              # grows as it is gone through
        for k in eachindex(d.moved), t in passes(d, steps, p, k, at, passed, same)
            t = joined!(mesh, t, same)
            order == 1 && push!(passing, (t, k, j))
            order < SMOOTHED && !(t in known) && push!(moments, (t, 0, order + 1))
            push!(known, t)
        end
    end
    mesh = cut(mesh, d, sol, p, reltol)
    asked(x, t, _...) = copyto!(x, all_asked(d, sol, p, t, steps[1]))
    mesh = resolving(mesh, d.rhs, d.n, asked, p, reltol, length(d.x))
    of_point = Dict{T, Vector{Tuple{Int, Int}}}()
    for (t, k, j) in passing
        push!(get!(of_point, t, []), (k, j))
    end
    return mesh, [get(of_point, t, Tuple{Int, Int}[]) for t in mesh]
end

# When the k-th delayed time passes `at`.
function passes(d::Delayed{T}, steps, p, k, at, passed, same) where {T}
    d.moved[k] > 0 && return [t for (t, of, jump) in passed if of == k && abs(jump - at) <= same]
    t = at + steps[1] - asked_times!(d, zeros(T, d.n), p, steps[1])[k]
    return t < last(steps) ? [t] : T[]
end

# The time as a point of the mesh, a new one where none is near.
function joined!(mesh, t, same)
    j = clamp(searchsortedfirst(mesh, t), 2, length(mesh))
    near = abs(mesh[j - 1] - t) < abs(mesh[j] - t) ? j - 1 : j
    abs(mesh[near] - t) <= same && return mesh[near]
    insert!(mesh, searchsortedfirst(mesh, t), t)
    return t
end

# A step may be too long for a change of the solution, which has modes that the solution itself does
# not show (at rest the steps have no bound). It is cut where one is not resolved: the rule's error
# within a step is about z^6 / 250 000 of a mode z = h lambda. Of those that act at once the fast ones
# that decay are damped as they should be, but at the beginning (damping.jl, whose rule is less exact
# than this one); delayed ones count by their size.
function cut(mesh::Vector{T}, d::Delayed{T}, sol, p, reltol) where {T}
    reach = (T(2.5e5) * SLACK * max(T(reltol), eps(T)))^(1 // 6)
    rates, out = Rates(d), [mesh[1]]
    for i in 1:(length(mesh) - 1)
        a, b = mesh[i], mesh[i + 1]
        t = (a + b) / 2
        x = all_asked(d, sol, p, t, mesh[1])
        need = (b - a) * fastest(rates, d, x, p, t, reach / (b - a))
        parts = isfinite(need) ? ceil(Int, clamp(need / reach, one(T), T(MOST_PARTS))) : 1
        if d.n <= FORMED && (b - a) * norm(view(rates.full, :, 1:(d.n))) > reach
            parts = max(parts, parts_for_damping(rates, view(mesh, 1:(i + 1)), T(reltol)))
        end
        append!(out, (a + k * (b - a) / parts for k in 1:(parts - 1)))
        push!(out, b)
    end
    return out
end

# The state at t and at the times that its rate asks for.
all_asked(d::Delayed, sol, p, t, start) = gather!(d, sol(t), p, t) do out, s, _
    s < start ? d.history.value(out, d.x, p, s) : copyto!(out, sol(s))
end

struct Rates{T}
    full::Matrix{T}
    w::Vector{T}
    v::Vector{T}
end
Rates(d::Delayed{T}) where {T} = Rates{T}(
    zeros(T, d.n <= FORMED ? d.n : 0, length(d.x)), T[sin(i) for i in 1:(d.n)], zeros(T, length(d.x))
)

# Of the modes that act at once, where `fastest` looked last.
function parts_for_damping(r::Rates{T}, mesh, reltol) where {T}
    own = r.full[:, axes(r.full, 1)]
    all(isfinite, own) || return 1
    decaying = (z for z in eigvals!(own) if real(z) < 0)
    return maximum(parts_for_damping(z, mesh, max(reltol, eps(T))) for z in decaying; init = 1)
end

# How fast the modes are that have to be followed, at least where that is above `least`.
function fastest(r::Rates{T}, d::Delayed{T}, x, p, t, least) where {T}
    n, asks = d.n, length(d.s)
    if n <= FORMED
        d.rhs.jac(r.full, x, p, t)
        all(isfinite, r.full) || return zero(T)
        late = sum(opnorm(r.full[:, range_of(d, k)]) for k in 1:asks)
        own = r.full[:, 1:n]
        norm(own) > least || return late
        return late + maximum(abs(z) for z in eigvals!(own) if must_be_followed(z); init = zero(T))
    end
    late, here = zero(T), zero(T)        # by power iteration, from where the last one ended
    for _ in 1:4
        r.w ./= norm(r.w)
        d.rhs.vjp(r.v, r.w, x, p, t)
        all(isfinite, r.v) || return zero(T)
        late = max(late, sum(norm(view(r.v, range_of(d, k))) for k in 1:asks))
        own = view(r.v, 1:n)
        size, along = norm(own), dot(r.w, own)
        here = along < -T(0.95) * size ? zero(T) : size
        size > 0 && copyto!(r.w, own)
    end
    return late + here
end
asked_times!(d::Delayed, u, p, t) =
    (copyto!(d.x, 1, u, 1, d.n); d.asked.value(d.s, d.x, p, t); d.s)

# The step whose polynomial holds the state at s, and where s lies in it. At the steps' ends, where
# slopes may jump, `middle` tells which of the two steps: the delayed time in the middle of the step
# that s is asked for in.
function place(b::DelayedSweep{T}, s, middle = s) where {T}
    mesh = b.mesh
    i = clamp(searchsortedfirst(mesh, s) - 1, 1, length(mesh) - 1)
    if mesh[i + 1] - s <= b.same && middle > mesh[i + 1] && i + 1 < length(mesh)
        i += 1
    elseif s - mesh[i] <= b.same && middle < mesh[i] && i > 1
        i -= 1
    end
    return i, clamp((s - mesh[i]) / (mesh[i + 1] - mesh[i]), zero(T), one(T))
end

# The state or its slope at a place of a step, from within that step.
function state_in(b::DelayedSweep, i, theta, s, ::Type{D}) where {D}
    theta == 0 && return b.sol(b.mesh[i], D; continuity = :right)
    theta == 1 && return b.sol(b.mesh[i + 1], D; continuity = :left)
    return b.sol(clamp(s, b.mesh[i], b.mesh[i + 1]), D; continuity = :left)
end

# Whether a delayed time is one of the history: none passes t0 within a step.
before(b::DelayedSweep, middle) = middle < b.mesh[1]

# x and s at a node; `middle` are the delayed times in the middle of the step.
gather_node!(b::DelayedSweep, u, t, middle) =
    gather!(b.d, u, b.p, t) do out, s, k
        before(b, middle[k]) ? b.d.history.value(out, b.d.x, b.p, s) :
            copyto!(out, state_in(b, place(b, s, middle[k])..., s, Val{0}))
    end

# The derivative of the delayed state by its time.
function delayed_slope!(to, b::DelayedSweep, s, middle)
    d = b.d
    if before(b, middle)
        d.history.tgrad(d.at, d.x, b.p, s)
        copyto!(to, d.at)
    else
        copyto!(to, state_in(b, place(b, s, middle)..., s, Val{1}))
    end
    return to
end
