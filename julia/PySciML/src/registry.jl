# Things that Python refers to by number, and how they are made.

const OK, FAILED, INTERRUPTED, CALLBACK_FAILED = 0, 1, 2, 3

struct Registry
    items::Dict{Int, Any}
    lock::ReentrantLock
    next::Base.RefValue{Int}
end
Registry() = Registry(Dict{Int, Any}(), ReentrantLock(), Ref(0))
function register!(r::Registry, x)
    return lock(r.lock) do
        id = r.next[] += 1
        r.items[id] = x
        id
    end
end
lookup(r::Registry, id) = lock(() -> r.items[id], r.lock)
drop!(r::Registry, id) = (lock(() -> delete!(r.items, id), r.lock); nothing)

const FUNCTIONS, MODELS, EVENTS, OBJECTS, HANDLES = ntuple(_ -> Registry(), 5)
const OBJECT_IDS = Dict{String, Int}()
const REGISTRIES = (FUNCTIONS, MODELS, EVENTS, OBJECTS, HANDLES)

const ROLES = (
    value = 0, jac_u = 1, jac_t = 2, jac_p = 3, jvp_u = 4, vjp_u = 5, vjp_p = 6, vjp_t = 7,
    jac_du = 8, vjp_up = 9, vjp_p_batch = 10,
    jac_c = 11,                      # the compressed Jacobian, see `Pattern`
)

# Python's function `int load(int64 functions, int64 role)`: it answers by calling `c_provide`, or
# with 2 where there is no such kernel.
const LOADER = Ref{Ptr{Cvoid}}(C_NULL)
# By functions, role and task: several tasks may ask for the same kernel at once, and each is
# answered on its own, whichever thread it goes on by.
const PROVIDED = Dict{Tuple{Int, Int, Task}, Any}()
const PROVIDED_LOCK = ReentrantLock()
slot(functions, role) = (Int(functions), Int(role), current_task())
provided!(functions, role, source) =
    lock(() -> (PROVIDED[slot(functions, role)] = source; nothing), PROVIDED_LOCK)

fetch_source(id::Int, role::Symbol) = fetch_source(id, ROLES[role])
function fetch_source(id::Int, role::Int)
    status = ccall(LOADER[], Cint, (Int64, Int64), id, role)
    status == 2 && throw(Unavailable())
    status == 0 || throw(CallbackError())
    return lock(() -> pop!(PROVIDED, slot(id, role)), PROVIDED_LOCK)
end

vector(::Type{T}, p::Ptr, n) where {T} = n == 0 ? T[] : copy(unsafe_wrap(Array, Ptr{T}(p), Int(n)))
times_of(::Type{T}, p::Ptr{Float64}, n) where {T} = convert(Vector{T}, vector(Float64, p, n))

# What went wrong as a status and a text (null where the status says all); Python frees the text.
function failure(error)
    error isa InterruptException && return INTERRUPTED, Ptr{UInt8}(0)
    error isa CallbackError && return CALLBACK_FAILED, Ptr{UInt8}(0)
    text = try
        sprint(showerror, error; context = :limit => true) * user_line()
    catch
        string(typeof(error))
    end
    bytes = codeunits(text)
    to = Ptr{UInt8}(Libc.malloc(length(bytes) + 1))
    GC.@preserve text unsafe_copyto!(to, pointer(text), length(bytes))
    unsafe_store!(to, 0x00, length(bytes) + 1)
    return FAILED, to
end

# Run `body`; its status, with the text of an error where there is one.
function guarded(body::F, message::Ptr{Ptr{UInt8}}) where {F}
    try
        body()
        return Cint(OK)
    catch error
        status, text = failure(error)
        unsafe_store!(message, text)
        return Cint(status)
    end
end

c_free(p::Ptr{UInt8})::Cvoid = Libc.free(p)
c_drop(registry::Int64, id::Int64)::Cvoid = drop!(REGISTRIES[registry + 1], id)
c_set_loader(p::Ptr{Cvoid})::Cvoid = (LOADER[] = p; nothing)
c_set_watcher(p::Ptr{Cvoid})::Cvoid = (WATCHER[] = p; nothing)

