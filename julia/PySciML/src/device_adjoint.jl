# Gradients on a device: cotangents, states and parameters stay there.

"""
    DeviceAdjoint()

The continuous adjoint on a device: the cotangent is stepped backwards between outputs by the
algorithm of the solve (Rodas5P after other implicit ones than Rosenbrock's), the state read from
the dense solution, and the parameters' gradient is Gauss quadrature over the steps of both ways.
"""
struct DeviceAdjoint end

"""
    adjoint(handle::DeviceHandle, ts, cotangents, sensealg, abstol, reltol; by_times)

Gradient of `sum(cotangents .* u(ts))` as `(u0, p, t0, times)`, the first two on the device. `t0`
and `times` are zeros where they are not asked for.
"""
function adjoint(
        h::DeviceHandle{T}, ts::Vector{T}, cotangents, sensealg, abstol, reltol;
        by_times::Bool = true
    ) where {T}
    return with_model(h) do
        du0, dp = backwards(sensealg, h, ts, cotangents, abstol, reltol)
        dtimes, dt0 = zeros(length(ts)), 0.0
        if by_times
            slope = similar(h.prob.u0)
            for j in eachindex(ts)
                h.model.value(slope, h.sol(ts[j]), h.prob.p, ts[j])
                dtimes[j] = sum(slope .* view(cotangents, :, j))
            end
            h.model.value(slope, h.prob.u0, h.prob.p, h.prob.tspan[1])
            dt0 = -Float64(sum(slope .* du0))
        end
        return (; u0 = du0, p = dp, t0 = dt0, times = dtimes)
    end
end

zeros_like(x, n) = fill!(similar(x, n), zero(eltype(x)))

# The state as `resolving` asks for it.
asked(h::DeviceHandle) = (u, t, _...) -> h.sol(u, t)

# -- Tsit5, step by step -----------------------------------------------------------------------

function backwards(::DiscreteAdjoint, h::DeviceHandle{T}, ts, cotangents, abstol, reltol) where {T}
    n, p = h.model.n, h.prob.p
    both, total = zeros_like(p, n + length(p)), zeros_like(p, length(p))
    of_p = view(both, (n + 1):(n + length(p)))
    product!(w, u, t) = h.model.vjp_up(both, w, u, p, t)
    keep!(weight, w, u, t) = add!(total, weight, of_p)
    lambda = steps_back(
        product!, keep!, view(both, 1:n), zeros_like(h.prob.u0, n), h.sol.t, h.sol.u, h.sol.k, ts,
        cotangents, reltol, parts_for_steps(h.sol.t, h.model, n, asked(h), p, reltol)
    )
    return lambda, total
end

# -- continuous --------------------------------------------------------------------------------

# The right-hand side of the adjoint equation, with what Rosenbrock methods ask of it.
struct AdjointEquation{H, U, J} <: Function
    handle::H
    u::U
    J::J
end
function (e::AdjointEquation)(out, lambda, p, t)
    e.handle.sol(e.u, t)
    e.handle.model.vjp(out, lambda, e.u, p, t)
    out .= .-out
    return nothing
end
struct AdjointJacobian{E} <: Function
    equation::E
end
function (j::AdjointJacobian)(out, lambda, p, t)
    e = j.equation
    e.handle.sol(e.u, t)
    e.handle.model.jac(e.J, e.u, p, t)
    permutedims!(out, e.J, (2, 1))
    out .= .-out
    return nothing
end
# By central differences: the state along the solution has no kernel.
struct AdjointRate{E} <: Function
    equation::E
end
function (r::AdjointRate)(out, lambda, p, t)
    step = cbrt(eps(typeof(t))) * max(one(t), abs(t))
    before = similar(out)
    r.equation(out, lambda, p, t + step)
    r.equation(before, lambda, p, t - step)
    out .= (out .- before) ./ 2step
    return nothing
end

function adjoint_function(h::DeviceHandle, alg)
    u, n = similar(h.prob.u0), h.model.n
    isimplicit(alg) ||
        return ODEFunction{true, FullSpecialize}(AdjointEquation(h, u, nothing))
    e = AdjointEquation(h, u, similar(u, n, n))
    return ODEFunction{true, FullSpecialize}(
        e; jac = AdjointJacobian(e), tgrad = AdjointRate(e), jac_prototype = zero(e.J)
    )
