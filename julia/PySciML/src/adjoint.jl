# Gradients: backwards over the segments of a solution and its events.
#
# On each segment SciMLSensitivity carries the cotangent of the state and gives the parameters'
# (see ext/PySciMLSensitivityExt.jl); here stand the events between the segments.

"""
    Gradient{T}

Cotangents of the inputs of a solve: of `u0`, `p`, `t0`, of every output time, and of the events'
own parameters, as pairs (condition, affect).
"""
struct Gradient{T}
    u0::Vector{T}
    p::Vector{T}
    t0::Float64
    times::Vector{Float64}
    events::Vector{Tuple{Vector{T}, Vector{T}}}
end

"""
    segment_adjoint(sensealg, sol, alg, ts, cotangents, abstol, reltol, model) -> (du0, dp)

One smooth stretch: the cotangent at its start and the parameters', for cotangents (one column a
time) of the states at `ts`, which are distinct and in the order of integration. SciMLSensitivity
adds the methods.
"""
function segment_adjoint end

"Whether a sensitivity algorithm goes forward, beside the state; it then has `forward_gradient`."
isforward(sensealg) = false

"""
    adjoint(
        handle, ts, source, cotangents, of_events, sensealg, abstol, reltol, by_times = true
    ) -> Gradient

Gradient of `sum(cotangents .* u(ts)) + sum(of_events .* event times)`. `source` says what moves
each time: see FlatSolution in Python; an event's outputs come in the order (before, after) as they
were saved. Without `by_times` nothing is computed for t0 and the output times.
"""
function adjoint(
        h::Handle{T}, ts::Vector{T}, source::Vector{Int}, cotangents::Matrix{T},
        of_events::Vector{Float64}, sensealg, abstol, reltol, by_times::Bool = true
    ) where {T}
    return lock(h.model.lock) do
        copyto!(data(h.model.functions), h.c)
        du0, dp, events =
            backwards(h, ts, source, cotangents, of_events, sensealg, abstol, reltol)
        by_times || return Gradient{T}(du0, dp, zero(T), Float64[], events)
        dt0, dtimes = time_gradients(h, ts, source, cotangents, du0)
        Gradient{T}(du0, dp, dt0, dtimes, events)
    end
end

function backwards(h::Handle, ts, source, cotangents, of_events, sensealg, abstol, reltol)
    densify!(h)
    return isempty(h.log) ? smooth(h, ts, cotangents, sensealg, abstol, reltol) :
        with_events(h, ts, source, cotangents, of_events, sensealg, abstol, reltol)
end

function smooth(h::Handle{T}, ts, cotangents, sensealg, abstol, reltol) where {T}
    times, joined = join_equal(ts, cotangents)
    du0, dp = if isempty(times)
        zeros(T, h.model.n), zeros(T, length(h.prob.p))
    elseif isforward(sensealg)
        forward_gradient(sensealg, h, times, joined, abstol, reltol)::Tuple{Vector{T}, Vector{T}}
    else
        Base.inferencebarrier(segment_adjoint)(
            sensealg, h.sol, bare(h.alg), times, joined, abstol, reltol, h.model
        )::Tuple{Vector{T}, Vector{T}}
    end
    return du0, dp, no_events(h)
end

no_events(h::Solved{T}) where {T} =
    [(zeros(T, length(e.condition_p)), zeros(T, length(e.affect_p))) for e in h.events]

# The columns of equal (neighbouring) times added up.
function join_equal(ts::Vector{T}, cotangents::Matrix{T}) where {T}
    issorted(ts; lt = <=) && return ts, cotangents
    issorted(ts; rev = true, lt = <=) && return ts, cotangents
    keep = [i for i in eachindex(ts) if i == 1 || ts[i] != ts[i - 1]]
    joined = zeros(T, size(cotangents, 1), length(keep))
    column = 0
    for i in eachindex(ts)
        (i == 1 || ts[i] != ts[i - 1]) && (column += 1)
        @views joined[:, column] .+= cotangents[:, i]
    end
    return ts[keep], joined
end

# u' at a state
slope(h::Handle, u, t) = rate(Equation(h.model), u, h.prob.p, t, guess(h, t))
guess(h::Handle{T, <:Model{T, <:Functions}}, t, continuity = :left) where {T} = nothing
guess(h::Handle, t, continuity = :left) = h.sol(t, Val{1}; continuity)

