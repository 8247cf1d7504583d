# The border with Python: C functions. Python passes pointers to its arrays in a struct and holds
# no lock while Julia runs; errors come back as a status and a text. juliacall starts Julia and
# loads this package, and has no part after that: its conversions would be compiled in every
# session, these functions stand compiled in the package image.

"What a solve is asked for; the mirror of `Request` in pysciml/engines/julia/bridge.py."
struct Request
    model::Int64
    alg::Int64
    events::Int64
    dense::Int64
    adaptive::Int64
    maxiters::Int64
    n::Int64
    np::Int64
    nc::Int64
    nsaveat::Int64
    ntstops::Int64
    nabstol::Int64
    u0::Ptr{Cvoid}
    p::Ptr{Cvoid}
    c::Ptr{Cvoid}
    saveat::Ptr{Float64}
    tstops::Ptr{Float64}
    abstol::Ptr{Float64}
    du0::Ptr{Cvoid}
    differential_vars::Ptr{UInt8}
    t0::Float64
    t1::Float64
    reltol::Float64
    dt::Float64
    dtmax::Float64
    dtmin::Float64
end

"What a solve gives back; arrays stay Julia's, alive as long as the handle."
struct Response
    handle::Int64
    retcode::Int64
    m::Int64
    nevents::Int64
    stats::NTuple{6, Int64}
    t::Ptr{Float64}
    u::Ptr{Cvoid}
    source::Ptr{Int64}
    event_times::Ptr{Float64}
    event_indices::Ptr{Int64}
    t_reached::Float64
    error::Ptr{UInt8}
end

"What a gradient is asked for, and where it is to be written; no times where those are null."
struct AdjointRequest
    handle::Int64
    sensealg::Int64
    m::Int64
    times::Ptr{Float64}
    source::Ptr{Int64}
    cotangents::Ptr{Cvoid}
    event_times::Ptr{Float64}
    abstol::Float64
    reltol::Float64
    du0::Ptr{Cvoid}
    dp::Ptr{Cvoid}
    dt0::Ptr{Float64}
    dtimes::Ptr{Float64}
    devents::Ptr{Cvoid}
end

c_solve(request::Ptr{Request}, response::Ptr{Response})::Cint =
    answered(() -> solve_request(unsafe_load(request)), response)

# What `solve` gives, or what it failed with, as the response.
function answered(solve::F, response::Ptr{Response}) where {F}
    try
        unsafe_store!(response, solve())
        return OK
    catch error
        status, message = failure(error)
        unsafe_store!(response, failed(message))
        return status
    end
end

failed(message) = Response(
    0, 0, 0, 0, (0, 0, 0, 0, 0, 0), C_NULL, C_NULL, C_NULL, C_NULL, C_NULL, 0.0, message
)

function solve_request(r::Request)
    model = lookup(MODELS, r.model)
    alg = lookup(OBJECTS, r.alg)
    return Base.inferencebarrier(solve_request)(r, model, alg)::Response
end

# The solve's own events; `set_event` may change those of the registry at any time.
events_of(::Type{T}, r::Request) where {T} =
    r.events == 0 ? Event{T}[] : owned(map(snapshot, lookup(EVENTS, r.events)))::Vector{Event{T}}

function solve_request(r::Request, model::Model{T}, @nospecialize(alg)) where {T}
    options = options_of(T, r)
    u0, p, c = vector(T, r.u0, r.n), vector(T, r.p, r.np), vector(T, r.c, r.nc)
    du0 = r.du0 == C_NULL ? nothing : vector(T, r.du0, r.n)
    differential_vars =
        du0 === nothing || r.differential_vars == C_NULL ? nothing :
        vector(UInt8, r.differential_vars, r.n) .!= 0
    h = run(
        model, alg, u0, p, c, (T(r.t0), T(r.t1)), options; du0, differential_vars,
        events = events_of(T, r)
    )
    return respond(h)
end

function options_of(::Type{T}, r::Request) where {T}
    abstol = times_of(T, r.abstol, r.nabstol)
    return Options{T}(
        r.nabstol == 1 ? abstol[1] : abstol, r.reltol, times_of(T, r.saveat, r.nsaveat),
        times_of(T, r.tstops, r.ntstops), r.dt, r.dtmax, r.dtmin, r.maxiters,
        r.adaptive != 0, r.dense != 0
    )
end

