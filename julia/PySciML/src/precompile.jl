# What every model shares is compiled into the package image here: solves of a small problem with
# the common algorithms, through the very functions that Python calls.

module Workload

    using ..PySciML: KernelSource

    function value(ws, out, u, p, t, c)
        out[1] = p[1] * u[2]
        out[2] = p[2] * (1 - u[1]^2) * u[2] - u[1]
        return nothing
    end
    function jac(ws, out, u, p, t, c)
        out[1, 1] = 0
        out[2, 1] = -2 * p[2] * u[1] * u[2] - 1
        out[1, 2] = p[1]
        out[2, 2] = p[2] * (1 - u[1]^2)
        return nothing
    end
    tgrad(ws, out, u, p, t, c) = (fill!(out, 0); nothing)
    function jac_p(ws, out, u, p, t, c)
        out[1, 1] = u[2]
        out[2, 1] = 0
        out[1, 2] = 0
        out[2, 2] = (1 - u[1]^2) * u[2]
        return nothing
    end
    function jvp(ws, out, v, u, p, t, c)
        out[1] = p[1] * v[2]
        out[2] = (-2 * p[2] * u[1] * u[2] - 1) * v[1] + p[2] * (1 - u[1]^2) * v[2]
        return nothing
    end
    function vjp_u(ws, out, w, u, p, t, c)
        out[1] = (-2 * p[2] * u[1] * u[2] - 1) * w[2]
        out[2] = p[1] * w[1] + p[2] * (1 - u[1]^2) * w[2]
        return nothing
    end
    function vjp_p(ws, out, w, u, p, t, c)
        out[1] = u[2] * w[1]
        out[2] = (1 - u[1]^2) * u[2] * w[2]
        return nothing
    end
    vjp_t(ws, out, w, u, p, t, c) = (fill!(out, 0); nothing)
    function vjp_up(ws, out, w, u, p, t, c)
        vjp_u(ws, view(out, 1:2), w, u, p, t, c)
        vjp_p(ws, view(out, 3:4), w, u, p, t, c)
        return nothing
    end
    function vjp_p_batch(ws, out, w, u, p, t, c)
        fill!(out, 0)
        for i in 1:2:length(u)
            out[1] += u[i + 1] * w[i]
            out[2] += (1 - u[i]^2) * u[i + 1] * w[i + 1]
        end
        return nothing
    end

    const FUNCTIONS = (;
        value, jac_u = jac, jac_t = tgrad, jac_p, jvp_u = jvp, vjp_u, vjp_p, vjp_t,
        vjp_up, vjp_p_batch,
    )

    "The source of a kernel of the workload's problem (van der Pol's oscillator)."
    source(role, ::Type{T}) where {T} =
        KernelSource(FUNCTIONS[role], (1, 0, 0), T[], Int[], Bool[])

end

workload_model() = Model(Functions{Float64}(role -> Workload.source(role, Float64)), 2)

"""
    workload_solve(model, alg; events, dense, saveat, reltol, differential_vars) -> Response

Solve a model with two parameters as Python does: everything here goes through the C functions, so
that what is compiled is what Python calls.
"""
function workload_solve(
        model::Model{T}, alg; events = Event{T}[], dense = 0, saveat = [0.0, 0.5, 1.0],
        reltol = 1.0e-3, differential_vars = true
    ) where {T}
    n, dae = model.n, model.functions isa Residual
    u0, p, abstol = fill(T(2), n), T[0.5, 1], [1.0e-6]
    du0, flags, response = fill(T(-1), n), ones(UInt8, n), Ref{Response}()
    GC.@preserve u0 p abstol saveat du0 flags begin
        request = Ref(
            Request(
                register!(MODELS, model), register!(OBJECTS, alg),
                isempty(events) ? 0 : register!(EVENTS, events), dense, 1, 100_000, n, 2, 0,
                length(saveat), 0, 1, pointer(u0), pointer(p), C_NULL, pointer(saveat), C_NULL,
                pointer(abstol), dae ? pointer(du0) : C_NULL,
                dae && differential_vars ? pointer(flags) : C_NULL,
                0.0, 1.0, reltol, NaN, NaN, NaN
            )
        )
        GC.@preserve request response c_solve(
            Base.unsafe_convert(Ptr{Request}, request),
            Base.unsafe_convert(Ptr{Response}, response)
        )
    end
    response[].error == C_NULL || error(unsafe_string(response[].error))
    return response[]