end

follows(alg) = !isimplicit(alg)
follows(::OrdinaryDiffEqCore.OrdinaryDiffEqRosenbrockAdaptiveAlgorithm) = true
follows(::OrdinaryDiffEqCore.OrdinaryDiffEqRosenbrockAlgorithm) = true

function backwards(::DeviceAdjoint, h::DeviceHandle{T}, ts, cotangents, abstol, reltol) where {T}
    alg = on_device(follows(h.alg) ? h.alg : Rodas5P(; autodiff = AutoFiniteDiff()), h.model)
    f = adjoint_function(h, alg)
    u0, p = h.prob.u0, h.prob.p
    lambda, dp = zeros_like(u0, h.model.n), zeros_like(p, length(p))
    nodes, weights = gauss_rule(T, clamp((SciMLBase.alg_order(alg) + 2) ÷ 2, 3, 6))
    mesh = resolving(joined_mesh(h.sol.t), h.model, h.model.n, asked(h), p, reltol)
    at, j = last(h.sol.t), length(ts)
    step = length(h.sol.t) > 1 ? h.sol.t[end - 1] - at : zero(T)
    moved = false
    while true
        while j >= 1 && ts[j] == at
            lambda .+= view(cotangents, :, j)
            moved, j = true, j - 1
        end
        next = j >= 1 ? ts[j] : h.prob.tspan[1]
        at == next && break
        if moved
            step = sign(step) * min(abs(step), abs(next - at))
            lambda, step = stretch!(
                dp, h, f, alg, lambda, (at, next), step, abstol, reltol, nodes, weights, mesh
            )
        end
        at = next
    end
    return lambda, dp
end

# From one output back to the one before; gives the cotangent there, and the last step. `forward`: the
# mesh that resolves the state and f_p.
function stretch!(
        dp, h::DeviceHandle{T}, f, alg, lambda, span, step, abstol, reltol, nodes, weights, forward
    ) where {T}
    p = h.prob.p
    adaptive = is_adaptive(alg) && h.options.adaptive
    options = adaptive ? (; dt = step) : (; dt = sign(step) * h.options.dt, adaptive = false)
    sol = SciMLBase.__solve(
        ODEProblem(f, lambda, span, p), alg; abstol, reltol, dense = true, verbose = QUIET,
        maxiters = h.options.maxiters, callback = CallbackSet(watching()),
        internalnorm = device_norm, options...
    )
    if !SciMLBase.successful_retcode(sol)
        error(
            "the adjoint equation, solved by $(nameof(typeof(alg))), stopped at t = " *
                "$(last(sol.t)) with retcode $(sol.retcode); tighten the tolerances, or take " *
                "another algorithm"
        )
    end
    part, u, w = similar(dp), similar(lambda), similar(lambda)
    # the forward steps too: f's derivative by the parameters may change faster than the cotangent
    low, high = minmax(span...)
    mesh = joined_mesh(sol.t, filter(t -> low < t < high, forward))
    isempty(dp) || for i in 1:(length(mesh) - 1)
        t, length_ = mesh[i], mesh[i + 1] - mesh[i]
        for (node, weight) in zip(nodes, weights)
            time = t + node * length_
            h.sol(u, time)
            sol(w, time)
            h.model.vjp_p(part, w, u, p, time)
            dp .+= abs(length_) * sign(span[1] - span[2]) * weight .* part
        end
    end
    last_step = length(sol.t) > 2 ? sol.t[end - 1] - sol.t[end - 2] : sol.t[end] - sol.t[1]
    return sol.u[end], last_step
end

# Gauss and Legendre's rule on [0, 1]: Golub and Welsch, "Calculation of Gauss quadrature rules",
# Mathematics of Computation 23 (1969).
function gauss_rule(::Type{T}, n) where {T}
    off = [k / sqrt(4k^2 - 1) for k in 1.0:(n - 1)]
    e = eigen(SymTridiagonal(zeros(n), off))
    return T.((e.values .+ 1) ./ 2), T.(abs2.(e.vectors[1, :]))
end
