"""
Gradients by SciMLSensitivity: one smooth stretch of a solution at a time.
"""
module PySciMLSensitivityExt

using ADTypes: AutoFiniteDiff
using LinearAlgebra
using OrdinaryDiffEqTsit5: Tsit5
using OrdinaryDiffEqRosenbrock: Rodas5P, Rosenbrock23
using OrdinaryDiffEqDefault: DefaultODEAlgorithm
using OrdinaryDiffEqBDF: FBDF
using OrdinaryDiffEqVerner: Vern7
using PrecompileTools: @compile_workload, @setup_workload
using PySciML: PySciML, Handle, Options, QUIET, Workload, workload_handle
using SciMLBase: SciMLBase
using SciMLSensitivity: SciMLSensitivity, ForwardDiffSensitivity, ForwardSensitivity,
    GaussAdjoint, ODEForwardSensitivityProblem, QuadratureAdjoint, ZygoteVJP,
    adjoint_sensitivities

# The jumps of the cotangent at the outputs: SciMLSensitivity asks for them by number.
struct Jumps{T} <: Function
    cotangents::Matrix{T}
end
(j::Jumps)(out, u, p, t, i) = (copyto!(out, view(j.cotangents, :, i)); nothing)

function PySciML.segment_adjoint(
        sensealg, sol, alg, ts::Vector{T}, cotangents::Matrix{T}, abstol, reltol
    ) where {T}
    du0, dp = adjoint_sensitivities(
        sol, alg; t = ts, dgdu_discrete = Jumps(cotangents), sensealg, abstol, reltol,
        verbose = QUIET
    )
    return Vector{T}(vec(du0)), dp === nothing ? zeros(T, length(sol.prob.p)) : Vector{T}(vec(dp))
end

PySciML.isforward(::Union{ForwardSensitivity, ForwardDiffSensitivity}) = true

@setup_workload begin
    quiet = (; autodiff = AutoFiniteDiff())
    algorithms = (Tsit5(), Rodas5P(; quiet...), DefaultODEAlgorithm(; quiet...))
    ts, cotangents = [0.0, 0.5, 1.0], ones(2, 3)
    options = Options{Float64}(saveat = ts, dense = true)
    @compile_workload begin
        for alg in algorithms
            h = workload_handle(Float64, alg, options)
            sensealg = GaussAdjoint(autojacvec = ZygoteVJP(), checkpointing = false)
            PySciML.adjoint(
                h, ts, [0, 1, 2], cotangents, Float64[], sensealg, 1.0e-6, 1.0e-3
            )
        end
    end
end

end
