# Gradients of stochastic equations: the steps of a solve backwards, along the noise that it drew.

"""
    EulerMaruyama(split, ahead)

A step of `EM` or `LambaEM`: the diffusion at the state after the drift (`split`) or before it, at
the step's begin or at its end (`ahead`).
"""
struct EulerMaruyama
    split::Bool
    ahead::Bool
end

"A step of `EulerHeun` or `LambaEulerHeun`."
struct Heun end

"A step of `RKMil`, the derivative-free Milstein method for diagonal and scalar noise."
struct Milstein
    stratonovich::Bool
end

"""
    Rossler(...)

A step of a stochastic Runge-Kutta method after Rößler ("Runge-Kutta methods for the strong
approximation of solutions of stochastic differential equations", SIAM Journal on Numerical Analysis
48, 2010): stage i evaluates the drift at `H0` and the diffusion at `H1`,

    H0_i = u + dt sum_j A0_ij f_j + sum_j B0_ij g_j chi2
    H1_i = u + dt sum_j A1_ij f_j + sqrt(dt) sum_j B1_ij g_j
    u   += dt sum_j alpha_j f_j + sum_j g_j (beta1_j dW + beta2_j chi1 + beta3_j chi2 + beta4_j chi3)

where chi1, chi2, chi3 are the iterated integrals of the noise over the step. For additive noise
(SRA) A1, B1, beta2 and beta4 are zero, and the noise may be general.
"""
struct Rossler
    c0::Vector{Float64}
    c1::Vector{Float64}
    A0::Matrix{Float64}
    A1::Matrix{Float64}
    B0::Matrix{Float64}
    B1::Matrix{Float64}
    alpha::Vector{Float64}
    beta::NTuple{4, Vector{Float64}}
end

# What its way back works with: of each stage H0 and H1, drift and diffusion there, and the cotangents
# of H0 and H1; and dW, chi1, chi2 and chi3.
struct Stages{T}
    H0::Vector{Vector{T}}
    H1::Vector{Vector{T}}
    f::Vector{Vector{T}}
    g::Vector{Vector{T}}
    of_H0::Vector{Vector{T}}
    of_H1::Vector{Vector{T}}
    chi::NTuple{4, Vector{T}}
end

workspace(how, ::Type{T}, n, columns) where {T} = nothing
function workspace(s::Rossler, ::Type{T}, n, columns) where {T}
    each(k) = [zeros(T, k) for _ in s.alpha]
    m = columns == 0 ? n : abs(columns)
    return Stages{T}(
        each(n), each(n), each(n), each(n * max(columns, 1)), each(n), each(n),
        ntuple(_ -> zeros(T, m), 4)
    )
end

"""
    scheme(alg)

What one step of an algorithm computes, for algorithms whose steps can be run backwards; the
extension adds the methods.
"""
scheme(alg) = error(
    "gradients follow the steps of strong methods, and this solution is by " *
        "$(nameof(typeof(alg)))"
)

# Entries of the state from which its own batch fills a matrix product: points are then not gathered.
const WIDE = 32

# What the way back works with. `pulled`: the cotangents of u, then (of few parameters) of p; `work`:
# what the scheme needs besides.
struct Backwards{T, W}
    x::Noisy{T}
    p::Vector{T}
    n::Int
    together::Bool
    whole::Gathered{T}
    drift::Gathered{T}
    diffusion::Gathered{T}
    pulled::Vector{T}
    total::Vector{T}
    w::Vector{T}                     # cotangents of drift and diffusion, one after the other
    f::Vector{T}
    g::Vector{T}
    y::Vector{T}
    mu::Vector{T}
    work::W
end

function Backwards(how, x::Noisy{T}, p::Vector{T}, n) where {T}
    width = n * max(x.columns, 1)
    # with many parameters each of the functions that the way back goes through gathers its points:
    # their Jacobians' products are then taken apart, which costs the function twice more
    of(f, nw, used) = used && n < WIDE ? Gathered(f, p, n, nw) : unused(f, p)
    by_whole, by_drift, by_diffusion = goes_through(how)
    whole = of(x.whole, n + width, by_whole)
    drift, diffusion = of(x.drift, n, by_drift), of(x.diffusion, width, by_diffusion)
    together = !(whole.batched || drift.batched || diffusion.batched)
    pulled = zeros(T, together ? n + length(p) : n)
    work = workspace(how, T, n, x.columns)
    return Backwards{T, typeof(work)}(
        x, p, n, together, whole, drift, diffusion, pulled, zeros(T, length(p)),
        zeros(T, n + width), zeros(T, n), zeros(T, width), zeros(T, n), zeros(T, n), work
    )
