# Solving on a device: state and parameters are GPU arrays, and stay there. Nothing here knows of a
# kind of array; package extensions say how to get arrays of theirs.

"""
    Device

A place where arrays live. An extension adds a subtype, a constructor to `DEVICES`, and methods of
`wrap`, `upload`, `location` and, where they differ, `activate`, `settle` and `linear_solver`.
"""
abstract type Device end

"Constructors by name, each of the device's number; filled by extensions as they are loaded."
const DEVICES = Dict{String, Any}()
const DEVICE_PACKAGES = Dict("cuda" => "CUDA", "jlarrays" => "JLArrays")

"""
    open_device(name, index) -> Device or nothing

The device, its package loaded; nothing where the Julia project has no such package, or the package
finds nothing to run on.
"""
function open_device(name::AbstractString, index::Integer)
    package = DEVICE_PACKAGES[name]
    identified(package) === nothing && return nothing
    haskey(DEVICES, name) || require(package)
    return Base.invokelatest(DEVICES[name], index)
end

"`wrap(device, T, pointer, n)`: the vector of `n` numbers at an address, without a copy."
function wrap end
"`upload(device, x)`: a vector of the host as one of the device."
function upload end
"`location(device, x)`: the address of an array's first element."
function location end
"`activate(device)`: make it the one that this task uses."
activate(::Device) = nothing
"`settle(device)`: wait until what was started on it has ended."
settle(::Device) = nothing
"`linear_solver(device)`: what implicit algorithms solve with where the user names nothing."
linear_solver(::Device) = Elimination()

"""
    Elimination()

Linear systems by elimination as kernels have it: on one thread, but with any kind of array.
"""
struct Elimination <: LinearSolve.SciMLLinearSolveAlgorithm end
LinearSolve.needs_concrete_A(::Elimination) = true
function SciMLBase.solve!(cache::LinearSolve.LinearCache, alg::Elimination; kwargs...)
    n = length(cache.b)
    X = DeviceRuntime.solved(permutedims(cache.A), reshape(cache.b, 1, n))
    copyto!(cache.u, reshape(X, n))
    return SciMLBase.build_linear_solution(
        alg, cache.u, nothing, cache; retcode = ReturnCode.Success
    )
end

"What a kernel's source asks of its workspace: the literal arrays, on the device."
struct DeviceConstants{F, I, B}
    kf::F
    ki::I
    kb::B
end

"""
    ArrayKernel

A kernel over arrays of a device, fetched when it is first called. Kernels of this kind allocate,
own no buffers, and take milliseconds rather than microseconds: no wrapper hides their types.
"""
mutable struct ArrayKernel <: Function
    const device::Device
    const role::Symbol
    const load::Any                  # function (role) -> KernelSource
    const c::Any
    f::Any
    constants::Any
    ArrayKernel(device, role, load, c) = new(device, role, load, c, nothing, nothing)
end
(k::ArrayKernel)(out, u, p, t) = launch(k, out, u, p, t)
(k::ArrayKernel)(out, w, u, p, t) = launch(k, out, w, u, p, t)

function launch(k::ArrayKernel, out, arguments...)
    if k.f === nothing
        source = k.load(k.role)
        k.constants = DeviceConstants(
            upload(k.device, source.kf), upload(k.device, source.ki), upload(k.device, source.kb)
        )
        k.f = source.f
    end
    Base.invokelatest(k.f, k.constants, out, arguments..., k.c)
    return nothing
end

"""
    DeviceModel{T}(device, load, n, nc, driven = false)

A model of `n` states over numbers of type `T` on a device, with a data vector of length `nc`;
`driven` as in `Functions`.
"""
struct DeviceModel{T, D <: Device, C}
    device::D
    n::Int
    c::C
    value::ArrayKernel
    jac::ArrayKernel
    tgrad::ArrayKernel
    vjp::ArrayKernel
    vjp_p::ArrayKernel
    vjp_up::ArrayKernel
    lock::ReentrantLock
    driven::Bool
end
isdriven(m::DeviceModel) = m.driven

function DeviceModel{T}(
        device::Device, load, n::Integer, nc::Integer, driven::Bool = false
    ) where {T}
    c = upload(device, zeros(T, nc))
    kernel(role) = ArrayKernel(device, role, load, c)
    return DeviceModel{T, typeof(device), typeof(c)}(
        device, Int(n), c, kernel(:value), kernel(:jac_u), kernel(:jac_t), kernel(:vjp_u),
        kernel(:vjp_p), kernel(:vjp_up), ReentrantLock(), driven
    )
end