# Room for the kernels of one function: `dae` for a residual, `single` for Float32, `driven` as in
# `Functions`.
c_new_functions(dae::Int64, single::Int64, nc::Int64, driven::Int64)::Int64 =
    single != 0 ? new_functions(Float32, dae != 0, nc, driven != 0) :
    new_functions(Float64, dae != 0, nc, driven != 0)

function new_functions(::Type{T}, dae::Bool, nc, driven) where {T}
    id = Ref(0)
    load = role -> fetch_source(id[], role)
    kind = dae ? Residual{T} : Functions{T}
    id[] = register!(FUNCTIONS, kind(load, nc, driven))
    return id[]
end

"A kernel's source as Python hands it over; the mirror of `Source` in bridge.py."
struct Source
    functions::Int64
    role::Int64
    single::Int64
    text::Ptr{UInt8}
    length::Int64
    sizes::NTuple{3, Int64}
    kf::Ptr{Float64}
    nkf::Int64
    ki::Ptr{Int64}
    nki::Int64
    kb::Ptr{UInt8}
    nkb::Int64
end

function c_provide(source::Ptr{Source}, message::Ptr{Ptr{UInt8}})::Cint
    return guarded(message) do
        s = unsafe_load(source)
        constants = (
            vector(Float64, s.kf, s.nkf), vector(Int64, s.ki, s.nki), vector(Bool, s.kb, s.nkb),
        )
        text = unsafe_string(s.text, s.length)
        T = s.single != 0 ? Float32 : Float64
        made = s.role >= STATIC_ROLES ? compile_static : compile
        provided!(s.functions, s.role, made(text, s.sizes, constants, T))
    end
end

# A role of a model whose text is the user's own Julia.
function c_provide_native(
        functions::Int64, role::Int64, single::Int64, text::Ptr{UInt8}, n::Int64,
        message::Ptr{Ptr{UInt8}}
    )::Cint
    return guarded(message) do
        source = unsafe_string(text, n)
        name = keys(ROLES)[findfirst(==(role), values(ROLES))]
        provided!(functions, role, native(source, name, single != 0 ? Float32 : Float64))
    end
end

"A function of Python's behind a C pointer; the mirror of `ForeignSource` in bridge.py."
struct ForeignSource
    functions::Int64
    role::Int64
    single::Int64
    pointer::Ptr{Cvoid}
    ninputs::Int64
    inputs::NTuple{3, Ptr{Cvoid}}
    lengths::NTuple{3, Int64}
    out::Ptr{Cvoid}
    rank::Int64
    shape::NTuple{2, Int64}
end

function c_provide_foreign(source::Ptr{ForeignSource}, message::Ptr{Ptr{UInt8}})::Cint
    return guarded(message) do
        s = unsafe_load(source)
        provided!(s.functions, s.role, s.single != 0 ? foreign(Float32, s) : foreign(Float64, s))
    end
end

function foreign(::Type{T}, s::ForeignSource) where {T}
    inputs = Vector{T}[
        unsafe_wrap(Array, Ptr{T}(s.inputs[i]), Int(s.lengths[i])) for i in 1:s.ninputs
    ]
    return s.rank == 1 ?
        Foreign{T, 1}(s.pointer, inputs, unsafe_wrap(Array, Ptr{T}(s.out), Int(s.shape[1]))) :
        Foreign{T, 2}(s.pointer, inputs, unsafe_wrap(Array, Ptr{T}(s.out), Int.(s.shape)))
end

# A model of `n` states; `mass` points to a row-major matrix, or is null; `pattern` to the numbers
# of a `Pattern` (entries, ncolors, colptr, rowval, from), or is null.
function c_new_model(
        functions::Int64, n::Int64, mass::Ptr{Cvoid}, pattern::Ptr{Int64}, id::Ptr{Int64},
        message::Ptr{Ptr{UInt8}}
    )::Cint
    return guarded(message) do
        model = new_model(lookup(FUNCTIONS, functions), n, mass, pattern)
        unsafe_store!(id, register!(MODELS, model))
    end
end
new_model(f::Residual, n, mass, pattern) = Model(f, n)
function new_model(f::Functions{T}, n, mass, pattern) where {T}
    M = mass == C_NULL ? nothing : permutedims(reshape(vector(T, mass, n * n), n, n))
    return Model(f, n, M, pattern == C_NULL ? nothing : pattern_at(pattern, n))
