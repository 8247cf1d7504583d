# Dense output as adjoints read it.

const DEFAULT = Union{
    typeof(DefaultODEAlgorithm(; autodiff = AutoFiniteDiff())), typeof(sparse_default()),
}

# Reads the interpolant by value: for the default algorithm's cache, whose method that writes into
# an array looks for a field that it does not have (OrdinaryDiffEqCore 4.5).
struct ByValue{I} <: SciMLBase.AbstractDiffEqInterpolation
    inner::I
end
(b::ByValue)(t::Number, idxs, deriv, p, continuity::Symbol = :left) =
    b.inner(t, idxs, deriv, p, continuity)
(b::ByValue)(ts::AbstractVector, ::Nothing, deriv, p, continuity::Symbol = :left) =
    b.inner(ts, nothing, deriv, p, continuity)
(b::ByValue)(out::AbstractArray, t::Number, idxs, deriv, p, continuity::Symbol = :left) =
    copyto!(out, b.inner(t, idxs, deriv, p, continuity))

"""
    readable(sol, alg) -> solution

The solution with an interpolant that can be read in every way.
"""
readable(sol, alg) = with_last_stages(sol)
readable(sol, ::DEFAULT) = rebuilt(with_last_stages(sol); interp = ByValue(sol.interp))

# Verner methods compute the stages of their interpolant when it is first read. Adjoints begin at
# the end, which they read from the right: there the last step was given stages of a step of length
# zero, and kept them (OrdinaryDiffEqCore 4.5), and gradients were wrong in the third digit at any
# tolerance. Read before that within the step, the stages are its own.
function with_last_stages(sol)
    m = length(sol.t)
    m > 1 && sol((sol.t[m - 1] + sol.t[m]) / 2)
    return sol
end

"The solution with another problem, or another interpolant."
rebuilt(sol; prob = sol.prob, interp = sol.interp) = SciMLBase.build_solution(
    prob, sol.alg, sol.t, sol.u; dense = true, sol.k, interp, sol.alg_choice,
    calculate_error = false, sol.stats, sol.retcode
)