# How the loss changes with t0, and with each output time through the state there; events move by
# themselves.
function time_gradients(h::Handle{T}, ts, source, cotangents, du0) where {T}
    dtimes = zeros(Float64, length(ts))
    u = zeros(T, h.model.n)
    for i in eachindex(ts)
        cotangent = view(cotangents, :, i)
        if source[i] > FIRST_EVENT && !all(iszero, cotangent)
            state!(u, h, ts[i])
            dtimes[i] = dot(cotangent, slope(h, u, ts[i]))
        end
    end
    return -dot(du0, slope(h, h.prob.u0, h.prob.tspan[1])), dtimes
end

state!(u, h::Handle, t) = copyto!(u, h.sol(t))

# -- events ----------------------------------------------------------------------------------------

rates_of(prob::ODEProblem) = (nothing, nothing)
rates_of(prob::DAEProblem) = (prob.du0, prob.differential_vars)

"""
    piece(handle, range) -> solution

The solution between two events as one of its own, from the points of `range`.
"""
function piece(h::Handle, range)
    sol, id = h.sol, h.sol.interp
    ts, us, ks = sol.t[range], sol.u[range], sol.k[range]
    choice = id.alg_choice === nothing ? nothing : id.alg_choice[range]
    interp = OrdinaryDiffEqCore.InterpolationData(
        id.f, us, ts, ks, choice, id.dense, id.cache, id.differential_vars, id.sensitivitymode
    )
    prob = problem(h.model, us[1], h.prob.p, (ts[1], ts[end]), rates_of(h.prob)...)
    return SciMLBase.build_solution(
        prob, sol.alg, ts, us; dense = true, k = ks, interp, alg_choice = choice,
        calculate_error = false, sol.stats, retcode = ReturnCode.Success
    )
end

# What the gradients of a solution with events go over: the events that happened at one time, the
# ranges of points between these, and the outputs of each range and of both sides of the events.
struct Outputs{T}
    groups::Vector{UnitRange{Int}}
    ranges::Vector{UnitRange{Int}}
    inside::Vector{Vector{Int}}
    before::Matrix{T}
    after::Matrix{T}
    of_time::Vector{Float64}
end

function Outputs(h::Handle{T}, ts, source, cotangents, of_events) where {T}
    groups, pieces, n = moments(h.log), segments(h), h.model.n
    ranges = [[pieces[first(g)] for g in groups]; [last(pieces)]]
    inside = [Int[] for _ in ranges]
    before, after = zeros(T, n, length(groups)), zeros(T, n, length(groups))
    group_of = Dict(first(g) => k for (k, g) in enumerate(groups))
    for i in eachindex(ts)
        if source[i] <= FIRST_EVENT
            to = h.side[i] == 1 ? before : after
            view(to, :, group_of[FIRST_EVENT - source[i] + 1]) .+= view(cotangents, :, i)
        else
            push!(inside[range_of(h, ranges, ts[i], source[i])], i)
        end
    end
    return Outputs{T}(groups, ranges, inside, before, after, [sum(of_events[g]) for g in groups])
end

# The range that an output lies in: the one before an event at its time, or, for times that were
# asked for later (FIXED), the one after it.
function range_of(h::Handle, ranges, t, source)
    sign = h.prob.tspan[2] >= h.prob.tspan[1] ? 1 : -1
    for (s, range) in enumerate(ranges)
        isempty(range) && continue
        finish = finish_of(h, range)
        (sign * t < sign * finish || (source != FIXED && t == finish)) && return s
    end
    return length(ranges)
end
finish_of(h, range) = h.sol.t[last(range)]
nothing_between(h, range) = length(range) < 2 || h.sol.t[first(range)] == finish_of(h, range)

# The event that moves a group of events: the first of them that is a root.
function moving_event(h::Handle, group)
    k = findfirst(i -> h.events[h.log[i].index].kind === :continuous, group)
    return k === nothing ? nothing : h.log[group[k]]
end

# u' on both sides of the k-th group.
function slopes(h::Handle, o::Outputs, k)
    first_, last_ = h.log[first(o.groups[k])], h.log[last(o.groups[k])]
    after = state_after(h, last_, o.ranges[k + 1])
    return slope(h, first_.before, first_.t),
        rate(Equation(h.model), after, h.prob.p, last_.t, guess(h, last_.t, :right))
