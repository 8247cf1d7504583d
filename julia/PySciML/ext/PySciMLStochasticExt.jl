"""
Stochastic equations by StochasticDiffEq.
"""
module PySciMLStochasticExt

using PySciML: EulerMaruyama, Heun, Milstein, Options, PySciML, QUIET, RandomEuler, RandomTrapezoid,
    given
using SciMLBase: SciMLBase
using StochasticDiffEq: EM, EulerHeun, LambaEM, LambaEulerHeun, NoiseGrid, RKMil, RandomEM,
    RandomHeun, RandomTamedEM, WienerProcess

function PySciML.integrate_noisy(
        prob, alg, o::Options{T}, seed::UInt64, dense::Bool, tstops, callback
    ) where {T}
    t0, t1 = prob.tspan
    saveat = dense ? T[] : o.saveat
    common = (;
        o.abstol, o.reltol, saveat, tstops, seed, callback,
        save_everystep = dense, save_noise = dense,
        save_start = dense || first(saveat) == t0, save_end = dense || last(saveat) == t1,
        dtmax = given(o.dtmax, t1 - t0), dtmin = given(o.dtmin, zero(T)), o.maxiters,
        adaptive = o.adaptive && SciMLBase.isadaptive(alg), verbose = QUIET,
    )
    integrator = isnan(o.dt) ? SciMLBase.__init(prob, alg; common...) :
        SciMLBase.__init(prob, alg; common..., dt = o.dt)
    SciMLBase.solve!(integrator)
    return integrator.sol, integrator.t
end

PySciML.scalar_noise(t0::T) where {T} = WienerProcess(t0, zero(T), zero(T))

PySciML.given_noise(t, w, scalar::Bool) = NoiseGrid(t, scalar ? w[1, :] : collect.(eachcol(w)))

PySciML.scheme(::EM{split}) where {split} = EulerMaruyama(split, false)
PySciML.scheme(::LambaEM{split}) where {split} = EulerMaruyama(split, true)
PySciML.scheme(::Union{EulerHeun, LambaEulerHeun}) = Heun()
PySciML.scheme(::RandomEM) = RandomEuler(false)
PySciML.scheme(::RandomTamedEM) = RandomEuler(true)
PySciML.scheme(::RandomHeun) = RandomTrapezoid()
PySciML.scheme(::RKMil{interpretation}) where {interpretation} =
    Milstein(interpretation == SciMLBase.AlgorithmInterpretation.Stratonovich)

end
