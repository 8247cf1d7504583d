# Solving: a flat problem in, outputs and a handle for later out.

"""
    Model{T, F, O}

A model as it is solved: its `Functions` or `Residual`, and SciML's function type around them.
Solves on one model exclude each other, since its kernels own their buffers; `spare` holds
copies for solves that come from other threads at the same time.
"""
struct Model{T, F, O}
    functions::F
    f::O
    n::Int
    mass_matrix::Union{Nothing, Matrix{T}}
    pattern::Union{Nothing, Pattern}  # of a Jacobian that is kept sparse
    lock::ReentrantLock
    spare::Vector{Model{T, F, O}}
end

function Model(
        functions::Functions{T}, n::Integer, mass_matrix = nothing, pattern = nothing
    ) where {T}
    rows = mass_matrix === nothing ? held(n) : Int(n)
    f = pattern === nothing ? ode_function(functions, rows, mass_matrix) :
        sparse_function(functions, pattern, mass_matrix)
    return Model{T, typeof(functions), typeof(f)}(
        functions, f, Int(n), mass_matrix, pattern, ReentrantLock(), []
    )
end
function Model(functions::Residual{T}, n::Integer) where {T}
    f = dae_function(functions)
    return Model{T, typeof(functions), typeof(f)}(
        functions, f, Int(n), nothing, nothing, ReentrantLock(), []
    )
end
clone(m::Model{T, <:Functions}) where {T} =
    Model(clone(m.functions), m.n, m.mass_matrix, m.pattern)
clone(m::Model{T, <:Residual}) where {T} = Model(clone(m.functions), m.n)

function with_room(m::M, alg) where {M <: Model}
    lacks_room(m.f) || return m
    f = with_room(m.f, alg, m.n)
    return M(m.functions, f, m.n, m.mass_matrix, m.pattern, m.lock, m.spare)
end

# The model, locked, or a locked copy of it where another thread is at it.
function acquire(m::M) where {M <: Model}
    trylock(m.lock) && return m
    return lock(SPARES) do
        for s in m.spare
            trylock(s.lock) && return s
        end
        new = clone(m)::M
        lock(new.lock)
        push!(m.spare, new)
        return new
    end
end
const SPARES = ReentrantLock()
release(m::Model) = unlock(m.lock)

"""
    Options{T}

What a solve was asked for; `saveat` empty for every step, NaN for a number that was not given.
"""
Base.@kwdef struct Options{T}
    abstol::Union{T, Vector{T}} = T(1.0e-6)
    reltol::T = T(1.0e-3)
    saveat::Vector{T} = T[]
    tstops::Vector{T} = T[]
    dt::T = T(NaN)
    dtmax::T = T(NaN)
    dtmin::T = T(NaN)
    maxiters::Int = 100_000
    adaptive::Bool = true
    dense::Bool = false
end

# The kinds of output: see FlatSolution.source in Python.
const FROM_T0, FROM_T1, FIXED, FIRST_EVENT = -1, -2, -3, -4

"What a solve leaves: outputs, events, and what interpolation and gradients need."
abstract type Solved{T} end

"""
    Handle{T}

A solved problem: the outputs (`t`, `u` with one column a time, `source`), SciML's solution, and
what interpolation and gradients need.
"""
mutable struct Handle{T, M} <: Solved{T}
    model::M
    alg::Any
    events::Vector{Event{T}}
    log::Vector{EventRecord{T}}
    options::Options{T}
    c::Vector{T}
    prob::Any
    sol::Any
    reached::T                       # the end of the last step
    dense::Bool
    t::Vector{Float64}
    u::Matrix{T}
    source::Vector{Int}
    side::Vector{Int8}               # of an event's outputs: 1 before it, 2 after it, else 0
    event_times::Vector{Float64}
    event_indices::Vector{Int}
end

