"""
Gradients by SciMLSensitivity: one smooth stretch of a solution at a time.
"""
module PySciMLSensitivityExt

using ADTypes: AutoFiniteDiff
using OrdinaryDiffEqDefault: DefaultODEAlgorithm
using PySciML: PySciML, QUIET
using SciMLBase: SciMLBase, AbstractDiffEqInterpolation
using SciMLSensitivity: adjoint_sensitivities

const DEFAULT = typeof(DefaultODEAlgorithm(; autodiff = AutoFiniteDiff()))

# The jumps of the cotangent at the outputs: SciMLSensitivity asks for them by number.
struct Jumps{T} <: Function
    cotangents::Matrix{T}
end
(j::Jumps)(out, u, p, t, i) = (copyto!(out, view(j.cotangents, :, i)); nothing)

function PySciML.segment_adjoint(
        sensealg, sol, alg, ts::Vector{T}, cotangents::Matrix{T}, abstol, reltol
    ) where {T}
    du0, dp = adjoint_sensitivities(
        readable(sol, alg), adjoint_algorithm(sol, alg); t = ts, dgdu_discrete = Jumps(cotangents), sensealg, abstol, reltol,
        verbose = QUIET, dt = first_step(sol, ts)
    )
    return Vector{T}(vec(du0)), dp === nothing ? zeros(T, length(sol.prob.p)) : Vector{T}(vec(dp))
end

# The first step backwards: as long as the last one forwards, and not beyond the first jump, where
# it would be interpolated wrongly (see `cap_first_step!`).
function first_step(sol, ts)
    finish = last(sol.t)
    step = length(sol.t) > 1 ? sol.t[end - 1] - finish : first(ts) - finish
    jump = length(ts) > 1 && last(ts) == finish ? ts[end - 1] - finish : last(ts) - finish
    jump == 0 && return step
    return sign(step) * min(abs(step), abs(jump))
end

# The adjoint is solved with the algorithm of the solve. The default algorithm is a composite that
# SciMLSensitivity's callbacks cannot look into: there it is the part that took the most steps.
adjoint_algorithm(sol, alg) = alg
function adjoint_algorithm(sol, alg::DEFAULT)
    steps = sol.alg_choice
    counts = [count(==(i), steps) for i in eachindex(alg.algs)]
    return alg.algs[argmax(counts)]
end

# Reads the interpolant by value: for the default algorithm's cache, whose method that writes into
# an array looks for a field that it does not have (OrdinaryDiffEqCore 4.5).
struct ByValue{I} <: AbstractDiffEqInterpolation
    inner::I
end
(b::ByValue)(t, idxs, deriv, p, continuity::Symbol = :left) =
    b.inner(t, idxs, deriv, p, continuity)
(b::ByValue)(out, t::Number, idxs, deriv, p, continuity::Symbol = :left) =
    copyto!(out, b.inner(t, idxs, deriv, p, continuity))

readable(sol, alg) = sol
readable(sol, ::DEFAULT) = SciMLBase.build_solution(
    sol.prob, sol.alg, sol.t, sol.u; dense = true, sol.k, interp = ByValue(sol.interp),
    sol.alg_choice, calculate_error = false, sol.stats, sol.retcode
)

end
