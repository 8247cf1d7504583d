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
# restarts at an output, stiffness is harmless, and the cost does not grow with the parameters. What
# happens where the state jumps stands in delayed_jumps.jl.

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

"States up to which the stages' equations are formed and factored; more are solved by products."
const FORMED = 48

# What the way back works with. `starts` and `stages` hold cotangents of the polynomials: of their
# values at the beginning of each step, and of their slopes at its nodes. What stands below
# `lags_move` is of one step, one column a node.
struct DelayedSweep{T, S}
    d::Delayed{T}
    sol::S
    p::Vector{T}
    mesh::Vector{T}
    passing::Vector{Vector{Tuple{Int, Int}}}   # at each point: which delayed time passes which jump
    jumps::Vector{T}                 # the times at which the state jumps: t0, and those of events
    of_jumps::Vector{T}              # the cotangents of these times
    same::T                          # how near two times count as the same
    tolerance::T                     # of what is solved by products
    starts::Matrix{T}
    stages::Array{T, 3}
    rate::Gathered{T}
    asked::Gathered{T}
    history::Gathered{T}
    lags_move::Bool                  # whether p or the state moves lags
    x::Matrix{T}
    at::Matrix{T}                    # the delayed times
    slopes::Array{T, 3}              # of the state there
    by_state::Array{T, 3}            # of the delayed times by u
    middle::Vector{T}                # the delayed times in the middle of the step
    times::Matrix{T}
    w::Vector{T}                     # cotangents of the slopes at the nodes
    v::Matrix{T}                     # and those of x that they give
    formed::Vector{Matrix{T}}        # Jacobians by x at the nodes and the stages' matrix, if formed
    one::NTuple{3, Vector{T}}        # of one node: w, x, v
end

function DelayedSweep(h::Handle{T}, events::Vector{T}, reltol) where {T}
    d, sol, p = h.model.functions, h.sol, h.prob.p
    n, width, asks = d.n, length(d.x), length(d.s)
    same = 64 * eps(max(abs(first(sol.t)), abs(last(sol.t))))
    jumps = [first(sol.t); events]
    mesh, passing = delayed_mesh(d, sol, p, same, reltol, jumps, h.prob.h.passed)
    steps = length(mesh) - 1
    return DelayedSweep{T, typeof(sol)}(
        d, sol, p, mesh, passing, jumps, zero(jumps), same,
        max(min(T(reltol) / 1000, T(1.0e-6)), 100 * eps(T)),
        zeros(T, n, steps + 1), zeros(T, n, STAGES, steps),
        Gathered(d.rhs, p, width, n), Gathered(d.asked, p, width, asks),
        Gathered(d.history, p, width, n), d.times_by_p || any(==(2), d.moved),
        zeros(T, width, STAGES), zeros(T, asks, STAGES), zeros(T, n, asks, STAGES),
        zeros(T, n, asks, STAGES), zeros(T, asks), zeros(T, asks, width), zeros(T, n * STAGES),
        zeros(T, width, STAGES), Matrix{T}[], (zeros(T, n), zeros(T, width), zeros(T, width))
    )
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

# The model at the nodes of step i.
function load_nodes!(b::DelayedSweep{T}, i) where {T}
    d, n = b.d, b.d.n
    half = (b.mesh[i] + b.mesh[i + 1]) / 2
    copyto!(b.middle, asked_times!(d, b.sol(half), b.p, half))
    for j in 1:STAGES
        t = node(b, i, j)
        copyto!(view(b.x, :, j), gather_node!(b, b.sol(t; continuity = :left), t, b.middle))
        copyto!(view(b.at, :, j), d.s)
        b.lags_move || continue
        for k in eachindex(d.s)
            delayed_slope!(view(b.slopes, :, k, j), b, b.at[k, j], b.middle[k])
        end
        any(==(2), d.moved) || continue
        d.asked.jac(b.times, d.x, b.p, t)
        b.by_state[:, :, j] .= view(b.times, :, 1:n)'
    end
    return