"""
    run(model, alg, u0, p, c, tspan, options; du0, differential_vars, events) -> Handle

Solve. With `options.dense`, or with events, every step is kept and the outputs are read from the
interpolant; else the solver saves the outputs itself and keeps nothing more.

What depends on the algorithm is `integrate` and what follows from it. Inference is kept from looking
through calls whose arguments' types are known at run time only: it would compile for all types.
"""
function run(
        model::Model{T}, @nospecialize(alg), u0::Vector{T}, p::Vector{T}, c::Vector{T}, tspan::Tuple{T, T},
        options::Options{T}; du0 = nothing, differential_vars = nothing,
        events::Vector{Event{T}} = Event{T}[]
    ) where {T}
    m = acquire(model)
    try
        copyto!(data(m.functions), c)
        roomy = with_room(m, alg)
        alg = Base.inferencebarrier(within_domain)(alg, events)
        prob = problem(roomy, u0, p, tspan, du0, differential_vars)
        log = EventRecord{T}[]
        dense = options.dense || !isempty(events) || isempty(options.saveat) || keeps_steps(m)
        sol, reached = Base.inferencebarrier(integrate)(prob, alg, options, dense, events, log)
        handle = Handle{T, typeof(m)}(
            roomy, alg, events, log, options, c, prob, sol, reached, dense,
            Float64[], Matrix{T}(undef, 0, 0), Int[], Int8[], Float64[], Int[]
        )
        Base.inferencebarrier(collect_outputs!)(handle, sol)
        dense && past_discontinuities!(sol.t, tuning(alg))
        return handle
    finally
        release(m)
    end
end

# At a discontinuity f is still what it was before (SciML's convention), and adjoints ask for it at
# the beginning of a step: which is then where f is new, the next number.
function past_discontinuities!(ts::Vector, options)
    haskey(options, :d_discontinuities) || return
    jumps = convert.(eltype(ts), options.d_discontinuities)
    beyond = last(ts) >= first(ts) ? nextfloat : prevfloat
    for i in 1:(length(ts) - 1)
        ts[i] in jumps && (ts[i] = beyond(ts[i]))
    end
    return
end

"Whether every step is kept whatever is asked for."
keeps_steps(::Model) = false

problem(m::Model{T, <:Functions}, u0, p, tspan, ::Nothing, ::Nothing) where {T} =
    ODEProblem(m.f, u0, tspan, p)
problem(m::Model{T, <:Residual}, u0, p, tspan, du0, differential_vars) where {T} =
    DAEProblem(m.f, du0, u0, tspan, p; differential_vars)

given(x, default) = isnan(x) ? default : x

"""
    begun(prob, alg, options, dense, tstops, callback, more) -> integrator

An integrator at its start; `more` are keyword arguments that not every solve has.
"""
function begun(
        prob, alg, o::Options{T}, dense::Bool, tstops, callback, more::NamedTuple
    ) where {T}
    t0, t1 = prob.tspan
    saveat = dense ? T[] : o.saveat
    common = (;
        o.reltol, saveat, tstops, callback, save_everystep = dense,
        save_start = dense || first(saveat) == t0, save_end = dense || last(saveat) == t1,
        dtmax = given(o.dtmax, t1 - t0), dtmin = given(o.dtmin, zero(T)),
        maxiters = o.maxiters, adaptive = o.adaptive && is_adaptive(alg), verbose = QUIET,
        more...,
    )
    # not `init`: all types are concrete already, and its checks cost more than a small solve
    return isnan(o.dt) ? SciMLBase.__init(prob, alg; common...) :
        SciMLBase.__init(prob, alg; common..., dt = o.dt)
end

begun(prob, t::Tuned, o::Options, dense::Bool, tstops, callback, more::NamedTuple) =
    begun(prob, t.alg, o, dense, tstops, callback, merge(more, t.options))

at_start(prob, alg, o::Options, dense::Bool, tstops, callback) = begun(
    prob, alg, o, dense, tstops, callback,
    merge((; abstol = like_state(o.abstol, prob.u0), dense), initialization(prob))
)

