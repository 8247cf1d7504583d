# The kinds of models beside the plain one, for the package image: what each of them shares with
# all others of its kind is compiled by one small solve.

module Kinds

    using ..PySciML: KernelSource

    # u' = p[1] u[end:-1:1] - p[2] u, the same as a residual, its derivatives, and an event
    value(ws, out, u, p, t, c) = (out .= p[1] .* reverse(u) .- p[2] .* u; nothing)
    function jac_u(ws, out, u, p, t, c)
        fill!(out, 0)
        n = length(u)
        for i in 1:n
            out[i, i] -= p[2]
            out[i, n + 1 - i] += p[1]
        end
        return nothing
    end
    jac_t(ws, out, u, p, t, c) = (fill!(out, 0); nothing)
    function jac_p(ws, out, u, p, t, c)
        out[:, 1] .= reverse(u)
        out[:, 2] .= .-u
        return nothing
    end
    # diagonal and antidiagonal: two columns hold all entries
    function jac_c(ws, out, u, p, t, c)
        half = length(u) ÷ 2
        out[1:half, 1] .= out[(half + 1):end, 2] .= -p[2]
        out[(half + 1):end, 1] .= out[1:half, 2] .= p[1]
        return nothing
    end
    residual(ws, out, du, u, p, t, c) = (value(ws, out, u, p, t, c); out .-= du; nothing)
    residual_u(ws, out, du, u, p, t, c) = jac_u(ws, out, u, p, t, c)
    function residual_du(ws, out, du, u, p, t, c)
        fill!(out, 0)
        for i in eachindex(u)
            out[i, i] = -1
        end
        return nothing
    end
    crossing(ws, out, u, p, t, c) = (out[1] = u[1] - 1.6; nothing)
    unchanged(ws, out, u, p, t, c) = (copyto!(out, u); nothing)

    const ODE = (; value, jac_u, jac_t, jac_p, jac_c)
    const DAE = (; value = residual, jac_u = residual_u, jac_du = residual_du)

    "A function that gives the sources of a model's kernels by role."
    loader(functions, ::Type{T}) where {T} =
        role -> KernelSource(functions[role], (1, 0, 0), T[], Int[], Bool[])

end

functions_of(kind, ::Type{T}) where {T} = Functions{T}(Kinds.loader(kind, T))

"A pattern of `n` states (even) for `Kinds.jac_c`."
function workload_pattern(n)
    colptr = collect(1:2:(2n + 1))
    rowval, from = Int[], Int[]
    for j in 1:n, i in minmax(j, n + 1 - j)
        push!(rowval, i)
        push!(from, i + (j > n ÷ 2 ? n : 0))
    end
    return Pattern(n, colptr, rowval, from, 2)
end

function workload_events(kind, ::Type{T}) where {T}
    functions(f) = Functions{T}(Kinds.loader((; value = f), T))
    condition = kind === :preset ? nothing : functions(Kinds.crossing)
    return Event{T}[
        Event{T}(
            kind, condition, functions(Kinds.unchanged), false, 0, T[0.25], (true, true), T[], T[]
        ),
    ]
end

"""
    workload_kinds()

Mass matrices, Float32, sparse Jacobians, events, residuals, and algorithms often named.
"""
function workload_kinds()
    quiet = (; autodiff = AutoFiniteDiff())
    plain() = Model(functions_of(Kinds.ODE, Float64), 2)
    for alg in (QNDF(; quiet...), AutoTsit5(Rosenbrock23(; quiet...)))
        workload_solve(plain(), alg)
    end
    for kind in (:continuous, :discrete)
        workload_solve(plain(), Tsit5(); events = workload_events(kind, Float64))
    end
    singular = Model(functions_of(Kinds.ODE, Float64), 2, [1.0 0.0; 0.0 0.0])
    workload_solve(singular, Rodas5P(; quiet...))
    for alg in (Rodas5P(; quiet...), FBDF(; quiet...))
        model = Model(functions_of(Kinds.ODE, Float64), 64, nothing, workload_pattern(64))
        workload_solve(model, alg)
    end
    workload_solve(Model(functions_of(Kinds.ODE, Float32), 2), Tsit5())
    for said in (true, false)
        residual = Residual{Float64}(Kinds.loader(Kinds.DAE, Float64))
        workload_solve(Model(residual, 2), DFBDF(; quiet...); differential_vars = said)
    end
    response = workload_solve(plain(), Tsit5(); dense = 1)
    workload_adjoint(response.handle, ForwardSensitivity())
    return
end
