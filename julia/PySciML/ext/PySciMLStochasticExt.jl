"""
Stochastic equations by StochasticDiffEq.
"""
module PySciMLStochasticExt

using PySciML: EulerMaruyama, Heun, Milstein, Options, PySciML, RandomEuler, RandomTrapezoid,
    Rossler, begun
using SciMLBase: SciMLBase
using StochasticDiffEq: EM, EulerHeun, LambaEM, LambaEulerHeun, NoiseGrid, RKMil, RandomEM,
    RandomHeun, RandomTamedEM, SOSRA, SOSRA2, SOSRI, SOSRI2, SRA1, SRA2, SRA3, SRIW1, SRIW2,
    WienerProcess

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

const TABLEAUS = parentmodule(SRIW1)
for (alg, made) in (
        :SRIW1 => :constructSRIW1, :SRIW2 => :constructSRIW2, :SOSRI => :constructSRIOpt1,
        :SOSRI2 => :constructSRIOpt2, :SRA1 => :constructSRA1, :SRA2 => :constructSRA2,
        :SRA3 => :constructSRA3, :SOSRA => :constructSOSRA, :SOSRA2 => :constructSOSRA2,
    )
    @eval PySciML.scheme(::$alg) = rossler(TABLEAUS.$made())
end

function rossler(x)
    zero_ = zeros(size(x.A₀))
    # of additive noise: A1 and B1 are not there, and its second weights are those of chi2
    general = hasproperty(x, :A₁)
    none = zeros(length(x.α))
    return Rossler(
        x.c₀, x.c₁, x.A₀, general ? x.A₁ : zero_, x.B₀, general ? x.B₁ : zero_, x.α,
        general ? (x.β₁, x.β₂, x.β₃, x.β₄) : (x.β₁, none, x.β₂, none)
    )
end

end
