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
readable(sol, alg) = sol
readable(sol, ::DEFAULT) = rebuilt(sol; interp = ByValue(sol.interp))

"The solution with another problem, or another interpolant."
rebuilt(sol; prob = sol.prob, interp = sol.interp) = SciMLBase.build_solution(
    prob, sol.alg, sol.t, sol.u; dense = true, sol.k, interp, sol.alg_choice,
    calculate_error = false, sol.stats, sol.retcode
)
