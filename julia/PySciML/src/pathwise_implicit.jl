# Gradients of stochastic equations solved by implicit methods: see pathwise.jl.

"""
    ThetaStep(theta, midpoint, split, noise)

A step of `ImplicitEM` and its kin. With the noise N over the step,

    x = base + theta dt f(x, t + theta dt),   base = u + (1 - theta) dt f(u, t) + N,   u' = x

by the implicit midpoint rule (`midpoint`, theta = 1/2) `base = u + N/2` and `u' = u + dt f(x) + N`.
Where the method splits the step (`split`), N is left out of both and added at the end: u' = x + N.
N is `g dW` at the step's begin (`:euler`), the mean of `g` there and at `y + g dW` (`:heun`; y is u,
or x where split), or that of a derivative-free Milstein method (`:ito`, `:stratonovich`).
"""
struct ThetaStep
    theta::Float64
    midpoint::Bool
    split::Bool
    noise::Symbol
end

"""
    KenCarp(c, A, B)

A step of `SKenCarp` (additive noise): `z_i = dt f(x_i, t + c_i dt)` where `x_i = u + sum_j A_ij z_j +
B_i chi2 g(t)`, implicit from the second stage on, where `A_ii` is not zero, and

    u' = u + sum_j A_4j z_j + chi2 (g(t) - g(t + dt)) + dW g(t + dt)
"""
struct KenCarp
    c::Vector{Float64}
    A::Matrix{Float64}
    B::Vector{Float64}
end

goes_through(::Union{ThetaStep, KenCarp}) = (false, true, true)

# An equation x = base + h f(x, t): its solution, and M = I - h J there, factored.
struct Implicit{T}
    x::Vector{T}
    base::Vector{T}
    f::Vector{T}
    J::Matrix{T}
    M::Matrix{T}
    pivots::Vector{LinearAlgebra.BlasInt}
end
Implicit{T}(n) where {T} = Implicit{T}(
    (zeros(T, n) for _ in 1:3)..., (zeros(T, n, n) for _ in 1:2)...,
    zeros(LinearAlgebra.BlasInt, n)
)

factors(e::Implicit) = LU(e.M, e.pivots, zero(LinearAlgebra.BlasInt))

# Newton's steps from `base`, until rounding is left: the solver stopped at its own tolerance.
function solve_stage!(e::Implicit{T}, b::Backwards, h, t) where {T}
    copyto!(e.x, e.base)
    last = T(Inf)
    for _ in 1:50
        b.x.drift.value(e.f, e.x, b.p, t)
        b.x.drift.jac(e.J, e.x, b.p, t)
        e.M .= .-h .* e.J
        for i in 1:b.n
            e.M[i, i] += one(T)
        end
        found = lu!(e.M; check = false)
        issuccess(found) || break
        copyto!(e.pivots, found.ipiv)
        e.f .= e.base .+ h .* e.f .- e.x
        ldiv!(factors(e), e.f)
        e.x .+= e.f
        size = maximum(((step, x),) -> abs(step) / (1 + abs(x)), zip(e.f, e.x))
        isfinite(size) || break
        (size <= 4 * eps(T) || (size <= sqrt(eps(T)) && size >= last / 2)) && return e.x
        last = size
    end
    error("the equations of an implicit step could not be solved again for its gradient")
end