function integrate(
        prob, alg, o::Options{T}, dense::Bool, events, log, watch = watching();
        callback = isempty(events) ? CallbackSet(watch) : callback_set(events, log)
    ) where {T}
    tstops = isempty(events) ? o.tstops : all_stops(o.tstops, events)
    integrator = at_start(prob, alg, o, dense, tstops, callback)
    # no stop is left where an event at the very start has ended the solve
    isempty(tstops) && isempty(events) || !SciMLBase.has_tstop(integrator) ||
        cap_first_step!(integrator)
    SciMLBase.solve!(integrator)
    return integrator.sol, integrator.t
end

function integrate(
        prob, w::WithoutPrototype, o::Options{T}, dense::Bool, events, log, watch = watching();
        more...
    ) where {T}
    return integrate(without_prototype(prob), w.alg, o, dense, events, log, watch; more...)
end

# On a DAE the algebraic variables (and the derivatives of the others) are computed from the rest
# where they do not fit it; for a residual only where it is said which are which.
initialization(prob) = (;)
function initialization(prob::ODEProblem)
    M = prob.f.mass_matrix
    M isa AbstractMatrix || return (;)
    return any(iszero, eachcol(M)) || any(iszero, eachrow(M)) ?
        (; initializealg = BrownFullBasicInit()) : (;)
end
initialization(prob::DAEProblem) =
    prob.differential_vars === nothing ? (;) : (; initializealg = BrownFullBasicInit())

# A first step that is cut short by a stop is interpolated as if it had not been
# (OrdinaryDiffEqCore 4.5): let it not reach beyond the first stop.
function cap_first_step!(integrator)
    integrator.opts.adaptive || return
    reach = first_tstop(integrator) - integrator.t
    if 0 < abs(reach) < abs(integrator.dt)
        integrator.dt = reach
        SciMLBase.set_proposed_dt!(integrator, reach)
    end
    return
end
first_tstop(integrator) = integrator.tdir * SciMLBase.first_tstop(integrator)

is_adaptive(::Nothing) = true
is_adaptive(alg) = SciMLBase.isadaptive(alg)

const QUIET = SciMLLogging.None()

function all_stops(tstops::Vector{T}, events) where {T}
    stops = copy(tstops)
    for e in events
        e.kind === :preset && append!(stops, e.times)
    end
    return stops
end

# -- outputs ---------------------------------------------------------------------------------------

"""
    segments(handle) -> Vector{UnitRange{Int}}

Ranges of the dense solution's points between which nothing jumps.
"""
function segments(h::Solved)
    sol, ranges, from = h.sol, UnitRange{Int}[], 1
    for record in h.log
        push!(ranges, from:record.position)
        from = record.position + 1
    end
    push!(ranges, from:length(sol.t))
    return ranges
end

function collect_outputs!(h::Handle{T}, sol) where {T}
    if !h.dense
        m = length(sol.t)
        h.t = convert(Vector{Float64}, sol.t)
        h.u = matrix(sol.u, h.model.n)
        h.source = collect(0:(m - 1))
        h.side = zeros(Int8, m)
    elseif isempty(h.log) && isempty(h.options.saveat)
        m = length(sol.t)
        h.t = Vector{Float64}(sol.t)  # a copy: see past_discontinuities!
        h.u = matrix(sol.u, h.model.n)
        h.source = fill(FIXED, m)
        h.source[1] = FROM_T0
        m > 1 && sol.t[m] == h.prob.tspan[2] && (h.source[m] = FROM_T1)
        h.side = zeros(Int8, m)
    else
        collect_pieces!(h, sol)
    end
    return h
end

function matrix(us::Vector{Vector{T}}, n) where {T}
    out = Matrix{T}(undef, n, length(us))
    for (j, u) in enumerate(us)
        copyto!(view(out, :, j), u)
    end
    return out
end

"""
    moments(log) -> Vector{UnitRange{Int}}

The events that happened at one time, together.
"""
function moments(log)
    groups = UnitRange{Int}[]
    for k in eachindex(log)
        if !isempty(groups) && log[first(last(groups))].t == log[k].t
            groups[end] = first(groups[end]):k
        else
            push!(groups, k:k)
        end
    end
    return groups
end

