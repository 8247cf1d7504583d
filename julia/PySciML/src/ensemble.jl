# Many solves of one model: the members of an ensemble, on Julia's threads.

"""
    Members{T}

What the members of an ensemble start from: `u0` with one column a member, and the parameters `p`
of all of them, of which each member has the entries `at` of its own, one column of `own`.
"""
struct Members{T}
    u0::Matrix{T}
    p::Vector{T}
    at::Vector{Int}
    own::Matrix{T}
end
Base.length(m::Members) = size(m.u0, 2)

function parameters!(p, m::Members, i)
    @inbounds for (k, j) in enumerate(m.at)
        p[j] = m.own[k, i]
    end
    return p
end

"""
    Ensemble{T, M}

A solved ensemble. The outputs of all members follow each other: `counts[i]` columns of `u` belong
to member `i`. Nothing else is kept: a gradient solves each member once more.
"""
mutable struct Ensemble{T, M}
    model::M
    alg::Any
    options::Options{T}
    c::Vector{T}
    tspan::Tuple{T, T}
    members::Members{T}
    threads::Int
    counts::Vector{Int}
    t::Vector{Float64}
    u::Matrix{T}
    source::Vector{Int}
    retcodes::Vector{Int}
    stats::Matrix{Int}
    reached::Vector{Float64}
end

"""
    Seat{M, I}

What a thread solves with: a model with buffers of its own and, for explicit methods, an integrator
that takes one member after the other. To begin anew costs more than a small solve does.
"""
mutable struct Seat{M, I}
    const model::M
    integrator::I
end

# Members are handed out in blocks, whose number does not depend on that of the threads: sums over
# members are sums over blocks, the same however many threads there are.
const BLOCKS = 64
blocks(n) = [(1 + (b - 1) * n ÷ BLOCKS):(b * n ÷ BLOCKS) for b in 1:BLOCKS]

"""
    over_blocks(work, seats, n)

`work(seat, block, i)` for every one of `n` members, each thread with a seat of its own. The
first member is done by the calling thread alone: it fetches and compiles what is new.
"""
function over_blocks(work::W, seats::Vector{S}, n) where {W, S <: Seat}
    ranges, next, stop = blocks(n), Threads.Atomic{Int}(1), Threads.Atomic{Bool}(false)
    function some(seat, look)
        try
            while !stop[]
                b = Threads.atomic_add!(next, 1)
                b > BLOCKS && return
                for i in ranges[b]
                    stop[] && return
                    look(nothing, NaN, nothing)
                    work(seat, b, i)
                end
            end
        catch
            stop[] = true
            rethrow()
        end
        return
    end
    tasks = [Threads.@spawn(some($(seats[k]), nobody)) for k in 2:length(seats)]
    try
        some(seats[1], Watch())
    finally
        foreach(wait_quietly, tasks)
    end
    for task in tasks
        istaskfailed(task) && throw(task.result)
    end
    return
end
nobody(u, t, integrator) = false
wait_quietly(task) = try
    wait(task)
catch  # what it threw is thrown again where all have ended
end

# A watch that never looks: only the thread that Python has called may call back.
blind() = DiscreteCallback(Watch(typemax(UInt64)), nothing_happens; save_positions = (false, false))

"""
    several(body, model, k)

Call `body` with a vector of `k` locked models of one kind, each with buffers of its own.
"""
function several(body, model::M, k) where {M <: Model}
    first_ = acquire(model)
    models = M[first_]
    try
        for _ in 2:k
            push!(models, clone(first_))
        end
        return body(models)
    finally
        release(first_)
    end
end

