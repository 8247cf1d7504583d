# Delay equations u'(t) = f(u(t), u(s_1), ..., u(s_K), p, t) with the state before t0 given by a
# history function. What needs DelayDiffEq stands in ext/PySciMLDelayExt.jl, so that nobody else
# loads it.

"""
    Delayed{T}

The functions of a delay equation over one data vector, all of them of `(x, p, t)` where
`x = [u; u(s_1); ...; u(s_K)]`: the right-hand side `rhs`; the times `asked` `s_1, ..., s_K`, which
depend on `u`, `p` and `t`; the `history` at `t`, which depends on `p` and `t`; and all of them one
after the other (`whole`). `moved` says what moves each lag `t - s_k` besides p: 0 nothing, 1 the
time, 2 the state; `times_by_p` and `history_by_p`, whether p moves the times and the history. `log`
holds the events of the solve that goes on, and `passings` where moving lags bring jumps back.
"""
struct Delayed{T}
    whole::Functions{T}
    rhs::Functions{T}
    asked::Functions{T}
    history::Functions{T}
    moved::Vector{Int}
    times_by_p::Bool
    history_by_p::Bool
    n::Int
    x::Vector{T}
    s::Vector{T}
    at::Vector{T}
    log::Base.RefValue{Vector{EventRecord{T}}}
    passings::Passings{T}
end
function delayed(
        whole::Functions{T}, rhs, asked, history, moved::Vector{Int}, times_by_p, history_by_p, n
    ) where {T}
    over_(f) = over(f, data(whole))
    return Delayed{T}(
        whole, over_(rhs), over_(asked), over_(history), moved, times_by_p, history_by_p, n,
        zeros(T, n * (1 + length(moved))), zeros(T, length(moved)), zeros(T, n),
        Ref(EventRecord{T}[]), Passings{T}(length(moved))
    )
end
data(d::Delayed) = data(d.whole)
clone(d::Delayed) = delayed(
    clone(d.whole), clone(d.rhs), clone(d.asked), clone(d.history), d.moved, d.times_by_p,
    d.history_by_p, d.n
)

"The `k`-th delayed value within `x`."
range_of(d::Delayed, k) = (k * d.n + 1):((k + 1) * d.n)

# `x` and `s` at a state: `value!(to, s, k)` gives the state at an earlier time, which the k-th call
# of h asks for. Equal times are looked up once. A step that tries a state whose lag is negative sees
# the present; one that ends there ends the solve (`Pass`).
function gather!(value!::F, d::Delayed{T}, u, p, t) where {F, T}
    x, s, n = d.x, d.s, d.n
    copyto!(x, 1, u, 1, n)
    d.asked.value(s, x, p, t)
    for k in eachindex(s)
        known = findfirst(==(s[k]), view(s, 1:(k - 1)))
        if known !== nothing
            copyto!(x, k * n + 1, x, known * n + 1, n)
            continue
        end
        isnan(s[k]) ? fill!(d.at, T(NaN)) : value!(d.at, min(s[k], t), k)
        copyto!(x, k * n + 1, d.at, 1, n)
    end
    return x
end

"""
The history function as SciML calls it, and its derivative by time. It is the problem's own, and so
holds what happened in the solve: when which delayed time `passed` which jump.
"""
struct History{T} <: Function
    d::Delayed{T}
    passed::Vector{Tuple{T, Int, T}}
end
History(d::Delayed{T}) where {T} = History{T}(d, Tuple{T, Int, T}[])
(h::History)(out, p, t) = (h.d.history.value(out, h.d.x, p, t); nothing)
(h::History{T})(p, t) where {T} = (out = zeros(T, h.d.n); h(out, p, t); out)
(h::History)(out, p, t, ::Type{Val{1}}) = (h.d.history.tgrad(out, h.d.x, p, t); nothing)

# The state at s for a step from `start`, of which t is a stage. The state jumps at t0, from the
# history's value to u0, and at events: a step that ends where s passes such a moment has seen what
# was before it only, and one that begins there what comes after it.
function earlier!(out, d::Delayed, h, p, s, k, t, t0, start)
    d.moved[k] > 0 && return seen!(out, d, h, p, s, k, Val{0})
    near = 8 * eps(max(abs(t0), abs(t), abs(t - s)))
    begins = t - start <= near
    if abs(s - t0) <= near
        begins ? after!(out, h, p, t0) : d.history.value(out, d.x, p, t0)
    else
        event = event_near(d.log[], s, near)
        isnan(event) ? h(out, p, s) : begins ? after!(out, h, p, event) : h(out, p, event)
    end
    return