# The cotangent of `base`, from that of `x`; in place.
pull_stage!(e::Implicit, of_x) = ldiv!(factors(e)', of_x)

# -- ImplicitEM, ImplicitEulerHeun, ImplicitRKMil, ISSEM, ISSEulerHeun -----------------------------

struct ThetaWork{T}
    stage::Implicit{T}
    f::Vector{T}
    g::Vector{T}
    y::Vector{T}                     # where the noise evaluates g a second time
    of_u::Vector{T}
    of_x::Vector{T}
    of_noise::Vector{T}
    of_f::Vector{T}
end
workspace(::ThetaStep, ::Type{T}, n, columns) where {T} = ThetaWork{T}(
    Implicit{T}(n), zeros(T, n), zeros(T, n * max(columns, 1)), (zeros(T, n) for _ in 1:5)...
)

function back!(s::ThetaStep, b::Backwards{T}, lambda, u, t, dt, dW) where {T}
    k, h = b.work, T(s.theta) * dt
    b.x.drift.value(k.f, u, b.p, t)
    b.x.diffusion.value(k.g, u, b.p, t)
    # the step again
    base = k.stage.base
    copyto!(base, u)
    s.midpoint || add!(base, dt * (1 - T(s.theta)), k.f)
    if !s.split
        second_point!(k.y, s, b, u, dt, dW)
        add_noise!(base, s, b, t, dt, dW, s.midpoint ? one(T) / 2 : one(T))
    end
    x = solve_stage!(k.stage, b, h, t + h)
    # and back
    fill!(k.of_u, zero(T))
    fill!(k.of_f, zero(T))
    copyto!(k.of_noise, lambda)
    copyto!(k.of_x, lambda)
    if s.split
        if s.noise === :heun
            s.midpoint ? (k.y .= u .+ (x .- base) .* 2) : copyto!(k.y, x)
            apply!(k.y, b, k.g, dW)
        end
        add!(k.of_x, one(T), pull_noise!(s, b, u, t, dt, dW))
    end
    if s.midpoint                                # u' = u + dt f(x) (+ N)
        add!(k.of_u, one(T), k.of_x)
        of_drift!(b, k.of_x, dt)
        mul!(k.of_x, k.stage.J', view(b.w, 1:b.n))
    else
        fill!(view(b.w, 1:b.n), zero(T))
    end
    pull_stage!(k.stage, k.of_x)
    for i in 1:b.n
        b.w[i] += h * k.of_x[i]
    end
    pull_drift!(b, x, t + h)                     # for the parameters
    add!(k.of_u, one(T), k.of_x)
    s.midpoint || add!(k.of_f, dt * (1 - T(s.theta)), k.of_x)
    if !s.split
        s.midpoint ? add!(k.of_noise, one(T) / 2, k.of_x) : copyto!(k.of_noise, k.of_x)
        add!(k.of_u, one(T), pull_noise!(s, b, u, t, dt, dW))
    end
    if !all(iszero, k.of_f)
        of_drift!(b, k.of_f, one(T))
        add!(k.of_u, one(T), pull_drift!(b, u, t))
    end
    copyto!(lambda, k.of_u)
    return
end

# Where g is evaluated besides the step's begin, when that is known before the step is solved.
function second_point!(y, s, b, u, dt, dW)
    k = b.work
    copyto!(y, u)
    s.noise === :heun && apply!(y, b, k.g, dW)
    s.noise === :ito && add!(y, dt, k.f)
    s.noise in (:ito, :stratonovich) && add!(y, sqrt(dt), k.g)
    return
end

function add_noise!(out, s, b::Backwards{T}, t, dt, dW, factor) where {T}
    k = b.work
    s.noise === :euler && return apply!(out, b, k.g, dW, factor)
    b.x.diffusion.value(b.g, k.y, b.p, t)
    if s.noise === :heun
        apply!(out, b, k.g, dW, factor / 2)
        return apply!(out, b, b.g, dW, factor / 2)
    end
    apply!(out, b, k.g, dW, factor)
    for i in 1:b.n
        weight = milstein_weight(s.noise === :stratonovich, dW, b.x.columns, i, dt)
        out[i] += factor * weight * (b.g[i] - k.g[i])
    end
    return out
end

# From the cotangent of N to those of u and f(u), which are added to; returns the one of the second
# point's own state (u, or x where split).
function pull_noise!(s, b::Backwards{T}, u, t, dt, dW) where {T}
    k, columns, n = b.work, b.x.columns, b.n
    own = b.mu
    fill!(own, zero(T))
    if s.noise === :heun
        of_diffusion!(b, k.of_noise, dW, one(T) / 2)
        copyto!(own, 1, pull_diffusion!(b, k.y, t), 1, n)
        b.y .= k.of_noise ./ 2 .+ own
        of_diffusion!(b, b.y, dW, one(T))
    elseif s.noise === :euler
        of_diffusion!(b, k.of_noise, dW, one(T))
    else
        weight(i) = milstein_weight(s.noise === :stratonovich, dW, columns, i, dt)
        for i in 1:n
            b.w[n + i] = k.of_noise[i] * weight(i)
        end
        copyto!(own, 1, pull_diffusion!(b, k.y, t), 1, n)
        s.noise === :ito && add!(k.of_f, dt, own)
        for i in 1:n
            b.w[n + i] = k.of_noise[i] * (increment(dW, columns, 1, i) - weight(i)) +
                sqrt(dt) * own[i]
        end
    end
    add!(k.of_u, one(T), pull_diffusion!(b, u, t))
    return own
end

# -- SKenCarp --------------------------------------------------------------------------------------

struct KenCarpWork{T}
    stages::Vector{Implicit{T}}
    z::Vector{Vector{T}}
    of_x::Vector{Vector{T}}
    g::Vector{T}
    w::Vector{T}
    chi::NTuple{4, Vector{T}}
end
function workspace(s::KenCarp, ::Type{T}, n, columns) where {T}
    each() = [zeros(T, n) for _ in s.c]
    return KenCarpWork{T}(
        [Implicit{T}(i == 1 ? 0 : n) for i in eachindex(s.c)], each(), each(),
        zeros(T, n * max(columns, 1)), zeros(T, n),
        ntuple(_ -> zeros(T, columns == 0 ? n : abs(columns)), 4)
    )
end

noise_of(::KenCarp, h::NoisyHandle) = both_noises(h)

function back!(s::KenCarp, b::Backwards{T}, lambda, u, t, dt, dWZ) where {T}
    k, n, last = b.work, b.n, length(s.c)
    integrals!(k.chi, dWZ, dt)
    dW, chi2 = k.chi[1], k.chi[3]
    b.x.diffusion.value(k.g, u, b.p, t)
    at(i) = t + T(s.c[i]) * dt
    b.x.drift.value(k.z[1], u, b.p, t)
    k.z[1] .*= dt
    for i in 2:last
        e = k.stages[i]
        copyto!(e.base, u)
        for j in 1:(i - 1)
            add!(e.base, T(s.A[i, j]), k.z[j])
        end
        iszero(s.B[i]) || apply!(e.base, b, k.g, chi2, T(s.B[i]))
        solve_stage!(e, b, T(s.A[i, i]) * dt, at(i))
        k.z[i] .= (e.x .- e.base) ./ T(s.A[i, i])
    end
    # the noise that the end adds: g depends on time alone
    of_diffusion!(b, lambda, dW .- chi2, one(T))
    pull_diffusion!(b, u, t + dt)
    # the state before, and the stages' noise, gather the cotangents of all bases
    of_u, of_noise = k.of_x[1], k.w
    copyto!(of_u, lambda)
    fill!(of_noise, zero(T))
    for i in last:-1:1
        # the cotangent of f at stage i, by the end and by later stages
        for r in 1:n
            w = T(s.A[last, i]) * lambda[r]
            for j in (i + 1):last
                w += T(s.A[j, i]) * k.of_x[j][r]
            end
            b.w[r] = dt * w
        end
        if i == 1
            add!(of_u, one(T), pull_drift!(b, u, t))
            break
        end
        e, of_base = k.stages[i], k.of_x[i]
        mul!(of_base, e.J', view(b.w, 1:n))
        pull_stage!(e, of_base)
        for r in 1:n
            b.w[r] += T(s.A[i, i]) * dt * of_base[r]
        end
        pull_drift!(b, e.x, at(i))
        add!(of_u, one(T), of_base)
        add!(of_noise, T(s.B[i]), of_base)
    end
    # chi2 g(t): by the end, and by the stages' bases
    of_noise .+= lambda
    of_diffusion!(b, of_noise, chi2, one(T))
    pull_diffusion!(b, u, t)
    copyto!(lambda, of_u)
    return
end
