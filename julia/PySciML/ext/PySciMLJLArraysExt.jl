"""
GPU arrays in the memory of the CPU: for tests of all that runs on a device.
"""
module PySciMLJLArraysExt

using JLArrays: DataRef, JLArray
using PySciML: DEVICES, Device, PySciML

struct JLDevice <: Device end

PySciML.wrap(::JLDevice, ::Type{T}, p::Ptr, n) where {T} = n == 0 ? JLArray{T}(undef, 0) :
    JLArray{T, 1}(DataRef(unsafe_wrap(Array, Ptr{UInt8}(p), n * sizeof(T))), (Int(n),))
PySciML.upload(::JLDevice, x::Array) = JLArray(x)
PySciML.location(::JLDevice, x::JLArray) = UInt(pointer(x))

__init__() = (DEVICES["jlarrays"] = index -> JLDevice(); nothing)

end
