# Jump processes: what happens at random times, at rates that are functions of the state. What needs
# JumpProcesses stands in ext/PySciMLJumpExt.jl, so that nobody else loads it.

"""
    Jumps{T}

How the jumps among a problem's events are drawn: those from number `first` on, in the order in
which JumpProcesses numbers them (reactions, jumps of constant rate, then of variable rate, each of
these followed by its bounds). `dependent`: which jumps' rates each jump changes; `by_variable` and
`variables`: which jumps each entry of the state moves, and the reverse; empty where not known.
With `keep` the states around every jump are kept, for gradients.
"""
struct Jumps{T}
    aggregator::Any
    first::Int
    dependent::Vector{Vector{Int}}
    by_variable::Vector{Vector{Int}}
    variables::Vector{Vector{Int}}
    seed::UInt64
    keep::Bool
end

"""
    jump_callbacks(prob, jumps, events, log, watch, cuts) -> CallbackSet

SciML's form of the events, jumps among them; the extension adds the method. Steps of stochastic
equations that jumps have cut are added to `cuts` by their record's number.
"""
function jump_callbacks end

"""
    Cut{T}

A step of a stochastic equation that a jump has cut: it went on to `t`, with the noise `dW`. The state
at the jump is on the line between the step's ends.
"""
struct Cut{T}
    t::T
    dW::Vector{T}
end

"""
    integrate_counts(prob, jumps, events, log, options, dense, watch) -> (sol, reached)

Solve a pure jump process; the extension adds the method.
"""
function integrate_counts end

# What JumpProcesses calls: concrete types, whatever the model. `number`: the user's, for messages.
struct Rate{T} <: Function
    f::Functions{T}
    p::Vector{T}
    out::Vector{T}
    number::Int
    slack::T                         # so far below zero a rate counts as zero
end
Rate(e::Event{T}, slack = zero(T), number = e.direction) where {T} =
    Rate{T}(e.condition, e.condition_p, zeros(T, 1), number, slack)
function (r::Rate{T})(u, p, t) where {T}
    r.f.value(r.out, u, r.p, T(t))
    value = @inbounds r.out[1]
    value >= 0 && isfinite(value) && return value
    return -r.slack <= value < 0 ? zero(T) : wrong_rate(r, value, t)
end
@noinline wrong_rate(r, value, t) = error(
    "the rate of jump $(r.number) is $value at t = $t; a rate must be finite and not negative, " *
        "e.g. by torch.relu"
)

# Thinning draws by the bound and keeps as many as the rate says: a rate above it is cut off there.
# `most` is the bound that was last asked for, until when it holds is the aggregator's to know.
struct AtMost{T} <: Function
    rate::Rate{T}
    most::Base.RefValue{T}
end
(b::AtMost)(u, p, t) = (b.most[] = b.rate(u, p, t))

struct BelowBound{T} <: Function
    rate::Rate{T}
    most::Base.RefValue{T}
end
function (b::BelowBound{T})(u, p, t) where {T}
    value = b.rate(u, p, t)
    return value <= b.most[] + sqrt(eps(T)) * value ? value : above_bound(b, value, t)
end
@noinline above_bound(b, value, t) = error(
    "the rate of jump $(b.rate.number) is $value at t = $t, above its bound urate, which was " *
        "$(b.most[]); give a larger urate, or a shorter rateinterval"
)

struct Fire{T} <: Function
    index::Int
    events::Vector{Event{T}}
    log::Vector{EventRecord{T}}
    keep::Bool
    before::Vector{T}
end
function (a::Fire)(integrator)
    event = a.events[a.index]
    copyto!(a.before, integrator.u)
    event.affect.value(integrator.u, a.before, event.affect_p, integrator.t)
    note!(a.log, integrator, a.index, a.before, a.keep)
    return nothing
end

