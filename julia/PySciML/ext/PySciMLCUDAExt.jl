"""
NVIDIA's GPUs: arrays of CUDA.jl. All else that runs there is proven on JLArrays.
"""
module PySciMLCUDAExt

using CUDA: CUDA, CuArray, CuMatrix, CuPtr, @device_override
using LinearSolve: LUFactorization
using PySciML: DEVICES, Device, DeviceRuntime, PySciML, Runtime
using SpecialFunctions: loggamma

struct CUDADevice <: Device
    index::Int
end

PySciML.activate(d::CUDADevice) = (CUDA.device!(d.index); nothing)
PySciML.settle(::CUDADevice) = CUDA.synchronize()
PySciML.wrap(::CUDADevice, ::Type{T}, p::Ptr, n) where {T} = n == 0 ? CuArray{T}(undef, 0) :
    unsafe_wrap(CuArray, CuPtr{T}(UInt(p)), Int(n))
PySciML.upload(::CUDADevice, x::Array) = CuArray(x)
PySciML.location(::CUDADevice, x::CuArray) = UInt(pointer(x))
PySciML.linear_solver(::CUDADevice) = LUFactorization()

# One large system: CUSOLVER's LU. X A = B is A' X' = B'.
DeviceRuntime.solved(A::CuMatrix, B::CuMatrix) = permutedims(permutedims(A) \ permutedims(B))

# SpecialFunctions' log|gamma| calls C, which kernels cannot; CUDA's loggamma is log|gamma| too.
@device_override Runtime.lgamma_(x::Float64) = loggamma(x)
@device_override Runtime.lgamma_(x::Float32) = loggamma(x)

function __init__()
    DEVICES["cuda"] = function (index)
        CUDA.functional() || return nothing
        CUDA.device!(index)
        return CUDADevice(index)
    end
    return nothing
end

end
