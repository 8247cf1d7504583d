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
    lock::ReentrantLock
    spare::Vector{Model{T, F, O}}
end

function Model(functions::Functions{T}, n::Integer, mass_matrix = nothing) where {T}
    f = ode_function(functions, Int(n), mass_matrix)
    return Model{T, typeof(functions), typeof(f)}(
        functions, f, Int(n), mass_matrix, ReentrantLock(), []
    )
end
function Model(functions::Residual{T}, n::Integer) where {T}
    f = dae_function(functions)
    return Model{T, typeof(functions), typeof(f)}(
        functions, f, Int(n), nothing, ReentrantLock(), []
    )
end
clone(m::Model{T, <:Functions}) where {T} = Model(clone(m.functions), m.n, m.mass_matrix)
clone(m::Model{T, <:Residual}) where {T} = Model(clone(m.functions), m.n)

# The model, locked, or a locked copy of it where another thread is at it.
function acquire(m::M) where {M <: Model}
    trylock(m.lock) && return m
    for s in m.spare
        trylock(s.lock) && return s
    end
    new = clone(m)::M
    lock(new.lock)
    push!(m.spare, new)
    return new
end
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

"""
    Handle{T}

A solved problem: the outputs (`t`, `u` with one column a time, `source`), SciML's solution, and
what interpolation and gradients need.
"""
mutable struct Handle{T, M}
    model::M
    alg::Any
    events::Vector{Event{T}}
    log::Vector{EventRecord{T}}
    options::Options{T}
    c::Vector{T}
    prob::Any
    sol::Any
    dense::Bool
    t::Vector{Float64}
    u::Matrix{T}
    source::Vector{Int}
    event_times::Vector{Float64}
    event_indices::Vector{Int}
end

"""
    run(model, alg, u0, p, c, tspan, options; du0, differential_vars, events) -> Handle

Solve. With `options.dense`, or with events, every step is kept and the outputs are read from the
interpolant; else the solver saves the outputs itself and keeps nothing more.
"""
function run(
        model::Model{T}, alg, u0::Vector{T}, p::Vector{T}, c::Vector{T}, tspan::Tuple{T, T},
        options::Options{T}; du0 = nothing, differential_vars = nothing,
        events::Vector{Event{T}} = Event{T}[]
    ) where {T}
    m = acquire(model)
    try
        copyto!(data(m.functions), c)
        prob = problem(m, u0, p, tspan, du0, differential_vars)
        log = EventRecord{T}[]
        dense = options.dense || !isempty(events) || isempty(options.saveat)
        sol = integrate(prob, alg, options, dense, events, log)
        handle = Handle{T, typeof(m)}(
            m, alg, events, log, options, c, prob, sol, dense,
            Float64[], Matrix{T}(undef, 0, 0), Int[], Float64[], Int[]
        )
        collect_outputs!(handle, sol)
        return handle
    finally
        release(m)
    end
end

problem(m::Model{T, <:Functions}, u0, p, tspan, ::Nothing, ::Nothing) where {T} =
    ODEProblem(m.f, u0, tspan, p)
problem(m::Model{T, <:Residual}, u0, p, tspan, du0, differential_vars) where {T} =
    DAEProblem(m.f, du0, u0, tspan, p; differential_vars)

given(x, default) = isnan(x) ? default : x

function integrate(prob, alg, o::Options{T}, dense::Bool, events, log) where {T}
    t0, t1 = prob.tspan
    callback = isempty(events) ? CallbackSet() : callback_set(events, log)
    tstops = isempty(events) ? o.tstops : all_stops(o.tstops, events)
    saveat = dense ? T[] : o.saveat
    common = (;
        o.abstol, o.reltol, saveat, tstops, callback, dense,
        save_everystep = dense,
        save_start = dense || first(saveat) == t0, save_end = dense || last(saveat) == t1,
        dtmax = given(o.dtmax, t1 - t0), dtmin = given(o.dtmin, zero(T)),
        maxiters = o.maxiters, adaptive = o.adaptive && is_adaptive(alg), verbose = QUIET,
    )
    # not `solve`: all types are concrete already, and its checks cost more than a small solve
    return isnan(o.dt) ? SciMLBase.__solve(prob, alg; common...) :
        SciMLBase.__solve(prob, alg; common..., dt = o.dt)
end

is_adaptive(::Nothing) = true
is_adaptive(alg) = SciMLBase.isadaptive(alg)

const QUIET = SciMLLogging.None()

function all_stops(tstops::Vector{T}, events) where {T}
    stops = copy(tstops)
    for e in events
        append!(stops, e.times)
    end
    return stops
end

# -- outputs ---------------------------------------------------------------------------------------

"""
    segments(handle) -> Vector{UnitRange{Int}}

Ranges of the dense solution's points between which nothing jumps.
"""
function segments(h::Handle)
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
    elseif isempty(h.options.saveat)
        steps!(h, sol)
    else
        outputs_between_events!(h, sol)
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

# Every step, with the events that were asked for.
function steps!(h::Handle{T}, sol) where {T}
    keep, source = Int[], Int[]
    for (i, _) in enumerate(sol.t)
        push!(keep, i)
        push!(source, i == 1 ? FROM_T0 : FIXED)
    end
    for (k, record) in enumerate(h.log)
        save = h.events[record.index].save_positions
        left, right = record.position, record.position + 1
        left >= 1 && (source[left] = save[1] ? FIRST_EVENT - (k - 1) : 0)
        right <= length(source) && (source[right] = save[2] ? FIRST_EVENT - (k - 1) : 0)
    end
    ended = h.sol.retcode == ReturnCode.Success
    ended && source[end] == FIXED && (source[end] = FROM_T1)
    wanted = findall(!=(0), source)
    h.t = Vector{Float64}(sol.t[wanted])
    h.u = matrix(sol.u[wanted], h.model.n)
    h.source = source[wanted]
    return
end

# saveat and the events, read from the interpolant of the segment that each of them lies in.
function outputs_between_events!(h::Handle{T}, sol) where {T}
    saveat, n = h.options.saveat, h.model.n
    t0, t1 = h.prob.tspan
    sign = t1 >= t0 ? 1 : -1
    ranges = segments(h)
    ts, source, columns = Float64[], Int[], Vector{T}[]
    function put!(t, u, from)
        push!(ts, t)
        push!(columns, u)
        push!(source, from)
    end
    next = 1
    for (s, range) in enumerate(ranges)
        isempty(range) && continue
        finish = sol.t[last(range)]
        while next <= length(saveat) && sign * saveat[next] <= sign * finish
            put!(saveat[next], state_within(sol, range, saveat[next]), next - 1)
            next += 1
        end
        if s <= length(h.log)
            save = h.events[h.log[s].index].save_positions
            save[1] && put!(h.log[s].t, h.log[s].before, FIRST_EVENT - (s - 1))
            save[2] && put!(h.log[s].t, h.log[s].after, FIRST_EVENT - (s - 1))
        end
    end
    h.t, h.u, h.source = ts, matrix(columns, n), source
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
        h.sol = integrate(h.prob, h.alg, h.options, true, h.events, h.log)
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
        out[:, j] = sol(convert(eltype(sol.t), t), D; continuity = :right)
    end
    return out
end