end

function with_events(
        h::Handle{T}, ts, source, cotangents, of_events, sensealg, abstol, reltol
    ) where {T}
    o = Outputs(h, ts, source, cotangents, of_events)
    return isforward(sensealg) ?
        forward_through_events(sensealg, h, ts, cotangents, o, abstol, reltol) :
        back_through_events(sensealg, h, ts, cotangents, o, abstol, reltol)
end

function back_through_events(sensealg, h::Handle{T}, ts, cotangents, o, abstol, reltol) where {T}
    n = h.model.n
    mu, dp, extra = zeros(T, n), zeros(T, length(h.prob.p)), no_events(h)
    for s in length(o.ranges):-1:1
        range = o.ranges[s]
        columns = cotangents[:, o.inside[s]]
        after = s == 1 ? zeros(T, n) : o.after[:, s - 1]
        if s <= length(o.groups)
            mu = through_events!(extra, h, o, s, mu)
        end
        if nothing_between(h, range)
            at = isempty(range) ? h.log[o.groups[s - 1][end]].t : h.sol.t[first(range)]
            state = isempty(range) ? h.log[o.groups[s - 1][end]].after : h.sol.u[first(range)]
            mu = settled!(dp, h, mu .+ vec(sum(columns; dims = 2)) .+ after, state, at)
            continue
        end
        start, finish = h.sol.t[first(range)], finish_of(h, range)
        times, joined = join_equal([start; ts[o.inside[s]]; finish], [after columns mu])
        all(iszero, joined) && (mu = zeros(T, n); continue)
        mu, part = Base.inferencebarrier(segment_adjoint)(
            sensealg, piece(h, range), bare(h.alg), times, joined, abstol, reltol, h.model
        )::Tuple{Vector{T}, Vector{T}}
        dp .+= part
    end
    return mu, dp, extra
end

# `settle!` at one point of a solution with events
function settled!(dp, h::Handle, c, u, t)
    e, p = Equation(h.model), h.prob.p
    isplain(e) && return c
    du = isresidual(e) ? rate(e, u, p, t, guess(h, t, :right)) : zero(u)
    return settle!(dp, e, c, du, u, p, t)
end

# The cotangent before the k-th group of events from `mu` after it, by implicit differentiation of
# the event's time (Hairer, Norsett, Wanner, "Solving Ordinary Differential Equations I", section
# II.6). `mu` holds the outputs after the events already.
function through_events!(
        extra, h::Handle{T}, o::Outputs, k, mu, rates::F = () -> slopes(h, o, k)
    ) where {T, F}
    group = o.groups[k]
    moving = moving_event(h, group)
    pulled, motion = mu, zero(T)
    for i in reverse(group)
        record = h.log[i]
        event = h.events[record.index]
        event.affect === nothing && continue
        affect, p, u, right = event.affect, event.affect_p, record.before, pulled
        pulled = similar(right)
        affect.vjp(pulled, right, u, p, record.t)
        part = zeros(T, length(p))
        affect.vjp_p(part, right, u, p, record.t)
        extra[record.index][2] .+= part
        moving === nothing || (motion += along_time(affect, right, u, p, record.t))
    end
    left = pulled .+ view(o.before, :, k)
    moving === nothing && return left
    f_before, f_after = rates()
    motion += dot(left, f_before) - dot(mu, f_after) + dot(view(o.after, :, k), f_after)
    motion += T(o.of_time[k])
    c_u, c_p, speed = condition_slopes(h, moving, f_before)
    factor = motion / speed
    extra[moving.index][1] .-= factor .* c_p
    return left .- factor .* c_u
end

# Of an event's condition: its derivatives by the state and its parameters, and along the solution.
function condition_slopes(h::Handle{T}, record, f_before) where {T}
    event = h.events[record.index]
    condition, p, u, t, one_ = event.condition, event.condition_p, record.before, record.t, ones(T, 1)
    c_u, c_p = zeros(T, h.model.n), zeros(T, length(p))
    condition.vjp(c_u, one_, u, p, t)
    condition.vjp_p(c_p, one_, u, p, t)
    return c_u, c_p, dot(c_u, f_before) + along_time(condition, one_, u, p, t)
end

function along_time(f::Functions{T}, w, u, p, t) where {T}
    out = zeros(T, 1)
    f.vjp_t(out, w, u, p, t)
    return out[1]
end
