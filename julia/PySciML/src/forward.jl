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

# u, then one column of n for each initial value, each parameter, and what moves events besides.
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
    e.f.jac(e.J, e.u, p, t)
    e.f.paramjac(e.P, e.u, p, t)
    dX = reshape(dx, n, :)
    mul!(dX, e.J, reshape(x, n, :))
    copyto!(dX, 1, e.du, 1, n)
    for k in axes(e.P, 2), i in 1:n
        dX[i, 1 + n + k] += e.P[i, k]
    end
    return nothing
end

# What implicit algorithms ask of these equations: every column has the model's Jacobian; how the
# columns change with the state and with time is taken by differences.
struct SensitivityJacobian{T} <: Function
    equations::SensitivityEquations{T}
    here::Vector{T}
    there::Vector{T}
end
struct SensitivitySlope{T} <: Function
    equations::SensitivityEquations{T}
    there::Vector{T}
end
struct SensitivityProduct{T} <: Function
    equations::SensitivityEquations{T}
    moved::Vector{T}
    here::Vector{T}
end
difference_step(x::T) where {T} = sqrt(eps(T)) * max(abs(x), one(T))

function (s::SensitivityJacobian)(J, x, p, t)
    e, n = s.equations, s.equations.n
    here, there = resize!(s.here, length(x)), resize!(s.there, length(x))
    e(here, x, p, t)
    fill!(J, 0)
    for k in 0:n:(length(x) - n), j in 1:n, i in 1:n
        J[k + i, k + j] = e.J[i, j]
    end
    for j in 1:n
        xj, step = x[j], difference_step(x[j])
        x[j] = xj + step
        e(there, x, p, t)
        x[j] = xj
        for i in (n + 1):length(x)
            J[i, j] = (there[i] - here[i]) / step
        end
    end
    return nothing
end
function (s::SensitivitySlope)(out, x, p, t)
    step, there = difference_step(t), resize!(s.there, length(x))
    s.equations(out, x, p, t)
    s.equations(there, x, p, t + step)
    out .= (there .- out) ./ step
    return nothing
end
function (s::SensitivityProduct)(out, v, x, p, t)
    moved, here = resize!(s.moved, length(x)), resize!(s.here, length(x))
    size_ = norm(v)
    size_ == 0 && (fill!(out, 0); return nothing)
    step = difference_step(norm(x)) / size_
    moved .= x .+ step .* v
    s.equations(here, x, p, t)
    s.equations(out, moved, p, t)
    out .= (out .- here) ./ step
    return nothing
end

"Equations up to which a dense Jacobian of them is formed (2 GiB)."
const LARGEST = 16_000

# The equations as `Functions`, like any model's: solvers are compiled for these types already.
function sensitivity_function(e::SensitivityEquations{T}, count, alg) where {T}
    needs_jacobian(alg, count) && count > LARGEST && error(
        "ForwardSensitivity has $count equations here (the states, and as many again for each " *
            "initial value and parameter), of which an implicit algorithm forms a dense Jacobian " *
            "of $(round(Int, count^2 * sizeof(T) / 2^30)) GiB; leave sensealg out, which takes " *
            "an adjoint"
    )
    made = (;
        value = e, jac_u = SensitivityJacobian{T}(e, T[], T[]),
        jac_t = SensitivitySlope{T}(e, T[]), jvp_u = SensitivityProduct{T}(e, T[], T[]),
    )
    load(role) = haskey(made, role) ? made[role] : throw(Unavailable())
    return ode_function(Functions{T}(load), needs_jacobian(alg, count) ? count : 0, nothing)
end

function forward_gradient(
        s::ForwardSensitivity, h::Handle{T}, ts, cotangents, abstol, reltol
    ) where {T}
    n, m = h.model.n, length(h.prob.p)
    S = identity_columns(h, n + m)
    gradient = zeros(T, n + m)
    sensitivities!(gradient, S, h, h.prob.u0, h.prob.tspan, ts, cotangents, abstol, reltol)
    return gradient[1:n], gradient[(n + 1):end]
end

forward_through_events(sensealg, h, ts, cotangents, o, abstol, reltol) = error(
    "$(nameof(typeof(sensealg))) does not go through events; use ForwardSensitivity, " *
        "GaussAdjoint, InterpolatingAdjoint or QuadratureAdjoint"
)