end

function pattern_at(p::Ptr{Int64}, n)
    entries, ncolors = vector(Int64, p, 2)
    numbers = vector(Int64, p, 2 + (n + 1) + 2 * entries)
    colptr, rest = numbers[3:(n + 3)], numbers[(n + 4):end]
    return Pattern(n, colptr, rest[1:entries], rest[(entries + 1):end], ncolors)
end

# Roles of kernels over arrays, by the numbers of ROLES plus this.
const DEVICE_ROLES = 100

# A model on a device by its name, over the functions' kernels; number 0 where there is no such
# device here; -1 states only ask whether there is.
function c_new_device_model(
        functions::Int64, single::Int64, n::Int64, nc::Int64, name::Ptr{UInt8}, index::Int64,
        id::Ptr{Int64}, message::Ptr{Ptr{UInt8}}
    )::Cint
    return guarded(message) do
        device = open_device(unsafe_string(name), index)
        load = role -> fetch_source(Int(functions), ROLES[role] + DEVICE_ROLES)
        number = device === nothing ? 0 : n < 0 ? 1 :
            register!(MODELS, Base.invokelatest(new_device_model, device, load, functions, n, nc))
        unsafe_store!(id, number)
    end
end
function new_device_model(device, load, functions, n, nc)
    f = lookup(FUNCTIONS, functions)
    return DeviceModel{eltype(data(f))}(device, load, n, nc, f.driven)
end

"One event; the mirror of `EventSpec` in bridge.py."
struct EventSpec
    kind::Int64            # of KINDS, from 0
    condition::Int64       # functions, or 0
    affect::Int64
    terminate::Int64
    direction::Int64
    save_before::Int64
    save_after::Int64
    times::Ptr{Float64}
    ntimes::Int64
end

function c_new_events(
        single::Int64, specs::Ptr{EventSpec}, n::Int64, id::Ptr{Int64}, message::Ptr{Ptr{UInt8}}
    )::Cint
    return guarded(message) do
        given = vector(EventSpec, specs, n)
        events = single != 0 ? new_events(Float32, given) : new_events(Float64, given)
        unsafe_store!(id, register!(EVENTS, events))
    end
end

function new_events(::Type{T}, specs) where {T}
    functions(id) = id == 0 ? nothing : lookup(FUNCTIONS, id)
    return Event{T}[
        Event{T}(
            KINDS[s.kind + 1], functions(s.condition),
            functions(s.affect), s.terminate != 0, s.direction, times_of(T, s.times, s.ntimes),
            (s.save_before != 0, s.save_after != 0), T[], T[]
        ) for s in specs
    ]
end

# The current parameters and data of an event's condition (`which` 0) or affect (1).
function c_set_event(
        events::Int64, index::Int64, which::Int64, p::Ptr{Cvoid}, np::Int64, c::Ptr{Cvoid},
        nc::Int64, message::Ptr{Ptr{UInt8}}
    )::Cint
    return guarded(message) do
        set_event!(lookup(EVENTS, events)[index + 1], which, p, np, c, nc)
    end
end
function set_event!(e::Event{T}, which, p, np, c, nc) where {T}
    f, to = which == 0 ? (e.condition, e.condition_p) : (e.affect, e.affect_p)
    copyto!(resize!(to, np), vector(T, p, np))
    f === nothing || copyto!(data(f), vector(T, c, nc))
    return
end

# An algorithm or sensitivity algorithm, from a Julia expression and the packages it needs.
function c_object(
        text::Ptr{UInt8}, n::Int64, packages::Ptr{UInt8}, m::Int64, id::Ptr{Int64},
        message::Ptr{Ptr{UInt8}}
    )::Cint
    return guarded(message) do
        key = unsafe_string(text, n)
        names = split(unsafe_string(packages, m), ','; keepempty = false)
        unsafe_store!(
            id, lock(ALGORITHMS_LOCK) do
                get!(() -> register!(OBJECTS, object(key, names)), OBJECT_IDS, key)
            end
        )
    end
end

"SciML's return codes, as `number=name` separated by commas."
retcodes() = join(("$(Int(code))=$(Symbol(code))" for code in instances(ReturnCode.T)), ',')
