# Gradients by going forward: sensitivity equations beside the state, or dual numbers.

"""
    ForwardSensitivity()

The sensitivity equations `S' = J S + df/dp` for all initial values and parameters beside the
state, with the Jacobian kernels.
"""
struct ForwardSensitivity end

"""
    ForwardDiffSensitivity()

Dual numbers through the solver: the derivative of the discrete solution itself.
"""
struct ForwardDiffSensitivity end

isforward(::Union{ForwardSensitivity, ForwardDiffSensitivity}) = true

# u, then one column of n for each initial value and each parameter.
struct SensitivityEquations{T} <: Function
    f::Functions{T}
    n::Int
    J::Matrix{T}
    P::Matrix{T}
    u::Vector{T}
    du::Vector{T}
end

function (e::SensitivityEquations)(dx, x, p, t)
    n = e.n
    copyto!(e.u, 1, x, 1, n)
    e.f.value(e.du, e.u, p, t)
    copyto!(dx, 1, e.du, 1, n)
    e.f.jac(e.J, e.u, p, t)
    e.f.paramjac(e.P, e.u, p, t)
    S = reshape(view(x, (n + 1):length(x)), n, :)
    dS = reshape(view(dx, (n + 1):length(x)), n, :)
    mul!(dS, e.J, S)
    view(dS, :, (n + 1):size(dS, 2)) .+= e.P
    return nothing
end

function forward_gradient(
        ::ForwardSensitivity, h::Handle{T}, ts, cotangents, abstol, reltol
    ) where {T}
    h.model.mass_matrix === nothing || error(
        "ForwardSensitivity does not take a mass matrix; use GaussAdjoint or QuadratureAdjoint"
    )
    n, m = h.model.n, length(h.prob.p)
    equations = SensitivityEquations{T}(
        h.model.functions, n, zeros(T, n, n), zeros(T, n, m), zeros(T, n), zeros(T, n)
    )
    x0 = zeros(T, n * (1 + n + m))
    copyto!(x0, h.prob.u0)
    for i in 1:n
        x0[i * n + i] = 1
    end
    prob = ODEProblem(
        ODEFunction{true, FullSpecialize}(equations), x0, h.prob.tspan, h.prob.p
    )
    options = Options{T}(;
        abstol, reltol, saveat = ts, h.options.tstops, h.options.dt, h.options.dtmax,
        h.options.dtmin, h.options.maxiters, h.options.adaptive
    )
    sol = integrate(prob, h.alg, options, false, Event{T}[], EventRecord{T}[])
    gradient = zeros(T, n + m)
    for (j, x) in enumerate(sol.u)
        S = reshape(view(x, (n + 1):length(x)), n, :)
        mul!(gradient, S', view(cotangents, :, j), true, true)
    end
    return gradient[1:n], gradient[(n + 1):end]
end

const CHUNK = 8

struct GradientTag end

function forward_gradient(
        ::ForwardDiffSensitivity, h::Handle{T}, ts, cotangents, abstol, reltol
    ) where {T}
    n, m = h.model.n, length(h.prob.p)
    gradient = zeros(T, n + m)
    for start in 1:CHUNK:(n + m)
        seeds = start:min(start + CHUNK - 1, n + m)
        seeded(x, offset) = [
            ForwardDiff.Dual{GradientTag}(
                    x[i], ForwardDiff.Partials(ntuple(k -> T(start + k - 1 == offset + i), CHUNK))
                ) for i in eachindex(x)
        ]
        prob = ODEProblem(h.model.f, seeded(h.prob.u0, 0), h.prob.tspan, seeded(h.prob.p, n))
        o = h.options
        common = (;
            o.abstol, o.reltol, saveat = ts, o.tstops,
            save_start = first(ts) == h.prob.tspan[1], save_end = last(ts) == h.prob.tspan[2],
            dtmax = given(o.dtmax, h.prob.tspan[2] - h.prob.tspan[1]), o.maxiters,
            adaptive = o.adaptive && is_adaptive(h.alg), verbose = QUIET,
        )
        sol = isnan(o.dt) ? SciMLBase.solve(prob, h.alg; common...) :
            SciMLBase.solve(prob, h.alg; common..., o.dt)
        for (j, u) in enumerate(sol.u), i in 1:n
            partials = ForwardDiff.partials(u[i])
            for (k, seed) in enumerate(seeds)
                gradient[seed] += cotangents[i, j] * partials[k]
            end
        end
    end
    return gradient[1:n], gradient[(n + 1):end]
end
