"""
Stochastic equations by StochasticDiffEq.
"""
module PySciMLStochasticExt

using PySciML: EulerMaruyama, Heun, Milstein, Options, PySciML, RandomEuler, RandomTrapezoid, begun
using SciMLBase: SciMLBase
using StochasticDiffEq: EM, EulerHeun, LambaEM, LambaEulerHeun, NoiseGrid, RKMil, RandomEM,
    RandomHeun, RandomTamedEM, WienerProcess

function PySciML.integrate_noisy(
        prob, alg, o::Options{T}, seed::UInt64, dense::Bool, tstops, callback
    ) where {T}
    more = (; o.abstol, seed, save_noise = dense)
    integrator = begun(prob, alg, o, dense, tstops, callback, more)
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
