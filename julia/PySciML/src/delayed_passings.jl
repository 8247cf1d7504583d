# Where a lag that the state or the time moves brings a jump back, nobody knows beforehand. A step over
# such a moment is not always rejected (one of Vern9's was accepted at 1e-10, and left an error of
# 7e-5). So each delayed time sees one stretch of the past, between two jumps, and beyond its ends what
# is there is continued: a step is as smooth as its equation. Where it has gone past an end it is cut
# there, like at an event, and the next one sees the next stretch. Such moments are the breaking points
# of Guglielmi and Hairer, "Computing breaking points in implicit delay differential equations",
# Advances in Computational Mathematics 29 (2008).

"""
    Passings{T}

The `jumps` known so far during a solve, in their order: times at which the state jumps (`orders` 0),
its slope (1), or its curvature (2); and for each delayed time its `stretch`, the number of jumps
before it. Of no use where nothing moves a lag.
"""
mutable struct Passings{T}
    const jumps::Vector{T}
    const orders::Vector{Int}
    const stretch::Vector{Int}
    const pieces::Vector{Any}        # polynomials that continue each stretch at its two ends
    negative::Bool                   # whether a lag was, which has ended the solve
    near::T                          # of a jump: at it
    far::T                           # past a jump: unseen
    lags::Vector{T}                  # that nothing moves: they carry jumps on
end
Passings{T}(asks::Int) where {T} =
    Passings{T}(T[], Int[], zeros(Int, asks), fill!(Vector{Any}(undef, 2asks), nothing), false, zero(T), zero(T), T[])

"Orders up to which a jump is one: past them the slope's jump of what it brings back is no matter."
const MOST_SMOOTH = 2

# For a solve that begins at t0 with delayed times `s`; `gap`, whether the state jumps there.
function begin!(q::Passings{T}, s, tspan, gap::Bool, lags) where {T}
    t0, t1 = tspan
    empty!(q.jumps)
    empty!(q.orders)
    fill!(q.stretch, 0)
    q.negative, q.near, q.lags = false, 16 * eps(max(abs(t0), abs(t1))), lags
    q.far = sqrt(eps(T)) / 4 * max(abs(t0), abs(t1))
    jump!(q, t0, gap ? 0 : 1)
    foreach(k -> locate!(q, k, s[k]), eachindex(s))
    return
end

# A jump at t, and those that constant lags will make of it.
function jump!(q::Passings, t, order)
    order <= MOST_SMOOTH || return
    i = searchsortedfirst(q.jumps, t - q.near)
    if i <= length(q.jumps) && q.jumps[i] <= t + q.near
        order < q.orders[i] || return
        q.orders[i] = order
    else
        insert!(q.jumps, i, t)
        insert!(q.orders, i, order)
        for k in eachindex(q.stretch)
            q.stretch[k] >= i && (q.stretch[k] += 1)
        end
        fill!(q.pieces, nothing)
    end
    foreach(lag -> jump!(q, t + lag, order + 1), q.lags)
    return
end

# How far the k-th delayed time is from the nearer end of its stretch, negative beyond it.
function margin(q::Passings{T}, k, s) where {T}
    i = q.stretch[k]
    below = i == 0 ? T(Inf) : s - q.jumps[i]
    above = i == length(q.jumps) ? T(Inf) : q.jumps[i + 1] - s
    return min(below, above)
end

# The stretch that s is in; one that it is at the beginning of, where it is at an end.
function locate!(q::Passings, k, s)
    q.stretch[k] = searchsortedlast(q.jumps, s + q.near)
    q.pieces[2k - 1] = q.pieces[2k] = nothing
    return
end

# From one stretch to the next; the number of the jump between them.
function pass!(q::Passings, k, s)
    i = q.stretch[k]
    forwards = i < length(q.jumps) && (i == 0 || q.jumps[i + 1] - s < s - q.jumps[i])
    q.stretch[k] = forwards ? i + 1 : i - 1
    q.pieces[2k - 1] = q.pieces[2k] = nothing
    return forwards ? i + 1 : i
end

# The state (or its slope) at s as the k-th delayed time sees it.
function seen!(out, d, h, p, s, k, ::Type{D}) where {D}
    q = d.passings
    i = q.stretch[k]
    if h isa History
        D === Val{0} ? h(out, p, s) : h(out, p, s, D)
    elseif i == 0
        D === Val{0} ? d.history.value(out, d.x, p, s) : d.history.tgrad(out, d.x, p, s)
        s > q.jumps[1] && !all(isfinite, out) && D === Val{0} &&
            d.history.value(out, d.x, p, q.jumps[1])
    elseif s <= q.jumps[i] + q.near
        continued!(out, q, h, p, s, 2k - 1, q.jumps[i], true, D)
    elseif i < length(q.jumps) && s >= q.jumps[i + 1] - q.near
        continued!(out, q, h, p, s, 2k, q.jumps[i + 1], false, D)
    else
        h(out, p, s, D)
    end
    return