"""
    DeviceHandle{T}

A solve on a device: the outputs (`t` and `source` on the host, `u` there, one column a time),
SciML's solution, and what interpolation and gradients need.
"""
mutable struct DeviceHandle{T, M <: DeviceModel{T}}
    const model::M
    const alg::Any
    const options::Options{T}
    const c::Any
    const prob::Any
    sol::Any
    reached::T
    dense::Bool
    t::Vector{Float64}
    u::Any
    source::Vector{Int}
end

isimplicit(alg) = OrdinaryDiffEqCore.isimplicit(alg)

# Implicit algorithms get the Jacobian, dense, and a linear solver that the device can run.
function on_device(alg, m::DeviceModel)
    isimplicit(alg) || return alg
    hasproperty(alg, :linsolve) && alg.linsolve === nothing || return alg
    return SciMLBase.remake(alg; linsolve = linear_solver(m.device))
end
device_function(m::DeviceModel, alg) = ODEFunction{true, FullSpecialize}(m.value)
function device_function(m::DeviceModel{T}, alg, prototype) where {T}
    return ODEFunction{true, FullSpecialize}(
        m.value; m.jac, m.tgrad, jac_prototype = fill!(prototype, zero(T))
    )
end

# The root of the mean square; one number goes to the host.
device_norm(u::AbstractArray, t) = sqrt(sum(abs2, u) / max(length(u), 1))
device_norm(u::Number, t) = abs(u)

"""
    run(model::DeviceModel, alg, u0, p, c, tspan, options) -> DeviceHandle

Solve on the model's device. `u0`, `p` and `c` are arrays there, and are not written to.
"""
function run(m::DeviceModel{T}, alg, u0, p, c, tspan::Tuple{T, T}, options::Options{T}) where {T}
    return lock(m.lock) do
        activate(m.device)
        copyto!(m.c, c)
        f = isimplicit(alg) ? device_function(m, alg, similar(u0, m.n, m.n)) :
            device_function(m, alg)
        prob = ODEProblem(f, u0, tspan, p)
        dense = options.dense || isempty(options.saveat)
        sol, reached = integrate(prob, on_device(alg, m), m, options, dense)
        h = DeviceHandle{T, typeof(m)}(
            m, alg, options, c, prob, sol, reached, dense, Float64[], nothing, Int[]
        )
        collect_outputs!(h)
        settle(m.device)
        return h
    end
end

function integrate(prob, alg, m::DeviceModel{T}, o::Options{T}, dense::Bool) where {T}
    abstol = o.abstol isa Vector ? upload(m.device, o.abstol) : o.abstol
    more = (; abstol, dense, internalnorm = device_norm)
    integrator = begun(prob, alg, o, dense, o.tstops, CallbackSet(watching()), more)
    isempty(o.tstops) || !SciMLBase.has_tstop(integrator) || cap_first_step!(integrator)
    SciMLBase.solve!(integrator)
    return integrator.sol, integrator.t
end

function collect_outputs!(h::DeviceHandle{T}) where {T}
    sol, saveat = h.sol, h.options.saveat
    if h.dense && !isempty(saveat)
        sign = h.prob.tspan[2] >= h.prob.tspan[1] ? 1 : -1
        ts = filter(t -> sign * t <= sign * last(sol.t), saveat)
        h.t, h.source = convert(Vector{Float64}, ts), collect(0:(length(ts) - 1))
        h.u = columns(h, ts, Val{0})
        return h
    end
    m = length(sol.t)
    h.t = convert(Vector{Float64}, sol.t)
    h.u = similar(h.prob.u0, T, h.model.n, m)
    for j in 1:m
        copyto!(view(h.u, :, j), sol.u[j])
    end
    if h.dense
        h.source = fill(FIXED, m)
        h.source[1] = FROM_T0
        m > 1 && sol.t[m] == h.prob.tspan[2] && (h.source[m] = FROM_T1)
    else
        h.source = collect(0:(m - 1))
    end
    return h
end

# The solution, or a derivative of it, at some times: one column each, on the device.
function columns(h::DeviceHandle{T}, ts, ::Type{D}) where {T, D}
    out = similar(h.prob.u0, T, h.model.n, length(ts))
    for (j, time) in enumerate(ts)
        copyto!(view(out, :, j), state_at(h.sol, T(time), D))
    end
    return out
end

function densify!(h::DeviceHandle)
    h.dense && return h
    h.sol, h.reached = integrate(h.prob, on_device(h.alg, h.model), h.model, h.options, true)
    h.dense = true
    return h
end

# Do something with the handle's model, as it was when it was solved.
function with_model(body::F, h::DeviceHandle) where {F}
    return lock(h.model.lock) do
        activate(h.model.device)
        copyto!(h.model.c, h.c)
        densify!(h)
        result = body()
        settle(h.model.device)
        return result
    end
end

interpolate(h::DeviceHandle, ts, deriv::Integer) =
    attended(() -> with_model(() -> columns(h, ts, Val{Int(deriv)}), h))