end

unused(f::Functions{T}, p) where {T} = Gathered{T}(
    f, p, false, 0, T[], T[], T[], T[], zeros(T, length(p))
)

# Which of whole, drift and diffusion.
goes_through(s::EulerMaruyama) = s.split || s.ahead ? (false, true, true) : (true, false, false)
goes_through(::Heun) = (true, false, false)
goes_through(::Milstein) = (true, false, true)
goes_through(::Rossler) = (false, true, true)

# Through one of the functions at (u, t): the cotangent of u is then in `pulled`.
function pull!(b::Backwards, f::Functions, gathered::Gathered, w, u, t)
    if b.together
        f.vjp_up(b.pulled, w, u, b.p, t)
        add!(b.total, true, view(b.pulled, (b.n + 1):length(b.pulled)))
    else
        f.vjp(b.pulled, w, u, b.p, t)
        gather!(gathered, one(eltype(w)), w, u, t)
    end
    return b.pulled
end
pull_whole!(b, u, t) = pull!(b, b.x.whole, b.whole, b.w, u, t)
pull_drift!(b, u, t) = pull!(b, b.x.drift, b.drift, b.w[1:b.n], u, t)
pull_diffusion!(b, u, t) = pull!(b, b.x.diffusion, b.diffusion, b.w[(b.n + 1):end], u, t)

function parameters(b::Backwards)
    b.together && return b.total
    return finish!(b.whole) .+ finish!(b.drift) .+ finish!(b.diffusion)
end

# The increments of the noise act on each entry of the state by themselves, or as a matrix does.
function apply!(y, b::Backwards, g, dW, factor = one(eltype(y)))          # y += factor * g dW
    n, columns = b.n, b.x.columns
    for k in 1:max(columns, 1), i in 1:n
        y[i] += factor * g[(k - 1) * n + i] * increment(dW, columns, k, i)
    end
    return y
end
function of_diffusion!(b::Backwards, lambda, dW, factor)     # w = factor * lambda dW'
    n, columns = b.n, b.x.columns
    for k in 1:max(columns, 1), i in 1:n
        b.w[n + (k - 1) * n + i] = factor * lambda[i] * increment(dW, columns, k, i)
    end
    return
end
increment(dW, columns, k, i) = columns == 0 ? dW[i] : columns < 0 ? dW[1] : dW[k]

# The weight of the difference of g in a derivative-free Milstein method.
milstein_weight(stratonovich, dW, columns, i, dt::T) where {T} =
    (increment(dW, columns, 1, i)^2 - (stratonovich ? zero(T) : dt)) / (2 * sqrt(dt))

function of_drift!(b::Backwards, lambda, factor)
    for i in 1:b.n
        b.w[i] = factor * lambda[i]
    end
    return
end

function back!(s::EulerMaruyama, b::Backwards{T}, lambda, u, t, dt, dW) where {T}
    at = s.ahead ? t + dt : t
    if !s.split && !s.ahead
        of_drift!(b, lambda, dt)
        of_diffusion!(b, lambda, dW, one(T))
        add!(lambda, one(T), pull_whole!(b, u, t))
        return
    end
    of_diffusion!(b, lambda, dW, one(T))
    if s.split
        b.x.drift.value(b.f, u, b.p, t)
        b.y .= u .+ dt .* b.f
        add!(lambda, one(T), pull_diffusion!(b, b.y, at))
        of_drift!(b, lambda, dt)
        add!(lambda, one(T), pull_drift!(b, u, t))
    else
        of_drift!(b, lambda, dt)
        add!(lambda, one(T), pull_diffusion!(b, u, at))
        add!(lambda, one(T), pull_drift!(b, u, t))
    end
    return
end

function back!(::Heun, b::Backwards{T}, lambda, u, t, dt, dW) where {T}
    b.x.drift.value(b.f, u, b.p, t)
    b.x.diffusion.value(b.g, u, b.p, t)
    b.y .= u .+ dt .* b.f
    apply!(b.y, b, b.g, dW)
    half = one(T) / 2
    of_drift!(b, lambda, half * dt)
    of_diffusion!(b, lambda, dW, half)
    copyto!(b.mu, 1, pull_whole!(b, b.y, t + dt), 1, b.n)
    b.y .= half .* lambda .+ b.mu                # of drift and noise at the step's begin
    of_drift!(b, b.y, dt)
    of_diffusion!(b, b.y, dW, one(T))
    add!(lambda, one(T), b.mu)
    add!(lambda, one(T), pull_whole!(b, u, t))
    return
end