# At an event the columns, of the initial values, the parameters and then the events' own, change
# as in `through_events!`: with D the change of the state at the moving time of the event,
# `D- = S + f- dtau`, `D+ = a_u D- + a_p + a_t dtau`, `S = D+ - f+ dtau`.
function forward_through_events(
        ::ForwardSensitivity, h::Handle{T}, ts, cotangents, o, abstol, reltol
    ) where {T}
    n, m = h.model.n, length(h.prob.p)
    own, count = columns_of(h)
    S, gradient = identity_columns(h, count), zeros(T, count)
    for (s, range) in enumerate(o.ranges)
        columns = cotangents[:, o.inside[s]]
        if nothing_between(h, range)
            mul!(gradient, S', vec(sum(columns; dims = 2)), true, true)
        else
            span = (h.sol.t[first(range)], finish_of(h, range))
            sensitivities!(
                gradient, S, h, h.sol.u[first(range)], span,
                join_equal([ts[o.inside[s]]; span[2]], [columns zeros(T, n)])..., abstol, reltol
            )
        end
        s <= length(o.groups) && across!(gradient, S, h, o, s, own)
    end
    parts = [(gradient[a], gradient[b]) for (a, b) in own]
    return gradient[1:n], gradient[(n + 1):(n + m)], parts
end

function across!(gradient, S::Matrix{T}, h::Handle{T}, o, k, own) where {T}
    group = o.groups[k]
    moving = moving_event(h, group)
    dtau, f_before, f_after = zeros(T, size(S, 2)), zeros(T, size(S, 1)), zeros(T, size(S, 1))
    if moving !== nothing
        f_before, f_after = slopes(h, o, k)
        c_u, c_p, speed = condition_slopes(h, moving, f_before)
        mul!(dtau, S', c_u)
        dtau[own[moving.index][1]] .+= c_p
        dtau ./= -speed
    end
    D = S .+ f_before .* dtau'
    mul!(gradient, D', view(o.before, :, k), true, true)
    for i in group
        record = h.log[i]
        event = h.events[record.index]
        event.affect === nothing && continue
        u, p, t = record.before, event.affect_p, record.t
        J, slope_, P = zeros(T, length(u), length(u)), zero(u), zeros(T, length(u), length(p))
        event.affect.jac(J, u, p, t)
        event.affect.tgrad(slope_, u, p, t)
        D = J * D .+ slope_ .* dtau'
        isempty(p) && continue
        event.affect.paramjac(P, u, p, t)
        view(D, :, own[record.index][2]) .+= P
    end
    mul!(gradient, D', view(o.after, :, k), true, true)
    gradient .+= o.of_time[k] .* dtau
    S .= D .- f_after .* dtau'
    return
end

# The columns of the events' own parameters, as pairs (condition, affect), and how many there are.
function columns_of(h::Handle)
    count = h.model.n + length(h.prob.p)
    own = map(h.events) do e
        middle = count + length(e.condition_p)
        pair = ((count + 1):middle, (middle + 1):(middle + length(e.affect_p)))
        count = last(pair[2])
        pair
    end
    return own, count
end

function identity_columns(h::Handle{T}, count) where {T}
    h.model.mass_matrix === nothing && h.prob isa ODEProblem || error(
        "ForwardSensitivity takes neither a mass matrix nor a residual; use CollocationAdjoint"
    )
    S = zeros(T, h.model.n, count)
    for i in 1:h.model.n
        S[i, i] = 1
    end
    return S
end

# S from the beginning of `span`, where the state is u0, to the last of `ts`; to `gradient` is added
# what the cotangents of the states at `ts` make of it.
function sensitivities!(
        gradient, S::Matrix{T}, h::Handle{T}, u0, span, ts, cotangents, abstol, reltol
    ) where {T}
    n, m = h.model.n, length(h.prob.p)
    equations = SensitivityEquations{T}(
        h.model.functions, n, zeros(T, n, n), zeros(T, n, m), zeros(T, n), zeros(T, n)
    )
    x0 = Vector{T}(undef, n + length(S))
    copyto!(x0, 1, u0, 1, n)
    copyto!(x0, n + 1, S, 1, length(S))
    prob = ODEProblem(
        sensitivity_function(equations, length(x0), h.alg), x0, span, h.prob.p::Vector{T}
    )
    o = h.options
    options = Options{T}(;
        abstol, reltol, saveat = ts, o.tstops, o.dt, o.dtmax, o.dtmin, o.maxiters, o.adaptive
    )
    sol, reached = Base.inferencebarrier(integrate)(
        prob, h.alg, options, false, Event{T}[], EventRecord{T}[]
    )
    SciMLBase.successful_retcode(sol) || error(
        "the sensitivity equations stopped at t = $reached with retcode $(sol.retcode); tighten " *
            "the tolerances, or use another sensealg"
    )
    us = sol.u::Vector{Vector{T}}
    for (j, x) in enumerate(us)
        copyto!(S, 1, x, n + 1, length(S))
        mul!(gradient, S', cotangents[:, j], true, true)
    end
    copyto!(S, 1, last(us), n + 1, length(S))
    return
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
            adaptive = o.adaptive && is_adaptive(h.alg), verbose = QUIET, tuning(h.alg)...,
        )
        sol = isnan(o.dt) ? SciMLBase.solve(prob, bare(h.alg); common...) :
            SciMLBase.solve(prob, bare(h.alg); common..., o.dt)
        for (j, u) in enumerate(sol.u), i in 1:n
            partials = ForwardDiff.partials(u[i])
            for (k, seed) in enumerate(seeds)
                gradient[seed] += cotangents[i, j] * partials[k]
            end
        end
    end
    return gradient[1:n], gradient[(n + 1):end]
end
