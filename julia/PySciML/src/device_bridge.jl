# The border with Python for solves on a device: the same C functions and structures, in which the
# addresses of states, parameters and their gradients are the device's; times are the host's.

"""
    attended(body)

Do something that may wait for a device, or for its compiler, on any thread. Only Julia's first
thread watches for events, but torch differentiates functions of a GPU's tensors on a thread of
its own, for which the first one waits outside Julia. In what Julia counts as a threaded region
whoever waits watches.
"""
function attended(body::F) where {F}
    ccall(:jl_enter_threaded_region, Cvoid, ())
    try
        return body()
    finally
        ccall(:jl_exit_threaded_region, Cvoid, ())
    end
end

solve_request(r::Request, model::DeviceModel, alg) =
    attended(() -> Base.invokelatest(solve_on_device, r, model, alg))

function solve_on_device(r::Request, m::DeviceModel{T}, alg) where {T}
    activate(m.device)
    u0, p, c = (
        wrap(m.device, T, at, n) for (at, n) in ((r.u0, r.n), (r.p, r.np), (r.c, r.nc))
    )
    h = run(m, alg, u0, p, c, (T(r.t0), T(r.t1)), options_of(T, r))
    s = h.sol.stats
    return Response(
        register!(HANDLES, h), Int(h.sol.retcode), length(h.t), 0,
        (s.nf, s.njacs, s.naccept, s.nreject, s.nsolve, s.nnonliniter), pointer(h.t),
        Ptr{Cvoid}(location(m.device, h.u)), pointer(h.source), C_NULL, C_NULL,
        Float64(h.reached), C_NULL
    )
end

function deliver(h::DeviceHandle{T}, to::Ptr, x) where {T}
    isempty(x) || copyto!(wrap(h.model.device, T, to, length(x)), reshape(x, length(x)))
    settle(h.model.device)
    return
end

adjoint_request(r::AdjointRequest, h::DeviceHandle, sensealg) =
    attended(() -> Base.invokelatest(adjoint_on_device, r, h, sensealg))

function adjoint_on_device(r::AdjointRequest, h::DeviceHandle{T}, sensealg) where {T}
    m = h.model
    activate(m.device)
    cotangents = reshape(wrap(m.device, T, r.cotangents, r.m * m.n), m.n, Int(r.m))
    g = adjoint(
        h, times_of(T, r.times, r.m), cotangents, sensealg, T(r.abstol), T(r.reltol);
        by_times = r.dtimes != C_NULL
    )
    deliver(h, r.du0, g.u0)
    deliver(h, r.dp, g.p)
    if r.dtimes != C_NULL
        write_out(r.dtimes, g.times)
        unsafe_store!(r.dt0, g.t0)
    end
    return
end
