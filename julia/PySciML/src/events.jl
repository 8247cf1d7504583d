# Events: what happens during a solve besides the equation itself, and a record of it.

"""
    EventRecord{T}

One event: its time, the callback (from 1), the states before and after, and how many points the
solution held before the state after it was saved.
"""
struct EventRecord{T}
    t::T
    index::Int
    before::Vector{T}
    after::Vector{T}
    position::Int
end

"""
    Event{T}

A callback: `kind` is one of `KINDS`; `condition` and `affect` are `Functions` or nothing, with
parameters of their own. Of a jump `condition` is the rate, and `direction` the number that the user
knows it by; of a reaction `times` are its numbers, see `reaction` in ext/PySciMLJumpExt.jl; of a
bound `direction` says which one: 0 the upper, 1 for how long, 2 the lower. A domain is no event:
its condition says where the state must not be (`isoutofdomain`).
"""
struct Event{T}
    kind::Symbol
    condition::Union{Nothing, Functions{T}}
    affect::Union{Nothing, Functions{T}}
    terminate::Bool
    direction::Int
    times::Vector{T}
    save_positions::Tuple{Bool, Bool}
    condition_p::Vector{T}
    affect_p::Vector{T}
end

const KINDS = (:continuous, :discrete, :preset, :reaction, :constant, :variable, :bound, :domain)

# The event as it is now, with parameters that the next solve does not overwrite.
snapshot(e::Event{T}) where {T} = Event{T}(
    e.kind, e.condition, e.affect, e.terminate, e.direction, e.times, e.save_positions,
    copy(e.condition_p), copy(e.affect_p)
)

# Events' functions own their buffers like all others: threads but the first solve with copies.
owned(events::Vector{<:Event}) = Threads.threadid() == 1 ? events : map(owned, events)
owned(e::Event{T}) where {T} = Event{T}(
    e.kind, owned(e.condition), owned(e.affect), e.terminate, e.direction, e.times, e.save_positions,
    e.condition_p, e.affect_p
)
owned(::Nothing) = nothing
function owned(f::Functions)
    new = clone(f)
    copyto!(data(new), data(f))
    return new
end

# What SciML calls: concrete types, whatever the model.
struct Condition{T} <: Function
    f::Functions{T}
    p::Vector{T}
    out::Vector{T}
end
function (c::Condition)(u, t, integrator)
    value = c(u, t)
    iszero(value) && t == integrator.tprev && t != integrator.t || return value
    # SciML takes no sign from a zero at the beginning of a step, and would find no event in it
    later = nudged(integrator)
    return c(integrator(later), later)
end
function (c::Condition)(u, t)
    c.f.value(c.out, u, c.p, t)
    return @inbounds c.out[1]
end

# A little after the beginning of a step: far enough for a condition that starts from zero to have
# a sign beyond rounding, also where it starts without a slope.
nudge(::Type{T}) where {T} = cbrt(eps(T))
nudged(integrator) =
    integrator.tprev + nudge(typeof(integrator.t)) * (integrator.t - integrator.tprev)

struct Holds{T} <: Function
    condition::Condition{T}
end
(h::Holds)(u, t, integrator) = h.condition(u, t, integrator) != 0

never(u, t, integrator) = false

# A step that ends where the condition holds is rejected, and tried again with a shorter one.
struct Outside{T} <: Function
    condition::Condition{T}
end
(o::Outside)(u, p, t) = o.condition(u, t) != 0
(o::Outside)(u::AbstractVector{<:ForwardDiff.Dual}, p, t) =
    o(ForwardDiff.value.(u), p, ForwardDiff.value(t))

"The algorithm with the domain that is among the events, if any."
function within_domain(alg, events::Vector{Event{T}}) where {T}
    k = findfirst(e -> e.kind === :domain, events)
    k === nothing && return alg
    condition = Condition{T}(events[k].condition, events[k].condition_p, zeros(T, 1))
    return Tuned(alg, (; isoutofdomain = Outside{T}(condition)))
end

struct AtTimes{T} <: Function
    times::Vector{T}
end
(a::AtTimes)(u, t, integrator) = insorted(t, a.times)

# What happens before the first step: SciML asks discrete callbacks only after steps.
struct AtStart{T} <: Function
    times::Vector{T}
end
function (a::AtStart)(callback, u, t, integrator)
    acts = insorted(t, a.times)
    if acts
        callback.affect!(integrator)
        # as SciML does after other events: on a DAE the state is made to fit
        hasproperty(integrator, :initializealg) &&
            SciMLBase.initialize_dae!(integrator, integrator.initializealg)
    end
    SciMLBase.derivative_discontinuity!(integrator, acts)
    return nothing
end

# `events` are all of the problem, of which this is number `index`.
struct Affect{T} <: Function
    index::Int
    events::Vector{Event{T}}
    log::Vector{EventRecord{T}}
end
function (a::Affect)(integrator)
    event = a.events[a.index]
    if event.kind === :continuous
        integrator.isdae && mend_last_step!(integrator)
        at_once = [i for i in eachindex(a.events) if i != a.index && crosses(a.events[i], integrator)]
        act!(integrator, a, a.index)
        foreach(i -> act!(integrator, a, i), at_once)
    else
        act!(integrator, a, a.index)
    end
    return nothing