counts_of(s) = (s.nf, s.njacs, s.naccept, s.nreject, s.nsolve, s.nnonliniter)

function respond(h, counts = counts_of(h.sol.stats))
    h.event_times = Float64[e.t for e in h.log]
    h.event_indices = Int64[e.index - 1 for e in h.log]
    return Response(
        register!(HANDLES, h), Int(h.sol.retcode), length(h.t), length(h.log), counts,
        pointer(h.t), pointer(h.u), pointer(h.source), pointer(h.event_times),
        pointer(h.event_indices), Float64(h.reached), C_NULL
    )
end

function c_interpolate(
        handle::Int64, ts::Ptr{Float64}, m::Int64, deriv::Int64, out::Ptr{Cvoid},
        message::Ptr{Ptr{UInt8}}
    )::Cint
    return guarded(message) do
        h = lookup(HANDLES, handle)
        deliver(h, out, Base.inferencebarrier(interpolate)(h, vector(Float64, ts, m), deriv))
    end
end

function c_adjoint(request::Ptr{AdjointRequest}, message::Ptr{Ptr{UInt8}})::Cint
    return guarded(message) do
        r = unsafe_load(request)
        Base.inferencebarrier(adjoint_request)(
            r, lookup(HANDLES, r.handle), lookup(OBJECTS, r.sensealg)
        )
    end
end

function write_out(to, x::Array)
    GC.@preserve x unsafe_copyto!(Ptr{eltype(x)}(to), pointer(x), length(x))
    return
end

# What was computed for a handle, to where Python wants it.
deliver(::Solved, to::Ptr, x::Array) = write_out(to, x)

function adjoint_request(r::AdjointRequest, h::Handle{T}, @nospecialize(sensealg)) where {T}
    n = h.model.n
    cotangents = reshape(vector(T, r.cotangents, r.m * n), n, Int(r.m))
    g = Base.inferencebarrier(adjoint)(
        h, times_of(T, r.times, r.m), vector(Int64, r.source, r.m), cotangents,
        vector(Float64, r.event_times, length(h.log)), sensealg, T(r.abstol), T(r.reltol),
        r.dtimes != C_NULL
    )::Gradient{T}
    write_out(r.du0, g.u0)
    write_out(r.dp, g.p)
    if r.dtimes != C_NULL
        write_out(r.dtimes, g.times)
        unsafe_store!(r.dt0, g.t0)
    end
    write_events(r, g.events)
    return
end

# The cotangents of the events' own parameters, one after the other.
function write_events(r::AdjointRequest, events::Vector{Tuple{Vector{T}, Vector{T}}}) where {T}
    position = Ptr{T}(r.devents)
    for pair in events, part in pair
        isempty(part) && continue
        write_out(position, part)
        position += sizeof(part)
    end
    return
end

include("bridge_ensemble.jl")
include("jumps.jl")
include("stochastic.jl")
include("pathwise.jl")
include("pathwise_commutative.jl")
include("pathwise_implicit.jl")
include("random.jl")
include("delayed_passings.jl")
include("delayed.jl")
include("delayed_adjoint.jl")
include("delayed_mesh.jl")
include("delayed_jumps.jl")
include("boundary.jl")

