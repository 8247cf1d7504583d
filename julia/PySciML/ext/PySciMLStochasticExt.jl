"""
Stochastic equations by StochasticDiffEq.
"""
module PySciMLStochasticExt

using PySciML: EulerMaruyama, Heun, KenCarp, Milstein, MilsteinCommutative, Options, PySciML,
    RandomEuler, RandomTrapezoid, Rossler, ThetaStep, begun
using SciMLBase: SciMLBase
using StochasticDiffEq: EM, EulerHeun, ISSEM, ISSEulerHeun, ImplicitEM, ImplicitEulerHeun,
    ImplicitRKMil, LambaEM, LambaEulerHeun, NoiseGrid, NoiseProcess, RKMil, RKMilCommute, RandomEM,
    RandomHeun, RandomTamedEM, SKenCarp, SOSRA, SOSRA2, SOSRI, SOSRI2, SRA1, SRA2, SRA3, SRIW1, SRIW2,
    WienerProcess, alg_needs_extra_process

function PySciML.integrate_noisy(
        prob, alg, o::Options{T}, seed::UInt64, dense::Bool, tstops, callback
    ) where {T}
    prob.noise isa NoiseProcess && (prob.noise.save_everystep = dense)
    more = (; o.abstol, seed, save_noise = dense)
    integrator = begun(prob, alg, o, dense, tstops, callback, more)
    SciMLBase.solve!(integrator)
    return integrator.sol, integrator.t
end

function PySciML.drawn_noise(t0::T, columns, n, alg) where {T}
    columns < 0 && return WienerProcess(t0, zero(T), zero(T))
    W0 = zeros(T, columns == 0 ? n : columns)
    Z0 = alg_needs_extra_process(alg) ? zero(W0) : nothing
    return NoiseProcess{true}(t0, W0, Z0, draw!, bridge!)
end

# A Wiener process whose steps may be rejected more than once. DiffEqNoiseProcess 5.33's own keeps
# what is known of the path ahead in two stacks, and an array that it works in is also an entry there:
# at a second rejection the step is bridged from numbers just written over, and gets increments of the
# size of one. Here every number that is kept has an array of its own.
function draw!(out, W, dt, u, p, t, rng)
    forget_slots!(W)
    return NOISE.INPLACE_WHITE_NOISE_DIST(out, W, dt, u, p, t, rng)
end

# Where a whole step is bridged, `h` is the length of its part, not its own.
function bridge!(out, W, W0, Wh, q, h, u, p, t, rng)
    forget_slots!(W)
    whole = Wh === W.dW || Wh === W.dZ ? W.dt : h
    return NOISE.INPLACE_WHITE_NOISE_BRIDGE(own(W, out), W, W0, Wh, q, whole, u, p, t, rng)
end

own(W, out) = out === W.dWtilde ? (W.dWtilde = similar(out)) :
    out === W.dZtilde ? (W.dZtilde = similar(out)) : out

# Arrays that the second stack would write to again, which the first may hold by now.
forget_slots!(W) = resize!(W.S₂.data, W.S₂.cur)

const NOISE = parentmodule(NoiseProcess)

PySciML.given_noise(t, w, scalar::Bool) = NoiseGrid(t, scalar ? w[1, :] : collect.(eachcol(w)))

PySciML.scheme(::EM{split}) where {split} = EulerMaruyama(split, false)
PySciML.scheme(::LambaEM{split}) where {split} = EulerMaruyama(split, true)
PySciML.scheme(::Union{EulerHeun, LambaEulerHeun}) = Heun()
PySciML.scheme(::RandomEM) = RandomEuler(false)
PySciML.scheme(::RandomTamedEM) = RandomEuler(true)
PySciML.scheme(::RandomHeun) = RandomTrapezoid()
PySciML.scheme(alg::RKMil) = Milstein(is_stratonovich(alg))
PySciML.scheme(alg::RKMilCommute) = MilsteinCommutative(is_stratonovich(alg))
PySciML.scheme(alg::ImplicitEM) = ThetaStep(alg.theta, alg.symplectic, false, :euler)
PySciML.scheme(alg::ImplicitEulerHeun) = ThetaStep(alg.theta, alg.symplectic, false, :heun)
PySciML.scheme(alg::ImplicitRKMil) =
    ThetaStep(alg.theta, alg.symplectic, false, is_stratonovich(alg) ? :stratonovich : :ito)
PySciML.scheme(alg::ISSEM) = ThetaStep(alg.theta, alg.symplectic, true, :euler)
PySciML.scheme(alg::ISSEulerHeun) = ThetaStep(alg.theta, alg.symplectic, true, :heun)

is_stratonovich(alg) =
    SciMLBase.alg_interpretation(alg) == SciMLBase.AlgorithmInterpretation.Stratonovich

function PySciML.scheme(::SKenCarp)
    x = parentmodule(SKenCarp).SKenCarpTableau(Float64, Float64)
    A = [
        0 0 0 0
        x.γ x.γ 0 0
        x.a31 x.a32 x.γ 0
        x.a41 x.a42 x.a43 x.γ
    ]
    return KenCarp([0, 2 * x.γ, x.c3, 1], A, [0, x.nb021, 0, x.nb043])
end

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
