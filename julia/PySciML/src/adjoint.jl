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
    segment_adjoint(sensealg, sol, alg, ts, cotangents, abstol, reltol, functions) -> (du0, dp)

One smooth stretch: the cotangent at its start and the parameters', for cotangents (one column a
time) of the states at `ts`, which are distinct and in the order of integration. SciMLSensitivity
adds the methods.
"""
function segment_adjoint end

"Whether a sensitivity algorithm goes forward, beside the state; it then has `forward_gradient`."
isforward(sensealg) = false

"""
    adjoint(handle, ts, source, cotangents, of_events, sensealg, abstol, reltol) -> Gradient

Gradient of `sum(cotangents .* u(ts)) + sum(of_events .* event times)`. `source` says what moves each time: see FlatSolution in
Python; an event's outputs come in the order (before, after) as they were saved.
"""
function adjoint(
        h::Handle{T}, ts::Vector{T}, source::Vector{Int}, cotangents::Matrix{T},
        of_events::Vector{Float64}, sensealg, abstol, reltol
    ) where {T}
    densify!(h)
    return lock(h.model.lock) do
        copyto!(data(h.model.functions), h.c)
        if isempty(h.log)
            smooth(h, ts, source, cotangents, sensealg, abstol, reltol)
        else
            with_events(h, ts, source, cotangents, of_events, sensealg, abstol, reltol)
        end
    end
end

function smooth(h::Handle{T}, ts, source, cotangents, sensealg, abstol, reltol) where {T}
    times, joined = join_equal(ts, cotangents)
    du0, dp = if isempty(times)
        zeros(T, h.model.n), zeros(T, length(h.prob.p))
    elseif isforward(sensealg)
        forward_gradient(sensealg, h, times, joined, abstol, reltol)
    else
        segment_adjoint(
            sensealg, h.sol, h.alg, times, joined, abstol, reltol, h.model.functions
        )
    end
    dtimes = time_gradients(h, ts, source, cotangents)
    dt0 = -dot(du0, slope(h, h.prob.u0, h.prob.tspan[1]))
    return Gradient{T}(du0, dp, dt0, dtimes, no_events(h))
end

no_events(h::Handle{T}) where {T} =
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
guess(h::Handle{T, <:Model{T, <:Functions}}, t) where {T} = nothing
guess(h::Handle, t) = h.sol(t, Val{1})

# How the loss changes with each output time through the state there; events move by themselves.
function time_gradients(h::Handle{T}, ts, source, cotangents) where {T}
    dtimes = zeros(Float64, length(ts))
    u = zeros(T, h.model.n)
    for i in eachindex(ts)
        cotangent = view(cotangents, :, i)
        if source[i] > FIRST_EVENT && !all(iszero, cotangent)
            state!(u, h, ts[i])
            dtimes[i] = dot(cotangent, slope(h, u, ts[i]))
        end
    end
    return dtimes
end

state!(u, h::Handle, t) = copyto!(u, h.sol(t))

# -- events ----------------------------------------------------------------------------------------

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
    prob = problem(h.model, us[1], h.prob.p, (ts[1], ts[end]), nothing, nothing)
    return SciMLBase.build_solution(
        prob, sol.alg, ts, us; dense = true, k = ks, interp, alg_choice = choice,
        calculate_error = false, sol.stats, retcode = ReturnCode.Success
    )
end

# The segment that an output lies in: the one before an event at its time, or, for times that
# were asked for later (FIXED), the one after it.
function segment_of(h::Handle, ranges, t, source)
    sign = h.prob.tspan[2] >= h.prob.tspan[1] ? 1 : -1
    for (s, range) in enumerate(ranges)
        finish = sol_end(h, range)
        (sign * t < sign * finish || (source != FIXED && t == finish)) && return s
    end
    return length(ranges)
end
sol_end(h, range) = h.sol.t[last(range)]

function with_events(
        h::Handle{T}, ts, source, cotangents, of_events, sensealg, abstol, reltol
    ) where {T}
    isforward(sensealg) && error(
        "forward sensitivities through events are not available; use GaussAdjoint, " *
            "InterpolatingAdjoint or QuadratureAdjoint"
    )
    n, ranges = h.model.n, segments(h)
    inside = [Int[] for _ in ranges]
    before, after = zeros(T, n, length(h.log)), zeros(T, n, length(h.log))
    group_of = Dict(first(g) => last(g) for g in moments(h.log))
    for i in eachindex(ts)
        if source[i] <= FIRST_EVENT
            k = FIRST_EVENT - source[i] + 1
            if h.side[i] == 1
                before[:, k] .+= view(cotangents, :, i)
            else
                after[:, group_of[k]] .+= view(cotangents, :, i)
            end
        else
            push!(inside[segment_of(h, ranges, ts[i], source[i])], i)
        end
    end
    mu, dp, extra = zeros(T, n), zeros(T, length(h.prob.p)), no_events(h)
    for s in length(ranges):-1:1
        if s <= length(h.log)
            mu = through_event!(
                extra, h, h.log[s], mu, view(before, :, s), view(after, :, s), of_events[s]
            )
        end
        range = ranges[s]
        columns = cotangents[:, inside[s]]
        if length(range) < 2 || h.sol.t[first(range)] == h.sol.t[last(range)]
            mu = mu .+ vec(sum(columns; dims = 2))
            continue
        end
        times, joined = join_equal([ts[inside[s]]; sol_end(h, range)], [columns mu])
        all(iszero, joined) && (mu = zeros(T, n); continue)
        mu, part = segment_adjoint(
            sensealg, piece(h, range), h.alg, times, joined, abstol, reltol, h.model.functions
        )
        dp .+= part
    end
    dtimes = time_gradients(h, ts, source, cotangents)
    dt0 = -dot(mu, slope(h, h.prob.u0, h.prob.tspan[1]))
    return Gradient{T}(mu, dp, dt0, dtimes, extra)
end

# The cotangent before an event from `mu` after it, by implicit differentiation of the event's
# time (Hairer, Norsett, Wanner, "Solving Ordinary Differential Equations I", section II.6).
# `before` and `after` are the cotangents of the outputs on its two sides, `of_time` of its time.
function through_event!(extra, h::Handle{T}, record, mu, before, after, of_time) where {T}
    event = h.events[record.index]
    u, t = record.before, record.t
    right = mu .+ after
    pulled, moved = copy(right), zero(T)
    if event.affect !== nothing
        affect, p = event.affect, event.affect_p
        affect.vjp(pulled, right, u, p, t)
        part = zeros(T, length(p))
        affect.vjp_p(part, right, u, p, t)
        extra[record.index][2] .+= part
        moved = along_time(affect, right, u, p, t)
    end
    left = pulled .+ before
    event.kind === :continuous || return left
    f_before, f_after = slope(h, u, t), slope(h, record.after, t)
    motion = dot(left, f_before) + moved - dot(mu, f_after) + of_time
    condition, p, one_ = event.condition, event.condition_p, ones(T, 1)
    c_u, c_p = zeros(T, h.model.n), zeros(T, length(p))
    condition.vjp(c_u, one_, u, p, t)
    condition.vjp_p(c_p, one_, u, p, t)
    factor = motion / (dot(c_u, f_before) + along_time(condition, one_, u, p, t))
    extra[record.index][1] .-= factor .* c_p
    return left .- factor .* c_u
end

function along_time(f::Functions{T}, w, u, p, t) where {T}
    out = zeros(T, 1)
    f.vjp_t(out, w, u, p, t)
    return out[1]
end