"""
    run_ensemble(model, alg, members, c, tspan, options, threads) -> Ensemble

Solve all members, on at most `threads` threads.
"""
function run_ensemble(
        model::Model{T}, alg, members::Members{T}, c::Vector{T}, tspan::Tuple{T, T},
        options::Options{T}, threads
    ) where {T}
    n, N, m = model.n, length(members), length(options.saveat)
    every = m == 0
    u = Matrix{T}(undef, n, m * N)
    counts, retcodes, reached = zeros(Int, N), zeros(Int, N), zeros(Float64, N)
    stats = zeros(Int, 6, N)
    ts, columns = Vector{Vector{T}}(undef, every ? N : 0), Vector{Matrix{T}}(undef, every ? N : 0)
    function solve_member(seat, _, i)
        sol, t = member!(seat, alg, members, tspan, options, every, i)
        retcodes[i], reached[i] = Int(sol.retcode), t
        s = sol.stats
        stats[:, i] .= (s.nf, s.njacs, s.naccept, s.nreject, s.nsolve, s.nnonliniter)
        if every
            counts[i], ts[i], columns[i] = length(sol.t), copy(sol.t), matrix(sol.u, n)
        else
            # a solve that stopped has its last state, too, which is none that was asked for
            for (time, wanted, x) in zip(sol.t, options.saveat, sol.u)
                time == wanted || break
                copyto!(u, ((i - 1) * m + counts[i]) * n + 1, x, 1, n)
                counts[i] += 1
            end
        end
        return
    end
    several(model, 1) do models
        copyto!(data(models[1].functions), c)
        solve_member(only(seats(models, alg, members, tspan, options, every)), 0, 1)
        prepare!(models[1].functions, alg)
    end
    several(model, workers(threads, N)) do models
        for x in models
            copyto!(data(x.functions), c)
        end
        over_blocks(seats(models, alg, members, tspan, options, every), N) do seat, b, i
            i == 1 || solve_member(seat, b, i)
        end
    end
    t, source = Float64[], Int[]
    if every
        t, u = reduce(vcat, ts; init = T[]), reduce(hcat, columns)
        source = reduce(vcat, (sources(x, tspan) for x in ts))
    end
    return Ensemble{T, typeof(model)}(
        model, alg, options, c, tspan, members, threads, counts, convert(Vector{Float64}, t), u,
        source, retcodes, stats, reached
    )
end

workers(threads, n) = clamp(min(threads, Threads.nthreads()), 1, n)

# Where every step is an output: what moves its time.
function sources(ts, tspan)
    out = fill(FIXED, length(ts))
    out[1] = FROM_T0
    length(ts) > 1 && last(ts) == tspan[2] && (out[end] = FROM_T1)
    return out
end

# Kernels are fetched from Python before the threads start: an implicit method needs these at any
# time, also where the first member went without.
function prepare!(f::Functions, alg)
    alg isa EXPLICIT || foreach(ensure!, (f.jac, f.tgrad))
    return
end
const EXPLICIT = Union{Tsit5, Vern7}

# Vectors of one type, which is known at run time only: inference would go through all algorithms.
seats(models, alg, members, tspan, options, dense) =
    [Seat(m, anew(m, alg, members, tspan, options, dense)) for m in models]
anew(model, alg, rest...) = Base.inferencebarrier(integrator)(model, alg, rest...)

integrator(model, alg, members, tspan, options, dense) = nothing
function integrator(model, alg::EXPLICIT, members, tspan, options::Options{T}, dense) where {T}
    # steps and stops that are given are not taken up again
    isnan(options.dt) && isempty(options.tstops) || return nothing
    return at_start(
        member(model, alg, members, tspan, 1), alg, options, dense, T[], CallbackSet(blind())
    )
end

function member(model, alg, members, tspan, i)
    p = parameters!(copy(members.p), members, i)
    return problem(with_room(model, alg), members.u0[:, i], p, tspan, nothing, nothing)
end

# Member `i` solved, and how far. An integrator's solution holds until the next member.
function member!(
        seat::Seat{M, Nothing}, alg, members::Members{T}, tspan, options, dense, i
    ) where {M, T}
    prob = member(seat.model, alg, members, tspan, i)
    return integrate(prob, alg, options, dense, Event{T}[], EventRecord{T}[], blind())
