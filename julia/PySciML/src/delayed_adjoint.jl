# Gradients of delay equations: the linearised equation by collocation on the solution's own mesh,
# transposed.
#
# A change of the inputs moves the solution by d(t), the solution of
#     d' = f_u d + sum_k f_{h_k} (d(s_k) + u'(s_k) ds_k) + f_p dp,     ds_k = s_{k,u} d + s_{k,p} dp,
# where d(s) is the change of u0 at t0, and that of the history before. On every step d is the
# polynomial that satisfies this at the nodes of the 5-stage Radau IIA rule (Hairer and Wanner,
# "Solving Ordinary Differential Equations II", section IV.5; Bellen and Zennaro, "Numerical Methods
# for Delay Differential Equations", section 6, for collocation of delay equations). What is
# computed is the transpose of that linear map, step by step backwards: a delayed value hands its
# cotangent to the polynomial of the step that it lies in, which is gone through later. So outputs
# between steps, lags shorter than a step and lags that depend on the state are all alike, nothing
# restarts at an output, stiffness is harmless, and the cost does not grow with the parameters.

const STAGES = 5

# Nodes of the Radau IIA rule on (0, 1], and powers' coefficients of the integrals from 0 of the
# Lagrange polynomials through them, one column a node.
function radau(s)
    # the inner nodes are the roots of the Jacobi polynomial P^(1,0), as eigenvalues
    a = [-1 / ((2k + 1) * (2k + 3)) for k in 0:(s - 2)]
    b = [sqrt(k * (k + 1) * k * (k + 1) / ((2k) * (2k + 2))) * 2 / (2k + 1) for k in 1:(s - 2)]
    c = [(eigvals(SymTridiagonal(a, b)) .+ 1) ./ 2; 1.0]
    lagrange = inv([big(x)^m for x in c, m in 0:(s - 1)])
    return c, Float64.([lagrange[m, l] / m for m in 1:s, l in 1:s])
end
const DELAY_C, DELAY_B = radau(STAGES)
integral(l, theta) = theta * evalpoly(theta, ntuple(m -> DELAY_B[m, l], STAGES))
const DELAY_A = [integral(l, c) for c in DELAY_C, l in 1:STAGES]

# What the way back works with. `starts` and `stages` hold cotangents of the polynomials: of their
# values at the beginning of each step, and of their slopes at its nodes.
struct DelayedSweep{T, S}
    d::Delayed{T}
    sol::S
    p::Vector{T}
    mesh::Vector{T}
    passing::Vector{Vector{Int}}
    same::T                          # how near two times count as the same
    starts::Matrix{T}
    stages::Array{T, 3}
    rate::Gathered{T}
    asked::Gathered{T}
    history::Gathered{T}
    gap::Bool                        # the state jumps at t0, from the history to u0
    lags_move::Bool                  # whether what moves lags has to be followed
    full::NTuple{STAGES, Matrix{T}}  # Jacobians of the rate by x, at the nodes
    times::Matrix{T}                 # that of the delayed times
    slope::Vector{T}
    at::Matrix{T}                    # the delayed times at the nodes
    middle::Vector{T}
    system::Matrix{T}
    w::Vector{T}
    q::Vector{T}
end

function DelayedSweep(h::Handle{T}, lags_move::Bool) where {T}
    d, sol, p = h.model.functions, h.sol, h.prob.p
    n, width, asks = d.n, length(d.x), length(d.s)
    same = 64 * eps(max(abs(first(sol.t)), abs(last(sol.t))))
    mesh, passing = delayed_mesh(d, sol, p, same)
    steps = length(mesh) - 1
    d.history.value(d.at, d.x, p, mesh[1])
    return DelayedSweep{T, typeof(sol)}(
        d, sol, p, mesh, passing, same, zeros(T, n, steps + 1), zeros(T, n, STAGES, steps),
        Gathered(d.rhs, p, width, n), Gathered(d.asked, p, width, asks),
        Gathered(d.history, p, width, n), d.at != h.prob.u0, lags_move,
        ntuple(_ -> zeros(T, n, width), STAGES), zeros(T, asks, width), zeros(T, n),
        zeros(T, asks, STAGES), zeros(T, asks), zeros(T, n * STAGES, n * STAGES),
        zeros(T, n * STAGES), zeros(T, n)
    )
end

# The solver's steps, cut where a delayed time passes t0 unless that is the end of a step; and for
# each point of this mesh the delayed times that pass t0 there.
function delayed_mesh(d::Delayed{T}, sol, p, same) where {T}
    steps, t0 = unique(sol.t), first(sol.t)
    mesh, passing = copy(steps), Tuple{T, Int}[]
    ahead(t, k) = asked_times!(d, sol(t; continuity = :left), p, t)[k] > t0
    for k in eachindex(d.moved)
        past = ahead(t0, k)
        for i in 1:(length(steps) - 1)
            now = ahead(steps[i + 1], k)
            now == past && continue
            a, b = steps[i], steps[i + 1]
            while b - a > 2 * eps(b)
                t = (a + b) / 2
                ahead(t, k) == past ? (a = t) : (b = t)
            end
            past = now
            j = clamp(searchsortedfirst(mesh, b), 2, length(mesh))
            near = abs(mesh[j - 1] - b) < abs(mesh[j] - b) ? j - 1 : j
            if abs(mesh[near] - b) <= same
                b = mesh[near]
            else
                insert!(mesh, searchsortedfirst(mesh, b), b)
            end
            push!(passing, (b, k))
        end
    end
    return mesh, [[k for (at, k) in passing if at == t] for t in mesh]