end
node(b::DelayedSweep{T}, i, j) where {T} =
    T(b.mesh[i] + DELAY_C[j] * (b.mesh[i + 1] - b.mesh[i]))

# Jacobians by x at the nodes, and the matrix of the stages' equations.
function form!(b::DelayedSweep{T}, i) where {T}
    d, n, step = b.d, b.d.n, b.mesh[i + 1] - b.mesh[i]
    isempty(b.formed) && append!(
        b.formed, (zeros(T, n, length(d.x)) for _ in 1:STAGES), (zeros(T, n * STAGES, n * STAGES),)
    )
    S = fill!(b.formed[end], zero(T))
    for j in 1:STAGES
        full = b.formed[j]
        d.rhs.jac(full, copyto!(b.one[2], view(b.x, :, j)), b.p, node(b, i, j))
        for k in eachindex(d.s)
            d.moved[k] == 2 || continue
            effect = view(full, :, range_of(d, k)) * view(b.slopes, :, k, j)
            mul!(view(full, :, 1:n), effect, view(b.by_state, :, k, j)', true, true)
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
    end
    for r in axes(S, 1)
        S[r, r] += one(T)
    end
    return S
end

# The cotangents of x at the nodes, in `v`, that those of the slopes there give.
function pull_nodes!(b::DelayedSweep, i, ws, formed::Bool)
    d, n = b.d, b.d.n
    w, x, v = b.one
    for j in 1:STAGES
        copyto!(w, 1, ws, (j - 1) * n + 1, n)
        if formed
            mul!(view(b.v, :, j), b.formed[j]', w)
            continue
        end
        d.rhs.vjp(v, w, copyto!(x, view(b.x, :, j)), b.p, node(b, i, j))
        for k in eachindex(d.s)
            d.moved[k] == 2 || continue
            c = dot(view(b.slopes, :, k, j), view(v, range_of(d, k)))
            axpy!(c, view(b.by_state, :, k, j), view(v, 1:n))
        end
        copyto!(view(b.v, :, j), v)
    end
    return b.v
end

# What the slopes at the nodes of step i do to each other, transposed.
function coupled!(out, b::DelayedSweep{T}, i, ws) where {T}
    d, n, step = b.d, b.d.n, b.mesh[i + 1] - b.mesh[i]
    pull_nodes!(b, i, ws, false)
    fill!(out, zero(T))
    for j in 1:STAGES, l in 1:STAGES
        to = view(out, ((l - 1) * n + 1):(l * n))
        axpy!(step * T(DELAY_A[j, l]), view(b.v, 1:n, j), to)
        for k in eachindex(d.s)
            own, theta = within(b, i, j, k)
            own && axpy!(step * T(integral(l, theta)), view(b.v, range_of(d, k), j), to)
        end
    end
    return out
end

function step_back!(b::DelayedSweep{T}, i) where {T}
    d, n = b.d, b.d.n
    scatter!(b, i, one(T), view(b.starts, :, i + 1))
    right = vec(b.stages[:, :, i])
    iszero(right) && return
    load_nodes!(b, i)
    formed = n <= FORMED
    formed || solved_by_products!(b.w, (out, w) -> coupled!(out, b, i, w), right, b.tolerance) ||
        (formed = true)
    if formed
        ldiv!(lu!(form!(b, i); check = false)', copyto!(b.w, right))
        all(isfinite, b.w) || error(
            "the adjoint's stage equations are singular: the model's Jacobian is not finite on " *
                "the solution"
        )
    end
    pull_nodes!(b, i, b.w, formed)
    for j in 1:STAGES
        node_back!(b, i, j)
    end
    return
end

# `x - coupled(x) = right` by GMRES (Saad and Schultz, SIAM J. Sci. Stat. Comput. 7, 1986); false
# where that takes more than a few products.
function solved_by_products!(x, coupled!::F, right::Vector{T}, tolerance) where {F, T}
    most, size = 24, norm(right)
    basis, H = [right ./ size], zeros(T, most + 1, most)
    for k in 1:most
        new = basis[k] .- coupled!(similar(right), basis[k])
        for i in 1:k
            H[i, k] = dot(basis[i], new)
            axpy!(-H[i, k], basis[i], new)
        end
        H[k + 1, k] = norm(new)
        isfinite(H[k + 1, k]) || return false
        target = [size; zeros(T, k)]
        y = H[1:(k + 1), 1:k] \ target
        if norm(H[1:(k + 1), 1:k] * y .- target) <= tolerance * size
            fill!(x, zero(T))
            foreach((c, v) -> axpy!(c, v, x), y, basis)
            return true
        end
        push!(basis, new ./ H[k + 1, k])
    end
    return false
end

# Whether the k-th delayed state at node j lies within step i itself, and where.
function within(b::DelayedSweep{T}, i, j, k) where {T}
    before(b, b.middle[k]) && return false, zero(T)
    m, theta = place(b, b.at[k, j], b.middle[k])
    return m == i, theta
end

# What the cotangent of the slope at a node does to all that the slope depends on.
function node_back!(b::DelayedSweep{T}, i, j) where {T}
    d, n, t = b.d, b.d.n, node(b, i, j)
    w, x, _ = b.one
    copyto!(w, 1, b.w, (j - 1) * n + 1, n)
    copyto!(x, view(b.x, :, j))
    view(b.starts, :, i) .+= view(b.v, 1:n, j)
    gather!(b.rate, one(T), w, x, t)
    for k in eachindex(d.s)
        q = b.v[range_of(d, k), j]
        if before(b, b.middle[k])
            d.history_by_p && gather!(b.history, one(T), q, x, b.at[k, j])
            continue
        end
        m, theta = place(b, b.at[k, j], b.middle[k])
        m == i ? (view(b.starts, :, i) .+= q) : scatter!(b, m, theta, q)
    end
    d.times_by_p || return
    of_times = [dot(view(b.slopes, :, k, j), view(b.v, range_of(d, k), j)) for k in eachindex(d.s)]
    gather!(b.asked, one(T), of_times, x, t)
    return
end

function adjoint(
        h::Handle{T, <:Model{T, <:Delayed}}, ts::Vector{T}, source::Vector{Int},
        cotangents::Matrix{T}, of_events::Vector{Float64}, sensealg, abstol, reltol,
        by_times::Bool = true
    ) where {T}
    densify!(h)
    return lock(h.model.lock) do
        copyto!(data(h.model.functions), h.c)
        o = Outputs(h, ts, source, cotangents, of_events)
        delayed_adjoint(h, o, ts, cotangents, reltol, by_times)
    end
end

function delayed_adjoint(
        h::Handle{T}, o::Outputs{T}, ts, cotangents, reltol, by_times
    ) where {T}
    watch, extra = Watch(), no_events(h)
    b = DelayedSweep(h, T[h.log[first(group)].t for group in o.groups], reltol)
    before_all = outputs!(b, h, o, ts, cotangents)
    jump_back!(b, h, o, extra, length(b.mesh), by_times)
    for i in (length(b.mesh) - 1):-1:1
        watch(nothing, b.mesh[i], nothing)
        step_back!(b, i)
        jump_back!(b, h, o, extra, i, by_times)
    end
    dp = finish!(b.rate) .+ finish!(b.asked) .+ finish!(b.history)
    du0 = b.starts[:, 1] .+ before_all
    by_times || return Gradient{T}(du0, dp, 0.0, Float64[], extra)
    at_start = rate_beside(b, 1, 1, h.prob.u0)
    dtimes = output_slopes(h, o, ts, cotangents, at_start)
    return Gradient{T}(du0, dp, Float64(b.of_jumps[1] - dot(du0, at_start)), dtimes, extra)
end