end

# The time of an event at s, or NaN.
function event_near(log::Vector{EventRecord{T}}, s, near) where {T}
    i = searchsortedfirst(log, s - near; lt = (record, at) -> record.t < at)
    return i <= length(log) && log[i].t <= s + near ? log[i].t : T(NaN)
end

struct DelayedRate{T} <: Function
    d::Delayed{T}
end
function (f::DelayedRate)(du, u, h, p, t)
    d = f.d
    t0, start = start_of(h)
    gather!((out, s, k) -> earlier!(out, d, h, p, s, k, t, t0, start), d, u, p, t)
    d.rhs.value(du, d.x, p, t)
    return nothing
end

"""
    start_of(h)

The beginning of the time span and of the present step, from the history that SciML calls a function
with; the extension adds the method. The user's own, which guesses of the first step get, has neither.
"""
start_of(::History{T}) where {T} = (T(Inf), T(Inf))

"The state at a time of the past, after what jumps there; the extension adds the method."
function after! end

struct DelayedJacobian{T} <: Function
    d::Delayed{T}
    full::Base.RefValue{Matrix{T}}   # by all of x, laid out by the first call
    asked::Matrix{T}
    slope::Vector{T}
end
DelayedJacobian(d::Delayed{T}) where {T} = DelayedJacobian{T}(
    d, Ref(Matrix{T}(undef, 0, 0)), zeros(T, length(d.s), length(d.x)), zeros(T, d.n)
)
function (j::DelayedJacobian{T})(J, u, h, p, t) where {T}
    d, n = j.d, j.d.n
    isempty(j.full[]) && (j.full[] = zeros(T, n, length(d.x)))
    full = j.full[]
    t0, start = start_of(h)
    gather!((out, s, k) -> earlier!(out, d, h, p, s, k, t, t0, start), d, u, p, t)
    d.rhs.jac(full, d.x, p, t)
    copyto!(J, view(full, :, 1:n))
    any(==(2), d.moved) || return nothing
    d.asked.jac(j.asked, d.x, p, t)
    for k in eachindex(d.s)
        d.moved[k] == 2 && d.s[k] <= t || continue
        seen!(j.slope, d, h, p, d.s[k], k, Val{1})
        mul!(J, view(full, :, range_of(d, k)) * j.slope, view(j.asked, k, 1:n)', true, true)
    end
    return nothing
end

function Model(d::Delayed{T}, n::Integer) where {T}
    f = DDEFunction{true, FullSpecialize}(
        DelayedRate(d); jac = DelayedJacobian(d), jac_prototype = zeros(T, held(n), held(n))
    )
    return Model{T, typeof(d), typeof(f)}(d, f, Int(n), nothing, nothing, ReentrantLock(), [])
end
clone(m::Model{T, <:Delayed}) where {T} = Model(clone(m.functions), m.n)

# DelayDiffEq keeps the steps in any case; and what it saves between the ends of a first step that is
# cut short by a stop was wrong by implicit methods (DelayDiffEq 6.0).
keeps_steps(::Model{T, <:Delayed}) where {T} = true

function problem(m::Model{T, <:Delayed}, u0, p, tspan, ::Nothing, ::Nothing) where {T}
    d, t0 = m.functions, tspan[1]
    copyto!(d.x, 1, u0, 1, d.n)
    d.asked.value(d.s, d.x, p, t0)
    constant = T[t0 - d.s[k] for k in eachindex(d.s) if d.moved[k] == 0]
    # lags that move are not among them: see delayed_passings.jl
    return DDEProblem(
        m.f, u0, History(d), tspan, p; constant_lags = unique!(sort!(constant))
    )
end

# `flags`: `moved` of each delayed time, then `times_by_p` and `history_by_p`, as in `Delayed`.
function c_new_delayed(
        functions::Int64, rhs::Int64, asked::Int64, history::Int64, n::Int64, flags::Ptr{Int64},
        k::Int64, id::Ptr{Int64}, message::Ptr{Ptr{UInt8}}
    )::Cint
    return guarded(message) do
        values = vector(Int, flags, k)
        made = delayed(
            (lookup(FUNCTIONS, i) for i in (functions, rhs, asked, history))...,
            values[1:(end - 2)], values[end - 1] != 0, values[end] != 0, Int(n)
        )
        unsafe_store!(id, register!(MODELS, Model(made, n)))
    end
end