end

function continued!(out, q::Passings, h, p, s, slot, at, after::Bool, ::Type{D}) where {D}
    q.pieces[slot] === nothing && (q.pieces[slot] = piece(h, at, q.near, after))
    polynomial = q.pieces[slot]
    if polynomial !== nothing
        polynomial(out, s, nothing, D, p)
    elseif after && D === Val{0}
        after!(out, h, p, at)
    else
        h(out, p, s, D)
    end
    return
end

"""
    piece(h, at, near, after)

The polynomial of the step that begins (`after`) or ends at a time of the past, or nothing where that
step is still under way; the extension adds the method.
"""
function piece end

# The polynomial of a solution's step that ends at its i-th point, also outside it.
function piece(interp::OrdinaryDiffEqCore.InterpolationData, i)
    only_here(x) = x isa AbstractVector && !isempty(x) ? x[(i - 1):i] : x
    return typeof(interp)(
        interp.f, only_here(interp.timeseries), only_here(interp.ts), only_here(interp.ks),
        only_here(interp.alg_choice), interp.dense, interp.cache, interp.differential_vars,
        interp.sensitivitymode
    )
end

moving(d) = (k for k in eachindex(d.moved) if d.moved[k] > 0)

# How far the delayed times are from the next jump, and from the present.
struct NextPassing{D} <: Function
    d::D
end
function (c::NextPassing)(u, t, integrator)
    q, s = c.d.passings, asked_times!(c.d, u, integrator.p, t)
    return minimum(min(margin(q, k, s[k]), t - s[k] + q.far) for k in moving(c.d))
end

struct Pass{T, D} <: Function
    d::D
    passed::Vector{Tuple{T, Int, T}}
end
function (a::Pass)(integrator)
    d, q, t = a.d, a.d.passings, integrator.t
    s = asked_times!(d, integrator.u, integrator.p, t)
    if any(s[k] - t > q.far / 2 for k in moving(d))
        q.negative = true
        return terminate!(integrator)
    end
    reached = max(minimum(margin(q, k, s[k]) for k in moving(d)), 0) + q.near
    order = MOST_SMOOTH
    for k in moving(d)
        margin(q, k, s[k]) <= reached || continue
        i = pass!(q, k, s[k])
        order = min(order, q.orders[i])
        push!(a.passed, (t, k, q.jumps[i]))
    end
    jump!(q, t, order + 1)
    return passed!(integrator, order + 1)
end

"What a solver has to be told of a jump of a derivative of the state; the extension adds the method."
function passed! end

# After steps: a jump that was passed unseen, as by an event that has moved the lag.
struct Beyond{D} <: Function
    d::D
end
function (b::Beyond)(u, t, integrator)
    d, q = b.d, b.d.passings
    s = asked_times!(d, u, integrator.p, t)
    return any(margin(q, k, s[k]) < -q.far for k in moving(d))
end
struct Relocate{D} <: Function
    d::D
end
function (r::Relocate)(integrator)
    d, q = r.d, r.d.passings
    s = asked_times!(d, integrator.u, integrator.p, integrator.t)
    foreach(k -> margin(q, k, s[k]) < -q.far && locate!(q, k, s[k]), moving(d))
    return
end

# The state has jumped at t, to u.
function leapt!(d, u, p, t)
    q = d.passings
    any(>(0), d.moved) || return
    jump!(q, t, 0)
    s = asked_times!(d, u, p, t)
    foreach(k -> margin(q, k, s[k]) <= q.near && locate!(q, k, s[k]), moving(d))
    return
end

"The callbacks that a solve needs for this: none where nothing moves a lag."
function passing(d, prob)
    any(>(0), d.moved) || return ()
    t0 = prob.tspan[1]
    d.history.value(d.at, d.x, prob.p, t0)
    gap = d.at != prob.u0
    begin!(d.passings, asked_times!(d, prob.u0, prob.p, t0), prob.tspan, gap, prob.constant_lags)
    # only from positive to negative: just after an end, interpolants of multistep methods may still be
    # on the other side
    at_ends = ContinuousCallback(
        NextPassing(d), nothing, Pass(d, empty!(prob.h.passed)); save_positions = (true, false),
        abstol = typeof(t0)(Inf), repeat_nudge = nudge(typeof(t0))
    )
    unseen = DiscreteCallback(Beyond(d), Relocate(d); save_positions = (false, false))
    return at_ends, unseen
end
