"""
Delay equations by DelayDiffEq.
"""
module PySciMLDelayExt

using DelayDiffEq: DelayDiffEq
using PySciML: Options, PySciML, QUIET, all_stops, callback_set, cap_first_step!, given, watching
using SciMLBase: CallbackSet, DDEProblem, ReturnCode, SciMLBase

function PySciML.start_of(h::DelayDiffEq.HistoryFunction)
    integrator = h.integrator
    return integrator.sol.prob.tspan[1], integrator.t
end

function PySciML.integrate(
        prob::DDEProblem, alg, o::Options{T}, dense::Bool, events, log, watch = watching()
    ) where {T}
    t0, t1 = prob.tspan
    saveat = dense ? T[] : o.saveat
    callback = isempty(events) ? CallbackSet(watch) : callback_set(events, log)
    common = (;
        o.abstol, o.reltol, saveat, callback, dense,
        tstops = isempty(events) ? o.tstops : all_stops(o.tstops, events),
        save_everystep = dense,
        save_start = dense || first(saveat) == t0, save_end = dense || last(saveat) == t1,
        dtmax = given(o.dtmax, t1 - t0), dtmin = given(o.dtmin, zero(T)), o.maxiters,
        adaptive = o.adaptive && SciMLBase.isadaptive(alg), verbose = QUIET,
    )
    integrator = isnan(o.dt) ? SciMLBase.__init(prob, alg; common...) :
        SciMLBase.__init(prob, alg; common..., dt = o.dt)
    SciMLBase.has_tstop(integrator) && cap_first_step!(integrator)
    SciMLBase.solve!(integrator)
    sol = integrator.sol
    # that it was ended is forgotten (DelayDiffEq 6.0)
    sol.retcode == ReturnCode.Success && integrator.t < t1 &&
        (sol = SciMLBase.solution_new_retcode(sol, ReturnCode.Terminated))
    return sol, integrator.t
end

end
