"""
Delay equations by DelayDiffEq.
"""
module PySciMLDelayExt

using DelayDiffEq: DelayDiffEq
using PySciML:
    Options, PySciML, all_stops, begun, callback_set, cap_first_step!, needs_jacobian, watching
using SciMLBase: CallbackSet, DDEProblem, ReturnCode, SciMLBase

PySciML.needs_jacobian(m::DelayDiffEq.MethodOfSteps, n) = needs_jacobian(m.alg, n)

function PySciML.start_of(h::DelayDiffEq.HistoryFunction)
    integrator = h.integrator
    return integrator.sol.prob.tspan[1], integrator.t
end

function PySciML.integrate(
        prob::DDEProblem, alg, o::Options{T}, dense::Bool, events, log, watch = watching()
    ) where {T}
    callback = isempty(events) ? CallbackSet(watch) : callback_set(events, log)
    tstops = isempty(events) ? o.tstops : all_stops(o.tstops, events)
    integrator = begun(prob, alg, o, dense, tstops, callback, (; o.abstol, dense))
    SciMLBase.has_tstop(integrator) && cap_first_step!(integrator)
    SciMLBase.solve!(integrator)
    sol = integrator.sol
    # that it was ended is forgotten (DelayDiffEq 6.0)
    sol.retcode == ReturnCode.Success && integrator.t < prob.tspan[2] &&
        (sol = SciMLBase.solution_new_retcode(sol, ReturnCode.Terminated))
    return sol, integrator.t
end

end
