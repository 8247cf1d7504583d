# Stochastic equations du = f(u, p, t) dt + g(u, p, t) dW. What needs StochasticDiffEq stands in
# ext/PySciMLStochasticExt.jl, so that nobody else loads it.

"""
    Noisy{T}

The functions of a stochastic equation: drift and diffusion, and the two one after the other
(`whole`), over one data vector. `columns`: those of the diffusion's matrix, which is flat, column
by column; 0 for diagonal noise (one process an entry of the state), -1 for one scalar process.
"""
struct Noisy{T}
    whole::Functions{T}
    drift::Functions{T}
    diffusion::Functions{T}
    columns::Int
end
noisy(whole::Functions{T}, drift, diffusion, columns) where {T} = Noisy{T}(
    whole, over(drift, data(whole)), over(diffusion, data(whole)), Int(columns)
)
data(x::Noisy) = data(x.whole)
clone(x::Noisy) = noisy(clone(x.whole), clone(x.drift), clone(x.diffusion), x.columns)

# The diffusion as SciML calls it, with a matrix to be filled where the noise is general.
struct Diffusion{T} <: Function
    kernel::VectorKernel{T}
end
(g::Diffusion)(out, u, p, t) = (g.kernel(out, u, p, t); nothing)
(g::Diffusion)(out::Matrix, u, p, t) = (g.kernel(vec(out), u, p, t); nothing)

function Model(x::Noisy{T}, n::Integer) where {T}
    f = SDEFunction{true, FullSpecialize}(
        x.drift.value, Diffusion{T}(x.diffusion.value); x.drift.jac, x.drift.tgrad,
        jac_prototype = zeros(T, held(n), held(n))
    )
    return Model{T, typeof(x), typeof(f)}(x, f, Int(n), nothing, nothing, ReentrantLock(), [])
end
clone(m::Model{T, <:Noisy}) where {T} = Model(clone(m.functions), m.n)

"""
    NoisyHandle{T}

A solved stochastic equation. Where `dense`, `sol` holds every step and the noise there; else it is
solved again, by the same seed, when these are asked for.
"""
mutable struct NoisyHandle{T, M} <: Solved{T}
    model::M
    alg::Any
    events::Vector{Event{T}}
    log::Vector{EventRecord{T}}
    jumps::Union{Nothing, Jumps{T}}
    cuts::Dict{Int, Cut{T}}
    options::Options{T}
    c::Vector{T}
    prob::Any
    seed::UInt64
    sol::Any
    reached::T
    dense::Bool
    t::Vector{Float64}
    u::Matrix{T}
    source::Vector{Int}
    side::Vector{Int8}
    event_times::Vector{Float64}
    event_indices::Vector{Int}
    path_t::Vector{Float64}
    path_w::Matrix{T}
end

"""
    integrate_noisy(prob, alg, options, seed, dense, tstops, callback) -> (sol, reached)

Solve; the extension adds the method.
"""
function integrate_noisy end

"The Wiener process that a solve draws, `columns` as in `Noisy`; the extension adds the method."
function drawn_noise end

"A given path of the noise, its values at increasing times; the extension adds the method."
function given_noise end

"""
    run_noisy(model, alg, u0, p, c, tspan, options, seed, events, jumps, path) -> NoisyHandle

`path`: times, and the noise there as the columns of a matrix, to be followed; the steps must be
these times.
"""
function run_noisy(
        model::Model{T}, @nospecialize(alg), u0::Vector{T}, p::Vector{T}, c::Vector{T},
        tspan::Tuple{T, T}, options::Options{T}, seed::UInt64,
        events::Vector{Event{T}} = Event{T}[], jumps::Union{Nothing, Jumps{T}} = nothing,
        path = nothing
    ) where {T}
    m = acquire(model)
    try
        copyto!(data(m.functions), c)
        dense = options.dense || isempty(options.saveat) || !isempty(events) ||
            path !== nothing
        prob = Base.invokelatest(noisy_problem, with_room(m, alg), alg, u0, p, tspan, seed, path)
        log, cuts = EventRecord{T}[], Dict{Int, Cut{T}}()
        callback = jumps === nothing ? callback_set(events, log) :
            Base.invokelatest(jump_callbacks, prob, jumps, events, log, watching(), cuts)
        stops = all_stops(options.tstops, events)
        sol, reached = Base.invokelatest(
            integrate_noisy, prob, alg, options, seed, dense, stops, callback
        )
        h = NoisyHandle{T, typeof(m)}(
            m, alg, events, log, jumps, cuts, options, c, prob, seed, sol, reached, dense,
            Float64[], Matrix{T}(undef, 0, 0), Int[], Int8[], Float64[], Int[], Float64[],
            Matrix{T}(undef, 0, 0)
        )
        Base.invokelatest(collect_noisy!, h, sol)
        return h
    finally
        release(m)
    end
end

function noisy_problem(m::Model{T}, alg, u0, p, tspan, seed, path) where {T}
    columns = m.functions.columns
    noise = path === nothing ? drawn_noise(tspan[1], columns, m.n, alg) :
        given_noise(path..., columns < 0)
    columns <= 0 && return SDEProblem(m.f, u0, tspan, p; seed, noise)
    noise_rate_prototype = zeros(T, m.n, columns)
    return SDEProblem(m.f, u0, tspan, p; seed, noise, noise_rate_prototype)
end