end
function member!(seat::Seat, alg, members, tspan, options, dense, i)
    x = seat.integrator
    prob, s = x.sol.prob, x.stats
    parameters!(prob.p, members, i)
    copyto!(prob.u0, view(members.u0, :, i))
    s.nf = s.njacs = s.naccept = s.nreject = s.nsolve = s.nnonliniter = 0
    SciMLBase.reinit!(x, prob.u0; reset_dt = true)
    SciMLBase.solve!(x)
    # what stopped on its way has marks of it left
    SciMLBase.successful_retcode(x.sol.retcode) ||
        (seat.integrator = anew(seat.model, alg, members, tspan, options, dense))
    return x.sol, x.t
end

"""
    EnsembleGradient{T}

Cotangents of what `Members` holds (those of `p` summed over the members), of every member's start
time, and of every output time.
"""
struct EnsembleGradient{T}
    u0::Matrix{T}
    p::Vector{T}
    own::Matrix{T}
    t0::Vector{Float64}
    times::Vector{Float64}
end

"""
    ensemble_adjoint(ensemble, cotangents, sensealg, abstol, reltol, by_times) -> EnsembleGradient

Gradient of `sum(cotangents .* u)`, the outputs of all members following each other. Where not
`by_times`, the cotangents of times are left zero.
"""
function ensemble_adjoint(
        e::Ensemble{T}, cotangents::Matrix{T}, sensealg, abstol, reltol, by_times
    ) where {T}
    n, N, np, m = e.model.n, length(e.members), length(e.members.p), length(e.options.saveat)
    du0, dt0 = zeros(T, n, N), zeros(Float64, N)
    own, dtimes = zeros(T, size(e.members.own)...), zeros(Float64, size(cotangents, 2))
    sums = [zeros(T, np) for _ in 0:BLOCKS]
    # in `cotangents` the members stand `m` columns apart where they have the same output times
    starts = m == 0 ? cumsum([0; e.counts]) : collect(0:m:(m * N))
    function pull_member(seat, b, i)
        range = (starts[i] + 1):(starts[i] + e.counts[i])
        w = cotangents[:, range]
        all(iszero, w) && return
        ts = m == 0 ? convert(Vector{T}, e.t[range]) : e.options.saveat[1:e.counts[i]]
        source = m == 0 ? e.source[range] : collect(0:(e.counts[i] - 1))
        h = member_handle(seat, e, i)
        u0, p, _ = smooth(h, ts, w, sensealg, abstol, reltol)
        du0[:, i] .= u0
        sums[b + 1] .+= p
        for (k, j) in enumerate(e.members.at)
            own[k, i] = p[j]
        end
        by_times && ((dt0[i], dtimes[range]) = time_gradients(h, ts, source, w, u0))
        return
    end
    # the first member with a gradient fetches what kernels are needed
    first_ = findfirst(i -> any(!iszero, view(cotangents, :, (starts[i] + 1):(starts[i] + e.counts[i]))), 1:N)
    if first_ !== nothing
        several(e.model, 1) do models
            copyto!(data(models[1].functions), e.c)
            pull_member(only(dense_seats(models, e)), 0, first_)
        end
        several(e.model, workers(e.threads, N)) do models
            for x in models
                copyto!(data(x.functions), e.c)
            end
            over_blocks(dense_seats(models, e), N) do seat, b, i
                i == first_ || pull_member(seat, b, i)
            end
        end
    end
    return EnsembleGradient{T}(du0, sum(sums), own, dt0, dtimes)
end

dense_seats(models, e::Ensemble) =
    seats(models, e.alg, e.members, e.tspan, e.options, true)

# A member solved once more, with all that its gradient needs.
function member_handle(seat::Seat{M}, e::Ensemble{T}, i) where {T, M <: Model}
    sol, reached = member!(seat, e.alg, e.members, e.tspan, e.options, true, i)
    return Handle{T, M}(
        seat.model, e.alg, Event{T}[], EventRecord{T}[], e.options, e.c, sol.prob, sol, reached,
        true, Float64[], Matrix{T}(undef, 0, 0), Int[], Int8[], Float64[], Int[]
    )
end
