# The members of an ensemble, each solved whole by one thread of a GPU, through DiffEqGPU. Here are
# the model and the border with Python; the extension PySciMLDiffEqGPUExt steps.

"The processor's own memory as a device: what runs on a GPU runs here, for tests."
struct HostDevice <: Device end
wrap(::HostDevice, ::Type{T}, p::Ptr, n) where {T} = n == 0 ? T[] :
    unsafe_wrap(Array, Ptr{T}(p), Int(n))
upload(::HostDevice, x::Array) = x
location(::HostDevice, x::Array) = UInt(pointer(x))

# Roles of kernels on static arrays, by the numbers of ROLES plus this.
const STATIC_ROLES = 200
const STATIC_SPACE = Ref{Module}()

# Where these kernels are evaluated: all that they call is inlined, so that their buffers are
# registers, and a choice between a number and a dual number has one type.
function static_space()
    if !isassigned(STATIC_SPACE)
        space = STATIC_SPACE[] = Module(:PySciMLStatic)
        Core.eval(space, :(const Runtime = $Runtime))
        for name in setdiff(names(Runtime), (:Runtime, :product!, :solve!))
            Core.eval(space, :(const $name = Runtime.$name))
        end
        Core.eval(
            space, quote
                @inline ifelse(condition, a, b) = Base.ifelse(condition, promote(a, b)...)
                @inline product!(args...) = @inline Runtime.matmul!(args...)
                @inline solve!(args...) = @inline Runtime.solve!(args...)
            end
        )
    end
    return STATIC_SPACE[]
end

"""
    compile_static(text, sizes, constants, T) -> KernelSource

As `compile`, a function to be inlined into a kernel of a GPU.
"""
compile_static(text::AbstractString, sizes, constants, ::Type{T}) where {T} =
    compile("static " * text, text, sizes, constants, T) do code
    pushfirst!(code.args[2].args, Expr(:meta, :inline))
    Core.eval(static_space(), code)
end

"""
    MembersModel{T}

A model of `n` states, `np` parameters and a data vector of length `nc` whose kernels work on static
arrays. `sources` has those that were fetched, by role.
"""
struct MembersModel{T, D <: Device}
    device::D
    load::Any                        # function (role) -> KernelSource
    n::Int
    np::Int
    nc::Int
    sources::Dict{Symbol, Any}
    lock::ReentrantLock
end
MembersModel{T}(device::D, load, n, np, nc) where {T, D} =
    MembersModel{T, D}(device, load, n, np, nc, Dict{Symbol, Any}(), ReentrantLock())
source(m::MembersModel, role) = get!(() -> m.load(role), m.sources, role)

# What `c_new_members_model` says where there is no model.
const NO_DEVICE, NO_SOLVERS, NO_PACKAGE = 0, -1, -2

# A model on a device by its name; -1 states only ask whether there is one.
function c_new_members_model(
        functions::Int64, single::Int64, sizes::Ptr{Int64}, name::Ptr{UInt8}, index::Int64,
        id::Ptr{Int64}, message::Ptr{Ptr{UInt8}}
    )::Cint
    return guarded(message) do
        n, np, nc = vector(Int64, sizes, 3)
        load = role -> fetch_source(Int(functions), ROLES[role] + STATIC_ROLES)
        unsafe_store!(
            id, new_members_model(unsafe_string(name), index, load, single != 0, n, np, nc)
        )
    end
end

function new_members_model(name, index, load, single, n, np, nc)
    identified("DiffEqGPU") === nothing && return NO_SOLVERS
    name == "cpu" || identified(DEVICE_PACKAGES[name]) !== nothing || return NO_PACKAGE
    device = name == "cpu" ? HostDevice() : open_device(name, index)
    device === nothing && return NO_DEVICE
    n < 0 && return 1
    require("DiffEqGPU")
    T = single ? Float32 : Float64
    return register!(MODELS, MembersModel{T}(device, load, n, np, nc))
end

"""
What members are asked for. `spans` has two times a member, or is null where all have `t0` and
`t1`; without `saveat` the outputs are those two. The large arrays are the device's where `there`,
else the host's. The mirror of `MembersRequest` in pysciml/engines/julia/members.py.
"""
struct MembersRequest
    model::Int64
    alg::Int64
    members::Int64
    there::Int64
    adaptive::Int64
    maxiters::Int64
    nsaveat::Int64
    nown::Int64
    nabstol::Int64
    u0::Ptr{Cvoid}                   # n numbers a member
    p::Ptr{Cvoid}
    c::Ptr{Cvoid}
    own::Ptr{Cvoid}                  # nown numbers a member
    at::Ptr{Int64}                   # whose places in p these are, from 0
    spans::Ptr{Float64}
    saveat::Ptr{Float64}
    abstol::Ptr{Float64}
    t0::Float64
    t1::Float64
    reltol::Float64
    dt::Float64
    dtmax::Float64
    dtmin::Float64
    u::Ptr{Cvoid}                    # to be filled: n numbers an output
    counts::Ptr{Int64}               # of a member: outputs, retcode, accepted steps, trials
    reached::Ptr{Float64}
end

"""
What gradients of members are asked for: by which directions, and where to. The mirror of
`MembersAdjointRequest`.
"""
struct MembersAdjointRequest
    forward::MembersRequest          # its u: the outputs
    cotangents::Ptr{Cvoid}
    by_state::Int64                  # whether by u0
    ndirections::Int64               # by how many parameters
    directions::Ptr{Int64}           # which, from 0
    gradient::Ptr{Cvoid}             # to be filled: one number a direction and member
    slopes::Ptr{Cvoid}               # f at every output; null where nobody asks
end

"`fetch_kernels!(model, alg)`: those that `alg` calls, before a world that knows them is begun."
function fetch_kernels! end
"`solve_members(request, model, alg)`: see PySciMLDiffEqGPUExt."
function solve_members end
"`differentiate_members(request, model, alg)`: see PySciMLDiffEqGPUExt."
function differentiate_members end

function c_solve_members(request::Ptr{MembersRequest}, message::Ptr{Ptr{UInt8}})::Cint
    return guarded(message) do
        r = unsafe_load(request)
        with_kernels(solve_members, r, r)
    end
end

function c_differentiate_members(
        request::Ptr{MembersAdjointRequest}, message::Ptr{Ptr{UInt8}}
    )::Cint
    return guarded(message) do
        a = unsafe_load(request)
        with_kernels(differentiate_members, a, a.forward)
    end
end

function with_kernels(body, request, r::MembersRequest)
    model, alg = lookup(MODELS, r.model), lookup(OBJECTS, r.alg)
    attended() do
        Base.invokelatest(fetch_kernels!, model, alg)
        Base.invokelatest(body, request, model, alg)
    end
    return
end
