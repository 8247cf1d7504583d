"""
Delay equations by DelayDiffEq.
"""
module PySciMLDelayExt

using DelayDiffEq: DelayDiffEq
using OrdinaryDiffEqCore: OrdinaryDiffEqCore
using PySciML:
    Options, PySciML, all_stops, begun, callback_set, cap_first_step!, is_adaptive, leapt!,
    needs_jacobian, passing, piece, watching
using SciMLBase: CallbackSet, DDEProblem, ReturnCode, SciMLBase

PySciML.needs_jacobian(m::DelayDiffEq.MethodOfSteps, n) = needs_jacobian(m.alg, n)

# The integrator of the history is at the end of the present step while a step that looks back into
# itself is iterated.
function PySciML.start_of(h::DelayDiffEq.HistoryFunction)
    sol = h.integrator.sol
    return sol.prob.tspan[1], last(sol.t)
end

function PySciML.after!(out, h::DelayDiffEq.HistoryFunction, p, t)
    sol = h.integrator.sol
    t == last(sol.t) ? copyto!(out, last(sol.u)) :
        sol.interp(out, t, nothing, Val{0}, p, :right)
    return
end

# DelayDiffEq does so itself for some methods, and not for those that keep no rate for the next step
# (6.0).
function PySciML.jumped!(integrator::DelayDiffEq.DDEIntegrator)
    leapt!(integrator.sol.prob.f.f.d, integrator.u, integrator.p, integrator.t)
    return PySciML.passed!(integrator, 0)
end

function PySciML.passed!(integrator::DelayDiffEq.DDEIntegrator, order)
    at = integrator.tdir * integrator.t
    push!(integrator.opts.d_discontinuities, DelayDiffEq.Discontinuity(at, order))
    return
end

function PySciML.piece(h::DelayDiffEq.HistoryFunction, at, near, after::Bool)
    sol = h.integrator.sol
    i = after ? searchsortedlast(sol.t, at + near) + 1 : searchsortedfirst(sol.t, at - near)
    return 1 < i <= length(sol.t) ? piece(sol.interp, i) : nothing
end

# Of two algorithms that take turns, DelayDiffEq 6.0 copies the polynomial of one over that of the
# other: where a step is given up, and where one is cut by an event. It is an error, or the wrong one.
const TakingTurns = DelayDiffEq.DDEIntegrator{<:OrdinaryDiffEqCore.CompositeAlgorithm}

function DelayDiffEq.move_back_ode_integrator!(integrator::TakingTurns)
    history = integrator.integrator
    if length(history.sol.t) > 1
        history.cache.current = last(history.sol.alg_choice)
        hold!(history, last(history.sol.k))
    end
    return invoke(
        DelayDiffEq.move_back_ode_integrator!, Tuple{DelayDiffEq.DDEIntegrator}, integrator
    )
end

function SciMLBase.reeval_internals_due_to_modification!(
        integrator::TakingTurns, ::Type{Val{true}}; more...
    )
    history = integrator.integrator
    resize!(integrator.k, integrator.kshortsize)
    OrdinaryDiffEqCore.ode_addsteps!(integrator, integrator.f, true, true, true)
    history.cache.current = integrator.cache.current
    hold!(history, integrator.k)
    return invoke(
        SciMLBase.reeval_internals_due_to_modification!,
        Tuple{DelayDiffEq.DDEIntegrator, Type{Val{true}}}, integrator, Val{true}; more...
    )
end

function hold!(history, stages)
    length(history.k) > length(stages) && resize!(history.k, length(stages))
    foreach(((i, k),) -> DelayDiffEq.copyat_or_push!(history.k, i, k), enumerate(stages))
    return
end

function PySciML.integrate(
        prob::DDEProblem, alg, o::Options{T}, dense::Bool, events, log, watch = watching()
    ) where {T}
    d = prob.f.f.d
    d.log[] = log
    callback = isempty(events) ? CallbackSet(watch) : callback_set(events, log)
    callback = CallbackSet(callback, passing(d, prob)...)
    tstops = isempty(events) ? o.tstops : all_stops(o.tstops, events)
    # DelayDiffEq would take steps as long as the lags
    isnan(o.dt) && isempty(tstops) && !(o.adaptive && is_adaptive(alg)) &&
        throw(ArgumentError("Fixed timestep methods require a choice of dt or choosing the tstops"))
    integrator = begun(prob, alg, o, dense, tstops, callback, (; o.abstol, dense))
    SciMLBase.has_tstop(integrator) && cap_first_step!(integrator)
    SciMLBase.solve!(integrator)
    sol = integrator.sol
    # that it was ended is forgotten (DelayDiffEq 6.0)
    sol.retcode == ReturnCode.Success && integrator.t < prob.tspan[2] &&
        (sol = SciMLBase.solution_new_retcode(sol, ReturnCode.Terminated))
    d.passings.negative && (sol = SciMLBase.solution_new_retcode(sol, ReturnCode.Unstable))
    return sol, integrator.t
end

end
