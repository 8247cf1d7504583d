"""
The members of an ensemble on the threads of a GPU: DiffEqGPU's integrators, one a thread, stepped
by loops of our own.

DiffEqGPU's kernels have no bound on the number of steps, leave what a member that failed has not
reached unwritten, end all members by an error in one, and step over the end of the time span where
the first step is longer. So only its `init`, `step!` and interpolants are used.
"""
module PySciMLDiffEqGPUExt

using DiffEqGPU: DiffEqGPU, GPUKvaerno3, GPUKvaerno5, GPURodas4, GPURodas5P, GPURosenbrock23
using DiffEqGPU.Adapt: Adapt, adapt
using DiffEqGPU.KernelAbstractions: KernelAbstractions, @index, @kernel, get_backend
using DiffEqGPU.StaticArrays: MVector, SArray, SVector
using PySciML: MembersAdjointRequest, MembersModel, MembersRequest, PySciML, activate, settle, source,
    upload, vector, wrap
using PySciML.ForwardDiff: Dual, Partials, partials, value
using PySciML.LinearAlgebra: I, UniformScaling
using PySciML.SciMLBase: AbstractODEFunction, CallbackSet, ReturnCode

include("members/static.jl")
include("members/walk.jl")
include("members/launch.jl")

end
