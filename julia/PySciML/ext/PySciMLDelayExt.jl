"""
Delay equations by DelayDiffEq.
"""
module PySciMLDelayExt

using DelayDiffEq: DelayDiffEq
using PySciML:
    Options, PySciML, all_stops, begun, callback_set, cap_first_step!, needs_jacobian, watching
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
PySciML.jumped!(integrator::DelayDiffEq.DDEIntegrator) = push!(
    integrator.opts.d_discontinuities,
    DelayDiffEq.Discontinuity(integrator.tdir * integrator.t, 0)
)

function PySciML.integrate(
        prob::DDEProblem, alg, o::Options{T}, dense::Bool, events, log, watch = watching()
    ) where {T}
    prob.f.f.d.log[] = log
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
