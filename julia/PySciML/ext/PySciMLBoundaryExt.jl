"""
Boundary value problems by the MIRK methods of BoundaryValueDiffEqMIRK. Its tableaus, weights and
colouring are not public, so that the compat entry keeps to one minor version.
"""
module PySciMLBoundaryExt

using ADTypes: AutoFiniteDiff, AutoForwardDiff, AutoSparse
using BoundaryValueDiffEqMIRK: BVPJacobianAlgorithm, BoundaryValueDiffEqMIRK
using PySciML: BoundaryOptions, EndConditions, PiecesRate, PySciML
using SciMLBase: BVPFunction, BVProblem, SciMLBase, TwoPointBVProblem
using SciMLBase.RecursiveArrayTools: DiffEqArray

# Directions that are differentiated in at once: one number, so that code for one type is compiled.
const CHUNK = 4

# On the mesh as it is. The methods' own refinement (version 1.17) overwrites states of the old mesh
# that those of the new one are still interpolated from, and begins anew from zero where a mesh is too
# coarse: solutions other than the guess's come of it.
function PySciML.solve_mirk(
        alg, rate::PiecesRate{T}, conditions::EndConditions{T}, s::Vector{T}, guess,
        o::BoundaryOptions
    ) where {T}
    span, n, start = (first(s), last(s)), length(first(guess)), DiffEqArray(guess, s)
    prob = o.at_start > 0 ? two_point(rate, conditions, start, span, n, o.at_start) :
        coupled(rate, conditions, start, span, n)
    sol = SciMLBase.solve(
        prob, with_jacobians(alg); dt = last(s), abstol = T(o.tolerance), adaptive = false,
        nlsolve_kwargs = (; abstol = T(o.tolerance), maxiters = o.maxiters)
    )
    return reduce(hcat, sol.u)::Matrix{T}, sol.retcode
end

function with_jacobians(alg::A) where {A}
    dense = AutoForwardDiff(; chunksize = CHUNK)
    sparse = AutoSparse(
        dense; coloring_algorithm = BoundaryValueDiffEqMIRK.__default_coloring_algorithm(dense)
    )
    jac_alg = BVPJacobianAlgorithm(sparse; bc_diffmode = dense)
    return Base.typename(A).wrapper(; jac_alg, alg.max_num_subintervals, nlsolve = newton())
end

# Newton's method as the package takes it by default, but for the derivatives that it looks for beside
# the Jacobian: it takes them from whatever is loaded, once there were gradients ReverseDiff or Enzyme,
# which do not differentiate kernels.
function newton()
    parts = parentmodule(BVPJacobianAlgorithm) # BoundaryValueDiffEqCore, which has NonlinearSolve's
    quiet = AutoFiniteDiff()
    by = (; autodiff = quiet, jvp_autodiff = quiet, vjp_autodiff = quiet)
    return parts.NonlinearSolvePolyAlgorithm(
        (
            parts.NewtonRaphson(; by...),
            parts.NewtonRaphson(; linesearch = parts.BackTracking(), by...),
            parts.TrustRegion(; by...),
        )
    )
end

function two_point(rate, g::EndConditions{T}, guess, span, n, k) where {T}
    start, stop = EndConditions{T}(g.side, 1:k, true), EndConditions{T}(g.side, (k + 1):n, false)
    f = BVPFunction{true}(
        rate, (start, stop); twopoint = Val(true), bcresid_prototype = (zeros(T, k), zeros(T, n - k))
    )
    return TwoPointBVProblem{true}(f, guess, span; nlls = Val(false))
end

struct Coupled{T} <: Function
    conditions::EndConditions{T}
end
(c::Coupled)(out, sol, _, t) = c.conditions(out, first(sol.u), last(sol.u), nothing)

function coupled(rate, g::EndConditions{T}, guess, span, n) where {T}
    f = BVPFunction{true}(rate, Coupled(g); bcresid_prototype = zeros(T, n))
    return BVProblem{true}(f, guess, span; nlls = Val(false))
end

function PySciML.mirk_tableau(alg, taus)
    method, interpolant = BoundaryValueDiffEqMIRK.constructMIRK(alg, Float64)
    s, q = Int(method.s), Int(interpolant.s_star)
    c = vcat(method.c[1:s], interpolant.c_star)
    v = vcat(method.v[1:s], interpolant.v_star)
    x = zeros(q, q)
    x[1:s, 1:s] .= reshape(method.x, :, length(method.c))[1:s, 1:s]
    for r in 1:(q - s), j in 1:(s + r - 1)
        x[s + r, j] = interpolant.x_star[(j - 1) * (q - s) + r]
    end
    weights = reduce(hcat, [first(BoundaryValueDiffEqMIRK.interp_weights(t, alg)) for t in taus])
    return vcat(Float64[s, q], c, v, method.b[1:s], vec(x'), vec(Matrix{Float64}(weights)'))
end

end