"""
    entry_points() -> String

Addresses of the C functions by name, as `name=address` separated by commas.
"""
function entry_points()
    points = (
        gc_safe_enter = cglobal(:jl_gc_safe_enter), gc_safe_leave = cglobal(:jl_gc_safe_leave),
        solve = @cfunction(c_solve, Cint, (Ptr{Request}, Ptr{Response})),
        interpolate = @cfunction(
            c_interpolate, Cint, (Int64, Ptr{Float64}, Int64, Int64, Ptr{Cvoid}, Ptr{Ptr{UInt8}})
        ),
        adjoint = @cfunction(c_adjoint, Cint, (Ptr{AdjointRequest}, Ptr{Ptr{UInt8}})),
        ensemble = @cfunction(
            c_ensemble, Cint, (Ptr{EnsembleRequest}, Ptr{EnsembleResponse}, Ptr{Ptr{UInt8}})
        ),
        ensemble_adjoint = @cfunction(
            c_ensemble_adjoint, Cint, (Ptr{EnsembleAdjointRequest}, Ptr{Ptr{UInt8}})
        ),
        new_members_model = @cfunction(
            c_new_members_model, Cint,
            (
                Int64, Int64, Ptr{Int64}, Ptr{UInt8}, Int64, Ptr{Int64}, Ptr{Ptr{UInt8}},
            )
        ),
        solve_members = @cfunction(
            c_solve_members, Cint, (Ptr{MembersRequest}, Ptr{Ptr{UInt8}})
        ),
        differentiate_members = @cfunction(
            c_differentiate_members, Cint, (Ptr{MembersAdjointRequest}, Ptr{Ptr{UInt8}})
        ),
        free = @cfunction(c_free, Cvoid, (Ptr{UInt8},)),
        drop = @cfunction(c_drop, Cvoid, (Int64, Int64)),
        set_loader = @cfunction(c_set_loader, Cvoid, (Ptr{Cvoid},)),
        set_watcher = @cfunction(c_set_watcher, Cvoid, (Ptr{Cvoid},)),
        new_functions = @cfunction(c_new_functions, Int64, (Int64, Int64, Int64, Int64)),
        provide = @cfunction(c_provide, Cint, (Ptr{Source}, Ptr{Ptr{UInt8}})),
        provide_foreign = @cfunction(
            c_provide_foreign, Cint, (Ptr{ForeignSource}, Ptr{Ptr{UInt8}})
        ),
        provide_native = @cfunction(
            c_provide_native, Cint,
            (Int64, Int64, Int64, Ptr{UInt8}, Int64, Ptr{Ptr{UInt8}})
        ),
        new_model = @cfunction(
            c_new_model, Cint,
            (Int64, Int64, Ptr{Cvoid}, Ptr{Int64}, Ptr{Int64}, Ptr{Ptr{UInt8}})
        ),
        new_parts = @cfunction(
            c_new_parts, Cint,
            (Int64, Int64, Int64, Int64, Int64, Int64, Ptr{Int64}, Ptr{Ptr{UInt8}})
        ),
        new_device_model = @cfunction(
            c_new_device_model, Cint,
            (
                Int64, Int64, Int64, Int64, Ptr{UInt8}, Int64, Ptr{Int64}, Ptr{Ptr{UInt8}},
            )
        ),
        new_noisy = @cfunction(
            c_new_noisy, Cint,
            (Int64, Int64, Int64, Int64, Int64, Ptr{Int64}, Ptr{Ptr{UInt8}})
        ),
        new_random = @cfunction(
            c_new_random, Cint, (Int64, Int64, Int64, Ptr{Int64}, Ptr{Ptr{UInt8}})
        ),
        solve_noisy = @cfunction(c_solve_noisy, Cint, (Ptr{Request}, UInt64, Ptr{Response})),
        solve_along = @cfunction(
            c_solve_along, Cint, (Ptr{Request}, Ptr{PathResponse}, Ptr{Response})
        ),
        noise_path = @cfunction(
            c_noise_path, Cint, (Int64, Ptr{PathResponse}, Ptr{Ptr{UInt8}})
        ),
        new_delayed = @cfunction(
            c_new_delayed, Cint,
            (
                Int64, Int64, Int64, Int64, Int64, Ptr{Int64}, Int64, Ptr{Int64},
                Ptr{Ptr{UInt8}},
            )
        ),
        solve_boundary = @cfunction(
            c_solve_boundary, Cint,
            (Ptr{BoundaryRequest}, Ptr{BoundaryResponse}, Ptr{Ptr{UInt8}})
        ),
        mirk_tableau = @cfunction(
            c_mirk_tableau, Cint,
            (Int64, Ptr{Float64}, Int64, Ptr{Float64}, Int64, Ptr{Ptr{UInt8}})
        ),
        solve_jumps = @cfunction(
            c_solve_jumps, Cint, (Ptr{Request}, Ptr{JumpRequest}, Ptr{Response})
        ),
        new_events = @cfunction(
            c_new_events, Cint, (Int64, Ptr{EventSpec}, Int64, Ptr{Int64}, Ptr{Ptr{UInt8}})
        ),
        set_event = @cfunction(
            c_set_event, Cint,
            (Int64, Int64, Int64, Ptr{Cvoid}, Int64, Ptr{Cvoid}, Int64, Ptr{Ptr{UInt8}})
        ),
        object = @cfunction(
            c_object, Cint,
            (Ptr{UInt8}, Int64, Ptr{UInt8}, Int64, Ptr{Int64}, Ptr{Ptr{UInt8}})
        ),
    )
    return join(("$name=$(UInt(address))" for (name, address) in pairs(points)), ',')
end