end
asked_times!(d::Delayed, u, p, t) =
    (copyto!(d.x, 1, u, 1, d.n); d.asked.value(d.s, d.x, p, t); d.s)

# The step whose polynomial holds the state at s, and where s lies in it. At the steps' ends, where
# slopes may jump, `middle` tells which of the two steps: the delayed time in the middle of the step
# that s is asked for in.
function place(b::DelayedSweep{T}, s, middle = s) where {T}
    mesh = b.mesh
    i = clamp(searchsortedfirst(mesh, s) - 1, 1, length(mesh) - 1)
    if mesh[i + 1] - s <= b.same && middle > mesh[i + 1] && i + 1 < length(mesh)
        i += 1
    elseif s - mesh[i] <= b.same && middle < mesh[i] && i > 1
        i -= 1
    end
    return i, clamp((s - mesh[i]) / (mesh[i + 1] - mesh[i]), zero(T), one(T))
end

# The state or its slope at a place of a step, from within that step.
function state_in(b::DelayedSweep, i, theta, s, ::Type{D}) where {D}
    theta == 0 && return b.sol(b.mesh[i], D; continuity = :right)
    theta == 1 && return b.sol(b.mesh[i + 1], D; continuity = :left)
    return b.sol(clamp(s, b.mesh[i], b.mesh[i + 1]), D; continuity = :left)
end

# The cotangent q of the state at a place of a step.
function scatter!(b::DelayedSweep{T}, i, theta, q) where {T}
    step = b.mesh[i + 1] - b.mesh[i]
    for l in 1:STAGES
        weight = step * T(integral(l, theta))
        for r in eachindex(q)
            b.stages[r, l, i] += weight * q[r]
        end
    end
    for r in eachindex(q)
        b.starts[r, i] += q[r]
    end
    return
end

# Whether a delayed time is one of the history: none passes t0 within a step.
before(b::DelayedSweep, middle) = middle < b.mesh[1]

# x and s at a node; `middle` are the delayed times in the middle of the step.
function gather_node!(b::DelayedSweep, u, t, middle)
    d, p = b.d, b.p
    asked_times!(d, u, p, t)
    index = Dict{eltype(d.s), Int}()
    for k in eachindex(d.s)
        get!(index, d.s[k], k)
    end
    value! = function (out, s)
        if before(b, middle[index[s]])
            d.history.value(out, d.x, p, s)
        else
            copyto!(out, state_in(b, place(b, s, middle[index[s]])..., s, Val{0}))
        end
    end
    return gather!(value!, d, u, p, t)
end

# The derivative of the delayed state by its time, in `slope`.
function delayed_slope!(b::DelayedSweep, s, middle, t)
    d = b.d
    if before(b, middle)
        d.history.tgrad(b.slope, d.x, b.p, s)
    else
        copyto!(b.slope, state_in(b, place(b, s, middle)..., s, Val{1}))
    end
    return b.slope
end

