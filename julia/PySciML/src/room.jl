# Room for a dense Jacobian, given to the solves that form one. A matrix in every model would take
# 7 GiB for 30,000 states, of which an explicit algorithm, or Krylov's method, reads nothing.

# up to here the matrix is small, and every solve would otherwise make one
const SMALL = 128

"The rows of the matrix that a model of `n` states has from the start: 0 where that is too large."
held(n) = n <= SMALL ? n : 0

"""
    needs_jacobian(alg, n) -> Bool

Whether `alg` forms a dense Jacobian of `n` states; true for an algorithm that is not known.
"""
needs_jacobian(alg, n) = true
needs_jacobian(alg::OrdinaryDiffEqCore.OrdinaryDiffEqAlgorithm, n) =
    (OrdinaryDiffEqCore.isimplicit(alg) || alg isa OrdinaryDiffEqCore.ExponentialAlgorithm) &&
    !takes_products(alg)
needs_jacobian(alg::OrdinaryDiffEqCore.StochasticDiffEqAlgorithm, n) = alg isa Union{
    OrdinaryDiffEqCore.StochasticDiffEqNewtonAlgorithm,
    OrdinaryDiffEqCore.StochasticDiffEqNewtonAdaptiveAlgorithm,
    OrdinaryDiffEqCore.StochasticDiffEqJumpNewtonAdaptiveAlgorithm,
    OrdinaryDiffEqCore.StochasticDiffEqJumpNewtonDiffusionAdaptiveAlgorithm,
    OrdinaryDiffEqCore.StochasticDiffEqCompositeAlgorithm,
}
needs_jacobian(::WithoutPrototype, n) = false
needs_jacobian(t::Tuned, n) = needs_jacobian(t.alg, n)
# for more states it takes Krylov's method
needs_jacobian(::typeof(DefaultODEAlgorithm(; autodiff = AutoFiniteDiff())), n) =
    n <= OrdinaryDiffEqDefault.MEDIUMSIZE

# Krylov's method does with products, unless a matrix is asked for besides
takes_products(alg) = hasproperty(alg, :linsolve) && alg.linsolve !== nothing &&
    !LinearSolve.needs_concrete_A(alg.linsolve) && OrdinaryDiffEqCore.concrete_jac(alg) !== true

"""
    with_room(f, alg, n)
    with_room(model, alg)

The same, with a matrix for the Jacobian of `n` states where `alg` forms one and there is none yet.
"""
function with_room(f::F, alg, n) where {F}
    lacks_room(f) && needs_jacobian(alg, n) || return f
    J = zeros(eltype(f.jac_prototype), n, n)
    # of the same type, so that nothing is compiled anew
    return F((name === :jac_prototype ? J : getfield(f, name) for name in fieldnames(F))...)::F
end
lacks_room(f) =
    hasproperty(f, :jac_prototype) && f.jac_prototype isa Matrix && isempty(f.jac_prototype)