function collect_noisy!(h::NoisyHandle{T}, sol) where {T}
    saveat = h.options.saveat
    if !isempty(h.log)
        collect_pieces!(h, sol)
    elseif !isempty(saveat) && h.dense
        reached = [t for t in saveat if t <= last(sol.t)]
        h.t, h.u = reached, at_times(sol.t, sol.u, reached, h.model.n)
        h.source = collect(0:(length(reached) - 1))
    elseif !isempty(saveat)
        h.t, h.u = convert(Vector{Float64}, sol.t), matrix(sol.u, h.model.n)
        h.source = collect(0:(length(h.t) - 1))
    else
        h.t, h.u = convert(Vector{Float64}, sol.t), matrix(sol.u, h.model.n)
        h.source = sources(sol.t, h.prob.tspan)
    end
    return
end

# Between steps a path is known at its ends only: the state there is the line between them.
function at_times(times, us::Vector{Vector{T}}, ts, n) where {T}
    out = Matrix{T}(undef, n, length(ts))
    for (k, t) in enumerate(ts)
        if length(times) == 1            # a solve that failed at once
            out[:, k] = us[1]
            continue
        end
        i, theta = step_of(times, t)
        for j in 1:n
            out[j, k] = theta == 1 ? us[i + 1][j] : (1 - theta) * us[i][j] + theta * us[i + 1][j]
        end
    end
    return out
end
function step_of(times::Vector{T}, t) where {T}
    i = clamp(searchsortedlast(times, t), 1, length(times) - 1)
    t == times[i] && i > 1 && return i - 1, one(T)
    return i, T(t - times[i]) / (times[i + 1] - times[i])
end

function densify!(h::NoisyHandle)
    h.dense && return h
    lock(h.model.lock) do
        copyto!(data(h.model.functions), h.c)
        h.sol, h.reached = Base.invokelatest(
            integrate_noisy, h.prob, h.alg, h.options, h.seed, true, h.options.tstops,
            callback_set(h.events, h.log)
        )
        h.dense = true
    end
    return h
end

function interpolate(h::NoisyHandle, ts, deriv::Integer)
    densify!(h)
    return Base.invokelatest(at_times, h.sol.t, h.sol.u, ts, h.model.n)
end

"The noise at every step, as the columns of a matrix; kept in the handle."
function path!(h::NoisyHandle{T}) where {T}
    densify!(h)
    isempty(h.path_t) || return h
    h.path_t = unique(h.sol.t)           # an event's time stands twice
    ws = Base.invokelatest(noise_values, h.sol, h.path_t)
    h.path_w = matrix(ws, length(first(ws)))
    return h
end

# The noise process keeps its own times; they have to be the solver's.
function noise_values(sol, times)
    W = sol.W
    # the last step ends at the end of the time span, to which the noise's times come by addition
    length(W.t) == length(times) && all(isapprox.(W.t, times; rtol = sqrt(eps(eltype(W.t))))) ||
        error("the noise was kept at other times than the solution's steps")
    return [columns_of(x) for x in W.u]
end
columns_of(x::Number) = [x]
columns_of(x::Vector) = x

# -- the border ------------------------------------------------------------------------------------

"Where the noise of a solve lies: `m` processes at `count` times."
struct PathResponse
    count::Int64
    m::Int64
    t::Ptr{Float64}
    w::Ptr{Cvoid}
end

# `columns` as in `Noisy`.
function c_new_noisy(
        functions::Int64, drift::Int64, diffusion::Int64, n::Int64, columns::Int64,
        id::Ptr{Int64}, message::Ptr{Ptr{UInt8}}
    )::Cint
    return guarded(message) do
        made = noisy((lookup(FUNCTIONS, i) for i in (functions, drift, diffusion))..., columns)
        unsafe_store!(id, register!(MODELS, Model(made, n)))
    end
end

c_solve_noisy(request::Ptr{Request}, seed::UInt64, response::Ptr{Response})::Cint =
    answered(response) do
        r = unsafe_load(request)
        Base.inferencebarrier(solve_noisy)(
            r, lookup(MODELS, r.model), lookup(OBJECTS, r.alg), seed
        )::Response
    end

# `path`: the noise to be followed, see `run_noisy`.
c_solve_along(request::Ptr{Request}, path::Ptr{PathResponse}, response::Ptr{Response})::Cint =
    answered(response) do
        r = unsafe_load(request)
        Base.inferencebarrier(solve_noisy)(
            r, lookup(MODELS, r.model), lookup(OBJECTS, r.alg), UInt64(1), unsafe_load(path)
        )::Response
    end

function solve_noisy(
        r::Request, model::Model{T}, @nospecialize(alg), seed::UInt64, along = nothing
    ) where {T}
    u0, p, c = vector(T, r.u0, r.n), vector(T, r.p, r.np), vector(T, r.c, r.nc)
    path = along === nothing ? nothing : (
            times_of(T, along.t, along.count),
            reshape(vector(T, along.w, along.m * along.count), Int(along.m), Int(along.count)),
        )
    return respond(
        run_noisy(
            model, alg, u0, p, c, (T(r.t0), T(r.t1)), options_of(T, r), seed, events_of(T, r),
            nothing, path
        )
    )
end

function c_noise_path(
        handle::Int64, response::Ptr{PathResponse}, message::Ptr{Ptr{UInt8}}
    )::Cint
    return guarded(message) do
        h = path!(lookup(HANDLES, handle))
        m, count = size(h.path_w)
        unsafe_store!(response, PathResponse(count, m, pointer(h.path_t), pointer(h.path_w)))
    end
end

function adjoint_request(r::AdjointRequest, h::NoisyHandle{T}, @nospecialize(_)) where {T}
    n = h.model.n
    cotangents = reshape(vector(T, r.cotangents, r.m * n), n, Int(r.m))
    du0, dp, extra = pathwise(
        h, times_of(T, r.times, r.m), vector(Int64, r.source, r.m), cotangents
    )
    write_events(r, extra)
    write_out(r.du0, du0)
    write_out(r.dp, dp)
    return
end