function step_back!(b::DelayedSweep{T}, i) where {T}
    d, n, p, S = b.d, b.d.n, b.p, b.system
    from, step = b.mesh[i], b.mesh[i + 1] - b.mesh[i]
    scatter!(b, i, one(T), view(b.starts, :, i + 1))
    iszero(view(b.stages, :, :, i)) && return
    half = from + step / 2
    copyto!(b.middle, asked_times!(d, b.sol(half), p, half))
    fill!(S, zero(T))
    xs = ntuple(STAGES) do j
        t = T(from + DELAY_C[j] * step)
        x = copy(gather_node!(b, b.sol(t; continuity = :left), t, b.middle))
        copyto!(view(b.at, :, j), d.s)
        full = b.full[j]
        d.rhs.jac(full, x, p, t)
        if b.lags_move                # by the state: a part of the Jacobian by u
            d.asked.jac(b.times, x, p, t)
            for k in eachindex(d.s)
                d.moved[k] == 2 || continue
                delayed_slope!(b, b.at[k, j], b.middle[k], t)
                effect = view(full, :, range_of(d, k)) * b.slope
                mul!(view(full, :, 1:n), effect, view(b.times, k, 1:n)', true, true)
            end
        end
        for l in 1:STAGES
            block = view(S, ((j - 1) * n + 1):(j * n), ((l - 1) * n + 1):(l * n))
            axpy!(-step * T(DELAY_A[j, l]), view(full, :, 1:n), block)
            for k in eachindex(d.s)
                own, theta = within(b, i, j, k)
                own || continue
                axpy!(-step * T(integral(l, theta)), view(full, :, range_of(d, k)), block)
            end
        end
        x
    end
    for r in axes(S, 1)
        S[r, r] += one(T)
    end
    copyto!(b.w, view(b.stages, :, :, i))
    ldiv!(lu!(S; check = false)', b.w)
    all(isfinite, b.w) || error(
        "the adjoint's stage equations are singular: the model's Jacobian is not finite on the " *
            "solution"
    )
    for j in 1:STAGES
        node_back!(b, i, j, xs[j], T(from + DELAY_C[j] * step))
    end
    return
end

# Whether the k-th delayed state at node j lies within step i itself, and where.
function within(b::DelayedSweep{T}, i, j, k) where {T}
    s = b.at[k, j]
    before(b, b.middle[k]) && return false, zero(T)
    m, theta = place(b, s, b.middle[k])
    return m == i, theta
end

# What the cotangent of the slope at a node does to all that the slope depends on.
function node_back!(b::DelayedSweep{T}, i, j, x, t) where {T}
    d, n, full = b.d, b.d.n, b.full[j]
    w = b.w[((j - 1) * n + 1):(j * n)]
    mul!(view(b.starts, :, i), view(full, :, 1:n)', w, true, true)
    copyto!(d.x, x)
    gather!(b.rate, one(T), w, x, t)
    of_times = zeros(T, length(d.s))
    for k in eachindex(d.s)
        s = b.at[k, j]
        mul!(b.q, view(full, :, range_of(d, k))', w)
        if b.lags_move
            of_times[k] = dot(delayed_slope!(b, s, b.middle[k], t), b.q)
        end
        if before(b, b.middle[k])
            gather!(b.history, one(T), b.q, x, s)
            continue
        end
        m, theta = place(b, s, b.middle[k])
        m == i ? (view(b.starts, :, i) .+= b.q) : scatter!(b, m, theta, b.q)
    end
    b.lags_move && gather!(b.asked, one(T), of_times, x, t)
    return
end

# Where the state jumps at t0 the slope jumps when a delayed time passes t0, and that moment moves
# with what moves the lag: by `dt`, it moves the solution after it by (f- - f+) dt. The return value
# is the cotangent of t0, with which the moment moves too.
function jump_back!(b::DelayedSweep{T}, i, u0) where {T}
    d, n, p, t, t0 = b.d, b.d.n, b.p, b.mesh[i], b.mesh[1]
    of_start = zero(T)
    mid(a, c) = copy(asked_times!(d, b.sol((a + c) / 2), p, (a + c) / 2))
    earlier, later = mid(b.mesh[i - 1], t), mid(t, b.mesh[i + 1])
    x = copy(gather_node!(b, b.sol(t; continuity = :left), t, earlier))
    moving, slopes = zeros(T, length(d.s)), zeros(T, length(d.s))
    f_before, f_after = zeros(T, n), zeros(T, n)
    d.asked.jac(b.times, x, p, t)
    d.asked.tgrad(slopes, x, p, t)
    lambda = b.starts[:, i]
    for k in b.passing[i]
        (earlier[k] < t0) == (later[k] < t0) && continue
        d.rhs.value(f_before, x, p, t)
        later[k] < t0 ? d.history.value(d.at, x, p, t0) : copyto!(d.at, u0)
        copyto!(x, k * n + 1, d.at, 1, n)
        d.rhs.value(f_after, x, p, t)
        s_u = b.times[k, 1:n]
        c = dot(lambda, f_before .- f_after) / (slopes[k] + dot(s_u, f_before))
        view(b.starts, :, i) .-= c .* s_u
        fill!(moving, zero(T))
        moving[k] = one(T)
        gather!(b.asked, -c, moving, x, t)
        of_start += c
    end
    return of_start
end

function adjoint(
        h::Handle{T, <:Model{T, <:Delayed}}, ts::Vector{T}, source::Vector{Int},
        cotangents::Matrix{T}, of_events::Vector{Float64}, sensealg, abstol, reltol,
        by_times::Bool = true
    ) where {T}
    densify!(h)
    return lock(h.model.lock) do
        copyto!(data(h.model.functions), h.c)
        delayed_adjoint(h, ts, cotangents)
    end
end

function delayed_adjoint(h::Handle{T}, ts::Vector{T}, cotangents::Matrix{T}) where {T}
    d, u0, watch = h.model.functions, h.prob.u0, Watch()
    t0 = h.prob.tspan[1]
    b = DelayedSweep(h, true)
    for (j, t) in enumerate(ts)
        scatter!(b, place(b, t)..., view(cotangents, :, j))
    end
    of_start = zero(T)
    for i in (length(b.mesh) - 1):-1:1
        watch(nothing, b.mesh[i], nothing)
        step_back!(b, i)
        b.gap && i > 1 && !isempty(b.passing[i]) && (of_start += jump_back!(b, i, u0))
    end
    dp = finish!(b.rate) .+ finish!(b.asked) .+ finish!(b.history)
    slope(t) = state_at(h.sol, t, Val{1})
    dtimes = Float64[dot(view(cotangents, :, j), slope(t)) for (j, t) in enumerate(ts)]
    du0 = b.starts[:, 1]
    return Gradient{T}(du0, dp, Float64(of_start - dot(du0, slope(t0))), dtimes, [])
end