function note!(log::Vector{EventRecord{T}}, integrator, index, before, keep) where {T}
    states = keep ? (copy(before), copy(integrator.u)) : (T[], T[])
    push!(log, EventRecord{T}(integrator.t, index, states..., length(integrator.sol.t)))
    return
end

"An algorithm with the jumps that go on beside it."
struct WithJumps{A, T}
    alg::A
    jumps::Jumps{T}
end
needs_jacobian(w::WithJumps, n) = needs_jacobian(w.alg, n)

function integrate(
        prob, w::WithJumps, o::Options{T}, dense::Bool, events, log, watch = watching()
    ) where {T}
    callback = jump_callbacks(prob, w.jumps, events, log, watch, Dict{Int, Cut{T}}())
    return integrate(prob, w.alg, o, dense, events, log, watch; callback)
end

"""
    run_jumps(model, alg, u0, p, c, tspan, options, events, jumps) -> Handle

Solve an ODE with jumps. These are events of the solution like any other, at times that nothing
moves.
"""
function run_jumps(
        model::Model{T}, @nospecialize(alg), u0, p, c, tspan, options, events, jumps
    ) where {T}
    h = run(model, WithJumps(alg, jumps), u0, p, c, tspan, options; events)
    h.alg = alg
    return h
end

# -- pure jump processes ---------------------------------------------------------------------------

"""
    CountsHandle{T}

A solved jump process on a state that stays as it is between jumps. Where `dense`, `sol` holds the
state after every jump; else it is solved again, by the same seed, when these are asked for.
"""
mutable struct CountsHandle{T, M} <: Solved{T}
    model::M
    events::Vector{Event{T}}
    log::Vector{EventRecord{T}}
    jumps::Jumps{T}
    options::Options{T}
    prob::Any
    sol::Any
    reached::T
    dense::Bool
    t::Vector{Float64}
    u::Matrix{T}
    source::Vector{Int}
    event_times::Vector{Float64}
    event_indices::Vector{Int}
end

"`every`: whether the states after jumps are outputs, where no times were asked for."
function run_counts(
        model::Model{T}, u0::Vector{T}, p::Vector{T}, tspan::Tuple{T, T}, options::Options{T},
        events, jumps::Jumps{T}, every::Bool
    ) where {T}
    m = acquire(model)
    try
        log = EventRecord{T}[]
        dense = jumps.keep || every
        prob = SciMLBase.DiscreteProblem(u0, tspan, p)
        sol, reached = Base.invokelatest(
            integrate_counts, prob, jumps, events, log, options, dense, watching()
        )
        h = CountsHandle{T, typeof(m)}(
            m, events, log, jumps, options, prob, sol, reached, dense, Float64[],
            Matrix{T}(undef, 0, 0), Int[], Float64[], Int[]
        )
        Base.invokelatest(collect_counts!, h, sol, every)
        return h
    finally
        release(m)
    end
end

function collect_counts!(h::CountsHandle{T}, sol, every) where {T}
    saveat, (t0, t1) = h.options.saveat, h.prob.tspan
    if !isempty(saveat)
        h.t = [t for t in saveat if t <= h.reached]
        h.source = collect(0:(length(h.t) - 1))
        marked = every ? sort!(unique!([record.t for record in h.log])) : T[]
        if !isempty(marked)
            h.source = [h.source; fill(FIXED, length(marked))]
            h.t = [h.t; marked]
            order = sortperm(h.t; alg = MergeSort)
            h.t, h.source = h.t[order], h.source[order]
        end
    else
        h.t = every ? Float64[t for t in sol.t if t <= h.reached] : Float64[t0, h.reached]
        h.source = sources(h.t, (t0, t1))
    end
    h.u = counts_at(sol, h.t, h.model.n)
    return
end

# The state at each time, after what happens there.
function counts_at(sol, ts, n)
    out = Matrix{eltype(eltype(sol.u))}(undef, n, length(ts))
    for (j, t) in enumerate(ts)
        out[:, j] = sol.u[max(searchsortedlast(sol.t, t), 1)]
    end
    return out
end