end

"""
    workload_adjoint(handle, sensealg)
"""
function workload_adjoint(handle, sensealg)
    times, source, cotangents = [0.0, 0.5, 1.0], [0, 1, 2], ones(6)
    du0, dp, dt0, dtimes, message = zeros(2), zeros(2), zeros(1), zeros(3), Ref(Ptr{UInt8}(0))
    GC.@preserve times source cotangents du0 dp dt0 dtimes begin
        request = Ref(
            AdjointRequest(
                handle, register!(OBJECTS, sensealg), 3, pointer(times), pointer(source),
                pointer(cotangents), C_NULL, 1.0e-6, 1.0e-3, pointer(du0), pointer(dp),
                pointer(dt0), pointer(dtimes), C_NULL
            )
        )
        GC.@preserve request message c_adjoint(
            Base.unsafe_convert(Ptr{AdjointRequest}, request),
            Base.unsafe_convert(Ptr{Ptr{UInt8}}, message)
        )
    end
    message[] == C_NULL || error(unsafe_string(message[]))
    return
end

function forget_workload()
    foreach(r -> empty!(r.items), REGISTRIES)
    return
end

"""
    workload_solves()

What the extension for PythonCall compiles: it has to be done there, since loading PythonCall
makes code that was compiled without it invalid.
"""
function workload_solves()
    quiet = (; autodiff = AutoFiniteDiff())
    algorithms = (
        Tsit5(), Vern7(), Rodas5P(; quiet...), Rosenbrock23(; quiet...), FBDF(; quiet...),
        DefaultODEAlgorithm(; quiet...),
    )
    for alg in algorithms
        model = workload_model()
        workload_solve(model, alg)
        workload_solve(model, alg; saveat = Float64[])
        handle = workload_solve(model, alg; dense = 1).handle
        interpolate(lookup(HANDLES, handle), [0.3], 0)
        workload_adjoint(handle, CollocationAdjoint())
    end
    workload_adjoint(workload_solve(workload_model(), Tsit5(); dense = 1).handle, DiscreteAdjoint())
    # the default algorithm makes the caches of its parts when it first takes them
    for reltol in (1.0e-3, 1.0e-8), stiffalgfirst in (false, true), dense in (0, 1)
        alg = DefaultODEAlgorithm(; stiffalgfirst, quiet...)
        workload_solve(workload_model(), alg; reltol, dense)
    end
    made, message = Ref(0), Ref(Ptr{UInt8}(0))
    GC.@preserve made message c_new_model(
        c_new_functions(0, 0, 0, 0), 2, C_NULL, Ptr{Int}(C_NULL),
        Base.unsafe_convert(Ptr{Int}, made), Base.unsafe_convert(Ptr{Ptr{UInt8}}, message)
    )
    entry_points()
    retcodes()
    return
end

"""
    workload_gradients(sensealg)

What the extension for PythonCall and SciMLSensitivity compiles.
"""
function workload_gradients(sensealg)
    quiet = (; autodiff = AutoFiniteDiff())
    for alg in (Tsit5(), Vern7(), Rodas5P(; quiet...), FBDF(; quiet...))
        workload_adjoint(workload_solve(workload_model(), alg; dense = 1).handle, sensealg)
    end
    for (reltol, stiffalgfirst) in ((1.0e-3, false), (1.0e-8, false), (1.0e-3, true))
        alg = DefaultODEAlgorithm(; stiffalgfirst, quiet...)
        r = workload_solve(workload_model(), alg; dense = 1, reltol)
        workload_adjoint(r.handle, sensealg)
    end
    return
end