# The state after an event, `range` being the points that follow. SciML makes that of a DAE fit the
# equation, which the record has not seen.
state_after(h::Solved, record, range) = isempty(range) ? record.after : h.sol.u[first(range)]

# saveat (or every step), piece by piece between the events, and the states around these.
function collect_pieces!(h::Solved{T}, sol) where {T}
    saveat, ranges, groups = h.options.saveat, segments(h), moments(h.log)
    t0, t1 = h.prob.tspan
    sign = t1 >= t0 ? 1 : -1
    ts, source, side, columns = Float64[], Int[], Int8[], Vector{T}[]
    function put!(t, u, from, which)
        push!(ts, t)
        push!(columns, u)
        push!(source, from)
        push!(side, which)
    end
    every, next, piece = isempty(saveat), 1, 1
    for g in 1:(length(groups) + 1)
        range = ranges[piece]
        ended = g <= length(groups)
        if every
            for i in (g == 1 ? range : range[2:end])
                ended && i == last(range) && break
                from = i == 1 ? FROM_T0 : sol.t[i] == t1 ? FROM_T1 : FIXED
                put!(sol.t[i], sol.u[i], from, 0)
            end
        elseif !isempty(range)
            finish = sol.t[last(range)]
            while next <= length(saveat) && sign * saveat[next] <= sign * finish
                put!(saveat[next], state_within(sol, range, saveat[next]), next - 1, 0)
                next += 1
            end
        end
        ended || break
        group = groups[g]
        piece = last(group) + 1
        before, after = h.log[first(group)], h.log[last(group)]
        save = h.events[before.index].save_positions
        terminal = any(h.events[h.log[k].index].terminate for k in group)
        label = FIRST_EVENT - (first(group) - 1)
        if (every || save[1] || terminal) && (every || isempty(ts) || last(ts) != before.t)
            put!(before.t, before.before, label, 1)
        end
        if (every || save[2]) && !terminal
            put!(after.t, state_after(h, after, ranges[piece]), label, 2)
        end
        terminal && break
    end
    h.t, h.u, h.source, h.side = ts, matrix(columns, h.model.n), source, side
    return
end

# The state at t within a range of points (its ends included), nothing of what lies outside it.
function state_within(sol, range, t)
    t == sol.t[last(range)] && return copy(sol.u[last(range)])
    t == sol.t[first(range)] && return copy(sol.u[first(range)])
    return sol(t)
end

"""
    densify!(handle)

Make the handle's solution dense, by solving again where it was not kept so.
"""
function densify!(h::Handle{T}) where {T}
    h.dense && return h
    lock(h.model.lock) do
        copyto!(data(h.model.functions), h.c)
        empty!(h.log)
        h.sol, h.reached =
            Base.inferencebarrier(integrate)(h.prob, h.alg, h.options, true, h.events, h.log)
        past_discontinuities!(h.sol.t, tuning(h.alg))
        h.dense = true
    end
    return h
end

"""
    interpolate(handle, ts, deriv) -> Matrix

The solution, or its derivative of order `deriv`, at `ts`, one column a time. At an event: the
state after it.
"""
function interpolate(h::Handle{T}, ts, deriv::Integer) where {T}
    densify!(h)
    out = Matrix{T}(undef, h.model.n, length(ts))
    lock(h.model.lock) do
        copyto!(data(h.model.functions), h.c)
        interpolate!(out, h.sol, ts, Val{Int(deriv)})
    end
    return out
end

function interpolate!(out, sol, ts, ::Type{D}) where {D}
    for (j, t) in enumerate(ts)
        out[:, j] = state_at(sol, convert(eltype(sol.t), t), D)
    end
    return out
end

# The solution or a derivative of it, right of t where it jumps. No step goes on from the end, to
# which a derivative could belong; and a state read there from the right would leave Verner methods
# with wrong stages of the last step (OrdinaryDiffEqCore 4.5), and all that is read of it later.
function state_at(sol, t, ::Type{D}) where {D}
    t == last(sol.t) || return sol(t, D; continuity = :right)
    return D === Val{0} ? last(sol.u) : sol(t, D; continuity = :left)
end