function densify!(h::CountsHandle)
    h.dense && return h
    lock(h.model.lock) do
        log = empty(h.log)
        h.sol, h.reached = Base.invokelatest(
            integrate_counts, h.prob, h.jumps, h.events, log, h.options, true, watching()
        )
        h.dense = true
    end
    return h
end

function interpolate(h::CountsHandle, ts, deriv::Integer)
    densify!(h)
    return Base.invokelatest(counts_at, h.sol, ts, h.model.n)
end

"""
    back_through_counts(handle, ts, cotangents) -> (du0, events)

Gradient of `sum(cotangents .* u(ts))` by the state at the start and the affects' parameters, with
the times of the jumps, and which jumps they are, held.
"""
function back_through_counts(h::CountsHandle{T}, ts::Vector{T}, cotangents::Matrix{T}) where {T}
    lambda, extra, j = zeros(T, h.model.n), no_events(h), length(ts)
    for record in Iterators.reverse(h.log)
        while j >= 1 && ts[j] >= record.t
            add!(lambda, one(T), view(cotangents, :, j))
            j -= 1
        end
        lambda = through!(extra, h, record, lambda)
    end
    for k in j:-1:1
        add!(lambda, one(T), view(cotangents, :, k))
    end
    return lambda, extra
end

# -- the border ------------------------------------------------------------------------------------

"""
What the jumps of a solve are; the mirror of `JumpRequest` in pysciml/engines/julia/jumps.py.
`graphs` are three lists of lists, each as its length, the lengths of its lists, and these one after
the other; all counted from 1.
"""
struct JumpRequest
    kind::Int64                      # 0 pure, 1 on an ODE, 2 on an SDE
    aggregator::Int64
    first::Int64
    seed::UInt64
    keep::Int64
    every::Int64
    graphs::Ptr{Int64}
    ngraphs::Int64
end

function jumps_of(::Type{T}, r::JumpRequest) where {T}
    numbers = vector(Int64, r.graphs, r.ngraphs)
    graphs = ntuple(3) do _
        count = popfirst!(numbers)
        lengths = splice!(numbers, 1:count)
        [splice!(numbers, 1:k) for k in lengths]
    end
    return Jumps{T}(lookup(OBJECTS, r.aggregator), r.first, graphs..., r.seed, r.keep != 0)
end

c_solve_jumps(request::Ptr{Request}, jumps::Ptr{JumpRequest}, response::Ptr{Response})::Cint =
    answered(response) do
        r = unsafe_load(request)
        alg = r.alg == 0 ? nothing : lookup(OBJECTS, r.alg)
        Base.inferencebarrier(solve_jumps)(
            r, unsafe_load(jumps), lookup(MODELS, r.model), alg
        )::Response
    end

function solve_jumps(r::Request, j::JumpRequest, model::Model{T}, @nospecialize(alg)) where {T}
    u0, p, c = vector(T, r.u0, r.n), vector(T, r.p, r.np), vector(T, r.c, r.nc)
    events, options = events_of(T, r), options_of(T, r)
    tspan, jumps = (T(r.t0), T(r.t1)), jumps_of(T, j)
    j.kind == 1 && return respond(run_jumps(model, alg, u0, p, c, tspan, options, events, jumps))
    j.kind == 2 && return respond(
        run_noisy(model, alg, u0, p, c, tspan, options, j.seed, events, jumps)
    )
    h = run_counts(model, u0, p, tspan, options, events, jumps, j.every != 0)
    return respond(h, (-1, -1, length(h.log), -1, -1, -1))
end

function adjoint_request(r::AdjointRequest, h::CountsHandle{T}, @nospecialize(_)) where {T}
    n = h.model.n
    cotangents = reshape(vector(T, r.cotangents, r.m * n), n, Int(r.m))
    du0, extra = back_through_counts(h, times_of(T, r.times, r.m), cotangents)
    write_out(r.du0, du0)
    write_events(r, extra)
    return
end
