# Automatic switching to FBDF, mended (OrdinaryDiffEqCore 4.5, OrdinaryDiffEqBDF 2.2).

# FBDF begins anew at order 1 after a switch, but with the long steps of the method before it, which
# its error estimate, without a history, does not catch: the error was seen to stay at 2e-3 for
# every tolerance. So it begins with a first step, as after a discontinuity, and is not judged to be
# unneeded before it has had the steps that it takes to reach a step length of its own.
const FBDF_CACHE = OrdinaryDiffEqBDF.FBDFCache
const STEPS_TO_GROW = 30

function OrdinaryDiffEqCore.transfer_cache!(integrator, ::Any, ::FBDF_CACHE)
    integrator.opts.adaptive || return nothing
    SciMLBase.auto_dt_reset!(integrator)
    # that step is chosen for the order of the composite algorithm, which is higher
    SciMLBase.set_proposed_dt!(integrator, integrator.dt / 10)
    integrator.dt = integrator.dt / 10
    choice = integrator.cache.choice_function
    if hasproperty(choice, :maxnonstiffstep)
        choice.maxnonstiffstep = max(choice.maxnonstiffstep, STEPS_TO_GROW)
    end
    return nothing
end