function back!(s::Milstein, b::Backwards{T}, lambda, u, t, dt, dW) where {T}
    n, columns, root = b.n, b.x.columns, sqrt(dt)
    b.x.diffusion.value(b.g, u, b.p, t)
    if s.stratonovich
        b.y .= u .+ root .* b.g
    else
        b.x.drift.value(b.f, u, b.p, t)
        b.y .= u .+ dt .* b.f .+ root .* b.g
    end
    double(i) = milstein_weight(s.stratonovich, dW, columns, i, dt)
    for i in 1:n
        b.w[n + i] = lambda[i] * double(i)
    end
    copyto!(b.mu, 1, pull_diffusion!(b, b.y, t), 1, n)
    for i in 1:n
        b.w[i] = dt * (lambda[i] + (s.stratonovich ? zero(T) : b.mu[i]))
        b.w[n + i] = lambda[i] * (increment(dW, columns, 1, i) - double(i)) + root * b.mu[i]
    end
    add!(lambda, one(T), b.mu)
    add!(lambda, one(T), pull_whole!(b, u, t))
    return
end

function back!(s::Rossler, b::Backwards{T}, lambda, u, t, dt, dWZ) where {T}
    n, k, last, root = b.n, b.work, length(s.alpha), sqrt(dt)
    integrals!(k.chi, dWZ, dt)
    for i in 1:last
        copyto!(k.H0[i], u)
        copyto!(k.H1[i], u)
        for j in 1:(i - 1)
            add!(k.H0[i], dt * T(s.A0[i, j]), k.f[j])
            add!(k.H1[i], dt * T(s.A1[i, j]), k.f[j])
            iszero(s.B0[i, j]) || apply!(k.H0[i], b, k.g[j], k.chi[3], T(s.B0[i, j]))
            iszero(s.B1[i, j]) || add!(k.H1[i], root * T(s.B1[i, j]), k.g[j])
        end
        i == last && break                       # no stage is made of the last
        b.x.drift.value(k.f[i], k.H0[i], b.p, t + T(s.c0[i]) * dt)
        b.x.diffusion.value(k.g[i], k.H1[i], b.p, t + T(s.c1[i]) * dt)
    end
    for j in last:-1:1
        of_stage!(s, b, lambda, j, dt, root)
        fill!(k.of_H0[j], zero(T))
        fill!(k.of_H1[j], zero(T))
        all(iszero, view(b.w, 1:n)) || copyto!(
            k.of_H0[j], 1, pull_drift!(b, k.H0[j], t + T(s.c0[j]) * dt), 1, n
        )
        all(iszero, view(b.w, (n + 1):length(b.w))) || copyto!(
            k.of_H1[j], 1, pull_diffusion!(b, k.H1[j], t + T(s.c1[j]) * dt), 1, n
        )
    end
    for j in 1:last
        lambda .+= k.of_H0[j] .+ k.of_H1[j]
    end
    return
end

# dW and the iterated integrals of the noise over a step; `dWZ`: of W, then of Z.
function integrals!(chi, dWZ, dt::T) where {T}
    dW, chi1, chi2, chi3 = chi
    m = length(dW)
    for i in 1:m
        w = dWZ[i]
        dW[i] = w
        chi1[i] = (w^2 - dt) / (2 * sqrt(dt))
        chi2[i] = (w + dWZ[m + i] / sqrt(T(3))) / 2
        chi3[i] = (w^3 - 3 * w * dt) / (6 * dt)
    end
    return
end

# The cotangents of a stage's drift and diffusion, from those of the step and of the later stages.
function of_stage!(s::Rossler, b::Backwards{T}, lambda, j, dt, root) where {T}
    n, columns, k = b.n, b.x.columns, b.work
    for r in 1:n
        w = T(s.alpha[j]) * lambda[r]
        for i in (j + 1):length(s.alpha)
            w += T(s.A0[i, j]) * k.of_H0[i][r] + T(s.A1[i, j]) * k.of_H1[i][r]
        end
        b.w[r] = dt * w
    end
    for column in 1:max(columns, 1), r in 1:n
        w = zero(T)
        for (beta, chi) in zip(s.beta, k.chi)
            w += T(beta[j]) * increment(chi, columns, column, r)
        end
        w *= lambda[r]
        chi2 = increment(k.chi[3], columns, column, r)
        for i in (j + 1):length(s.alpha)
            w += T(s.B0[i, j]) * k.of_H0[i][r] * chi2 + root * T(s.B1[i, j]) * k.of_H1[i][r]
        end
        b.w[n + (column - 1) * n + r] = w
    end
    return
end

