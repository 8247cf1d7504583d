"""
Gradients by SciMLSensitivity: one smooth stretch of a solution at a time.
"""
module PySciMLSensitivityExt

using ADTypes: AutoFiniteDiff
using OrdinaryDiffEqCore:
    OrdinaryDiffEqNewtonAdaptiveAlgorithm, OrdinaryDiffEqNewtonAlgorithm
using OrdinaryDiffEqRosenbrock: Rodas5P
using PySciML: DEFAULT, PySciML, QUIET, WithoutPrototype, joined_mesh, lacks_room, readable, rebuilt,
    resolving, watching, with_room, without_prototype
using SciMLBase: CallbackSet, ODEProblem, SciMLBase
using SciMLSensitivity: BacksolveAdjoint, GaussAdjoint, InterpolatingAdjoint, adjoint_sensitivities
using SparseArrays: SparseMatrixCSC

# The jumps of the cotangent at the outputs: SciMLSensitivity asks for them by number.
struct Jumps{T} <: Function
    cotangents::Matrix{T}
end
(j::Jumps)(out, u, p, t, i) = (copyto!(out, view(j.cotangents, :, i)); nothing)

function PySciML.segment_adjoint(
        sensealg, sol, alg, ts::Vector{T}, cotangents::Matrix{T}, abstol, reltol, model
    ) where {T}
    back = adjoint_algorithm(sol, alg)
    tstops = quadrature_stops(sensealg, sol, alg, model, reltol)
    du0, dp = adjoint_sensitivities(
        with_prototype(readable(sol, alg), sensealg, back), Checked(back); t = ts,
        dgdu_discrete = Jumps(cotangents), sensealg, abstol, reltol,
        verbose = QUIET, dt = first_step(sol, ts, tstops),
        (isempty(tstops) ? (;) : (; tstops))...
    )
    return Vector{T}(vec(du0)), dp === nothing ? zeros(T, length(sol.prob.p)) : Vector{T}(vec(dp))
end

# Gauss quadrature is over the adjoint's steps, which follow the cotangent alone: where f's derivative
# by the parameters changes faster (a drive that they scale), only the forward steps resolve it, cut
# where the drive is so weak that these do not.
quadrature_stops(sensealg, sol, alg, model, reltol) = empty(sol.t)
function quadrature_stops(::GaussAdjoint, sol, alg, model, reltol)
    steps = joined_mesh(sol.t)
    interp = readable(sol, alg).interp
    return resolving(steps, model.functions, model.n, interp, sol.prob.p, reltol)[2:(end - 1)]
end

# The first step backwards: as long as the last one forwards, and not beyond the first jump or stop,
# where it would be interpolated wrongly (see `cap_first_step!`).
function first_step(sol, ts, tstops)
    finish = last(sol.t)
    step = length(sol.t) > 1 ? sol.t[end - 1] - finish : first(ts) - finish
    jump = length(ts) > 1 && last(ts) == finish ? ts[end - 1] - finish : last(ts) - finish
    stop = isempty(tstops) ? zero(finish) : last(tstops) - finish
    reach = minimum(abs(x) for x in (step, jump, stop) if x != 0; init = abs(step))
    return sign(step) * reach
end

# SciMLSensitivity does not look at how the adjoint solve ended: a gradient from one that stopped
# on its way would look like any other.
struct Checked{A} <: SciMLBase.AbstractODEAlgorithm
    alg::A
end
function SciMLBase.__solve(
        prob::SciMLBase.AbstractODEProblem, c::Checked, args...; callback = nothing, kwargs...
    )
    watched = CallbackSet(callback, watching())
    sol = SciMLBase.__solve(prob, c.alg, args...; callback = watched, kwargs...)
    if !SciMLBase.successful_retcode(sol)
        error(
            "the adjoint equation, solved by $(nameof(typeof(c.alg))), stopped at t = " *
            "$(last(sol.t)) with retcode $(sol.retcode); tighten the tolerances, or take another " *
            "algorithm or sensealg"
        )
    end
    return sol
end
SciMLBase.isadaptive(c::Checked) = SciMLBase.isadaptive(c.alg)
SciMLBase.isautodifferentiable(c::Checked) = SciMLBase.isautodifferentiable(c.alg)
SciMLBase.forwarddiffs_model(c::Checked) = SciMLBase.forwarddiffs_model(c.alg)
SciMLBase.allows_arbitrary_number_types(c::Checked) =
    SciMLBase.allows_arbitrary_number_types(c.alg)
SciMLBase.allowscomplex(c::Checked) = SciMLBase.allowscomplex(c.alg)

# The adjoint is solved with the algorithm of the solve where that is explicit or of Rosenbrock's
# kind; after other implicit ones with Rodas5P. The adjoint equation is linear, and restarts at
# every output: Newton iterations and multistep formulas were seen to fail on it (ROBER).
# The default algorithm is a composite that SciMLSensitivity's callbacks cannot look into: there
# it is the part that took the most steps.
adjoint_algorithm(sol, alg) = alg
adjoint_algorithm(sol, ::OrdinaryDiffEqNewtonAdaptiveAlgorithm) = linear_stiff()
adjoint_algorithm(sol, ::OrdinaryDiffEqNewtonAlgorithm) = linear_stiff()
adjoint_algorithm(sol, ::WithoutPrototype) = linear_stiff()
linear_stiff() = Rodas5P(; autodiff = AutoFiniteDiff())
function adjoint_algorithm(sol, alg::DEFAULT)
    steps = sol.alg_choice
    counts = [count(==(i), steps) for i in eachindex(alg.algs)]
    return adjoint_algorithm(sol, alg.algs[argmax(counts)])
end

# The adjoints that carry the parameters' gradient in their state lay out a sparse prototype without
# the entries that couple it to the cotangent, and would solve with a wrong Jacobian: they get none.
# Nor do they get the empty one of a solve that formed no Jacobian, to whose size they would add
# theirs; the others need room for it where the way back forms one.
function with_prototype(sol, sensealg, back)
    lacks_room(sol.prob.f) || return sol
    prob = sol.prob
    f = with_room(prob.f, back, length(prob.u0))
    return rebuilt(sol; prob = ODEProblem(f, prob.u0, prob.tspan, prob.p))
end
function with_prototype(sol, ::Union{InterpolatingAdjoint, BacksolveAdjoint}, back)
    f = sol.prob.f
    f.jac_prototype isa SparseMatrixCSC || lacks_room(f) || return sol
    return rebuilt(sol; prob = without_prototype(sol.prob))
end

end
