"""
The Julia side of pysciml: differential equations written in torch, solved here.

Python hands over kernels as Julia source (see `define`), flat problems as pointers (see
`bridge.jl`), and algorithms as Julia expressions. Every model has the same types, so that the
solvers' code is compiled once, into this package's image, and a new model compiles its own
kernels only.
"""
module PySciML

using ADTypes: AutoFiniteDiff, AutoForwardDiff
using ForwardDiff: ForwardDiff
using FunctionWrappers: FunctionWrapper
using LinearAlgebra
using LinearSolve: LinearSolve
using OrdinaryDiffEqBDF: OrdinaryDiffEqBDF, DFBDF, FBDF, QNDF
using OrdinaryDiffEqCore: OrdinaryDiffEqCore
using OrdinaryDiffEqDefault: OrdinaryDiffEqDefault, DefaultODEAlgorithm
using OrdinaryDiffEqRosenbrock: OrdinaryDiffEqRosenbrock, Rodas5P, Rosenbrock23
using OrdinaryDiffEqTsit5: OrdinaryDiffEqTsit5, AutoTsit5, Tsit5
using OrdinaryDiffEqVerner: OrdinaryDiffEqVerner, Vern7
using OrdinaryDiffEqCore: BrownFullBasicInit
using SciMLBase: SciMLBase, CallbackSet, ContinuousCallback, DAEFunction, DAEProblem, DDEFunction,
    DDEProblem, DiscreteCallback, DynamicalODEFunction, FullSpecialize, ODEFunction, ODEProblem,
    RODEFunction, RODEProblem, ReturnCode, SDEFunction, SDEProblem, SplitFunction, remake, terminate!
using SciMLBase.RecursiveArrayTools: ArrayPartition
using SciMLBase.SciMLOperators: MatrixOperator
using SciMLLogging: SciMLLogging
using SparseArrays: SparseMatrixCSC, getcolptr, nonzeros, rowvals, sparse

include("runtime.jl")
include("device_runtime.jl")
include("kernels.jl")
include("models.jl")
include("sparse.jl")
include("switching.jl")
include("native.jl")
include("algorithms.jl")
include("room.jl")
include("events.jl")
include("solve.jl")
include("dense.jl")
include("batches.jl")
include("rates.jl")
include("adjoint.jl")
include("checkpoints.jl")
include("forward.jl")
include("discrete.jl")
include("collocation.jl")
include("damping.jl")
include("driven_mesh.jl")
include("device.jl")
include("device_adjoint.jl")
include("registry.jl")
include("parts.jl")
include("ensemble.jl")
include("members.jl")
include("bridge.jl")
include("device_bridge.jl")
include("precompile.jl")
include("precompile_kinds.jl")
include("precompile_delay.jl")
include("precompile_boundary.jl")
include("precompile_ensemble.jl")

end