end

# A step of a DAE that an event has cut gets its stages computed anew for the dense output, but from
# the state at its end in place of its beginning, and by Rosenbrock's methods with the rate counted
# twice where there is a mass matrix (OrdinaryDiffEqCore 4.5, OrdinaryDiffEqRosenbrock). For these
# the step is taken once more, up to the event.
function mend_last_step!(integrator)
    OrdinaryDiffEqCore.unwrap_alg(integrator, false) isa ROSENBROCK || return
    sol, finish = integrator.sol, integrator.t
    length(sol.t) > 1 && last(sol.t) == finish || return
    from = sol.u[end - 1]
    sol.t[end - 1] == integrator.tprev && integrator.uprev != from || return
    reached = copy(integrator.u)
    copyto!(integrator.uprev, from)
    integrator.t = integrator.tprev
    OrdinaryDiffEqCore.perform_step!(integrator, integrator.cache)
    integrator.t = finish
    copyto!(integrator.u, reached)
    for (to, k) in zip(last(sol.k), integrator.k)
        copyto!(to, k)
    end
    return
end
const ROSENBROCK = Union{
    OrdinaryDiffEqCore.OrdinaryDiffEqRosenbrockAdaptiveAlgorithm,
    OrdinaryDiffEqCore.OrdinaryDiffEqRosenbrockAlgorithm,
}

function act!(integrator, a::Affect{T}, index) where {T}
    event, before = a.events[index], copy(integrator.u)
    # SciML saves the state again after this, also where nothing acts: records rely on it
    event.affect === nothing ||
        event.affect.value(integrator.u, before, event.affect_p, integrator.t)
    integrator.u isa ArrayPartition && restart_rates!(integrator)
    record = EventRecord{T}(
        integrator.t, index, before, copy(integrator.u), length(integrator.sol.t)
    )
    push!(a.log, record)
    jumped!(integrator)
    event.terminate && terminate!(integrator)
    return
end

"What a solver has to be told of a jump of the state."
jumped!(integrator) = nothing

# Symplectic methods begin a step from the rates that the last one ended with, also where the state
# has been changed since (OrdinaryDiffEqSymplecticRK 2.1).
restart_rates!(integrator) =
    integrator.f(integrator.fsallast, integrator.u, integrator.p, integrator.t)

# Whether a root of this event too lies exactly where the step has been cut: SciML acts for one
# event alone, and sees no change of sign from a zero on.
function crosses(e::Event{T}, integrator) where {T}
    e.kind === :continuous || return false
    value = zeros(T, 1)
    e.condition.value(value, integrator.u, e.condition_p, integrator.t)
    iszero(value[1]) || return false
    e.condition.value(value, integrator.uprev, e.condition_p, integrator.tprev)
    return value[1] != 0 && (e.direction == 0 || (value[1] < 0) == (e.direction > 0))
end

# Python's function `int watch(double t)`: called now and then during a solve, it shows progress
# and answers nonzero where the solve is to be given up (Ctrl-C).
const WATCHER = Ref{Ptr{Cvoid}}(C_NULL)
const WATCH_EVERY = UInt64(50_000_000)  # nanoseconds

mutable struct Watch <: Function
    next::UInt64
end
Watch() = Watch(time_ns() + WATCH_EVERY)
function (w::Watch)(u, t, integrator)
    now = time_ns()
    now < w.next && return false
    w.next = now + WATCH_EVERY
    WATCHER[] == C_NULL && return false
    ccall(WATCHER[], Cint, (Cdouble,), t) == 0 || throw(CallbackError())
    return false
end

nothing_happens(integrator) = nothing

watching() = DiscreteCallback(Watch(), nothing_happens; save_positions = (false, false))

"""
    callback_set(events, log) -> CallbackSet

SciML's form of the events; what happens is appended to `log`. Every event saves the state on
both sides, from which the outputs that were asked for are taken later.
"""
function callback_set(
        events::Vector{Event{T}}, log::Vector{EventRecord{T}}, watch = watching()
    ) where {T}
    each = ntuple(i -> callback(events[i], Affect{T}(i, events, log)), length(events))
    return CallbackSet(each..., watch)
end

function callback(e::Event{T}, affect::Affect{T}) where {T}
    if e.kind === :continuous
        condition = Condition{T}(e.condition, e.condition_p, zeros(T, 1))
        return ContinuousCallback(
            condition, e.direction < 0 ? nothing : affect, e.direction > 0 ? nothing : affect;
            save_positions = (true, true),
            # After an event its condition is looked at again from a little later on, wherever the
            # affect has left it. SciML does so near the root only, judged by an absolute
            # tolerance, and a hundredth of a step later, which steps over a second event.
            abstol = T(Inf), repeat_nudge = nudge(T)
        )
    elseif e.kind === :discrete
        condition = Condition{T}(e.condition, e.condition_p, zeros(T, 1))
        return DiscreteCallback(Holds{T}(condition), affect; save_positions = (true, true))
    elseif e.kind === :domain
        return DiscreteCallback(never, nothing_happens; save_positions = (false, false))
    else
        times = sort(e.times)
        return DiscreteCallback(
            AtTimes{T}(times), affect;
            initialize = AtStart{T}(times), save_positions = (true, true)
        )
    end
end