"""
    pathwise(handle, ts, source, cotangents) -> (du0, dp, events)

Gradient of `sum(cotangents .* u(ts))` with the noise and the steps held as they were, and the times of
jumps and other events: that of the numbers which the solver computed.
"""
function pathwise(
        h::NoisyHandle{T}, ts::Vector{T}, source::Vector{Int}, cotangents::Matrix{T}
    ) where {T}
    path!(h)
    how = Base.invokelatest(scheme, h.alg)
    return lock(h.model.lock) do
        copyto!(data(h.model.functions), h.c)
        Base.invokelatest(
            pathwise, how, h, h.sol.t, h.sol.u, noise_of(how, h), h.prob.p,
            places(h, h.sol.t, ts, source), cotangents
        )
    end::Tuple{Vector{T}, Vector{T}, Vector{Tuple{Vector{T}, Vector{T}}}}
end

# The noise that a step of the scheme reads, as the columns of a matrix.
noise_of(how, h::NoisyHandle) = h.path_w
noise_of(::Rossler, h::NoisyHandle) = both_noises(h)
both_noises(h) = vcat(h.path_w, matrix(columns_of.(h.sol.W.Z), size(h.path_w, 1)))

# Where an output is read: within which step, and how far in it, from 0 (not in it) to 1. At an event
# an output that was asked for lies before it, one that is read later behind it.
function places(h::NoisyHandle, times::Vector{T}, ts, source) where {T}
    first_of = Dict(first(g) => g for g in moments(h.log))
    at_point(k) = (k - 1, one(T))
    return map(eachindex(ts)) do i
        t = ts[i]
        if source[i] <= FIRST_EVENT
            group = first_of[FIRST_EVENT - source[i] + 1]
            before = h.side[i] == 1
            return at_point(before ? h.log[first(group)].position : h.log[last(group)].position + 1)
        end
        k = source[i] == FIXED ? searchsortedlast(times, t) : searchsortedfirst(times, t)
        k = clamp(k, 1, length(times))
        times[k] == t && return at_point(k)
        k = min(searchsortedlast(times, t), length(times) - 1)
        return k, T((t - times[k]) / (times[k + 1] - times[k]))
    end
end

function pathwise(
        how, h::NoisyHandle{T}, times::Vector{T}, us::Vector{Vector{T}}, path::Matrix{T},
        p::Vector{T}, where_::Vector{Tuple{Int, T}}, cotangents::Matrix{T}
    ) where {T}
    n, watch, extra = length(first(us)), Watch(), no_events(h)
    b = Backwards(how, h.model.functions, p, n)
    lambda, early, dW = zeros(T, n), zeros(T, n), zeros(T, size(path, 1))
    order = sortperm(where_)
    j, k, column = length(order), length(h.log), size(path, 2)
    for i in (length(times) - 1):-1:1
        watch(nothing, times[i], nothing)
        t, dt = times[i], times[i + 1] - times[i]
        fill!(early, zero(T))                    # of the state at the step's begin, by outputs
        while j >= 1 && where_[order[j]][1] == i
            theta = where_[order[j]][2]
            add!(lambda, theta, view(cotangents, :, order[j]))
            add!(early, 1 - theta, view(cotangents, :, order[j]))
            j -= 1
        end
        if dt == 0
            while k >= 1 && h.log[k].position == i
                lambda = through!(extra, h, h.log[k], lambda)
                k -= 1
            end
        else
            cut = get(h.cuts, k + 1, nothing)
            cut !== nothing && h.log[k + 1].t == times[i + 1] || (cut = nothing)
            for r in eachindex(dW)
                dW[r] = cut === nothing ? path[r, column] - path[r, column - 1] : cut.dW[r]
            end
            column -= 1
            if cut !== nothing                   # the state at its end is on the line to cut.t
                theta = dt / (cut.t - t)
                add!(early, 1 - theta, lambda)
                lambda .*= theta
                dt = cut.t - t
            end
            seek!(b, path, column)
            all(iszero, lambda) || back!(how, b, lambda, us[i], t, dt, dW)
        end
        add!(lambda, one(T), early)
    end
    for m in j:-1:1
        add!(lambda, one(T), view(cotangents, :, order[m]))
    end
    return lambda, parameters(b), extra
end

# Through an event whose time does not move.
function through!(extra, h, record::EventRecord{T}, lambda) where {T}
    event = h.events[record.index]
    event.affect === nothing && return lambda
    part, pulled = zeros(T, length(event.affect_p)), similar(lambda)
    event.affect.vjp_p(part, lambda, record.before, event.affect_p, record.t)
    event.affect.vjp(pulled, lambda, record.before, event.affect_p, record.t)
    extra[record.index][2] .+= part
    return pulled
end
