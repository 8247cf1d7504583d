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

    const FUNCTIONS = (;
        value, jac_u = jac, jac_t = tgrad, jac_p, jvp_u = jvp, vjp_u, vjp_p, vjp_t,
    )

    "The source of a kernel of the workload's problem (van der Pol's oscillator)."
    source(role, ::Type{T}) where {T} =
        KernelSource(FUNCTIONS[role], (1, 0, 0), T[], Int[], Bool[])

end

"""
    workload_handle(T, alg, options) -> Handle

A solve of the workload's problem, for the precompilation here and in the extensions.
"""
function workload_handle(::Type{T}, alg, options::Options{T}) where {T}
    functions = Functions{T}(role -> Workload.source(role, T))
    return run(Model(functions, 2), alg, T[2, 0], T[1, 1], T[], (T(0), T(1)), options)
end

workload_options(::Type{T}) where {T} = (
    Options{T}(saveat = T[0, 0.5, 1]), Options{T}(), Options{T}(saveat = T[0, 0.5, 1], dense = true),
)

@setup_workload begin
    quiet = (; autodiff = AutoFiniteDiff())
    algorithms = (
        Tsit5(), Vern7(), Rodas5P(; quiet...), Rosenbrock23(; quiet...), FBDF(; quiet...),
        DefaultODEAlgorithm(; quiet...),
    )
    @compile_workload begin
        for alg in algorithms, options in workload_options(Float64)
            h = workload_handle(Float64, alg, options)
            options.dense && interpolate(h, [0.3], 0)
        end
        # the default algorithm makes the caches of its parts when it first takes them
        for reltol in (1.0e-3, 1.0e-8), first in (false, true)
            alg = DefaultODEAlgorithm(; stiffalgfirst = first, quiet...)
            workload_handle(Float64, alg, Options{Float64}(; reltol, dense = true))
        end
        h = workload_handle(Float64, Tsit5(), Options{Float64}(saveat = [0.0, 1.0]))
        respond(h)
        interpolate(h, [0.3], 0)
        interpolate(h, [0.3], 1)
        entry_points()
        empty!(HANDLES.items)
    end
end
