# All members at once: a thread a member, or, for gradients, a thread a member and chunk of directions.

# -- what becomes of outputs -------------------------------------------------------------------

# Column (k, i), entry by entry without a loop: an index that is computed takes an array out of the
# registers.
@inline function write!(to, u::SVector{N}, k, i) where {N}
    ntuple(j -> (@inbounds to[j, k, i] = u[j]; nothing), Val(N))
    return
end
@inline column(::Val{N}, ::Type{T}, from, k, i) where {N, T} =
    SVector{N, T}(ntuple(j -> (@inbounds from[j, k, i]), Val(N)))

"Outputs are kept."
struct Keep{U}
    u::U                             # (n, m, N)
    i::Int
end
@inline function give(x::Keep, total, k, u, t)
    write!(x.u, u, k, x.i)
    return total
end

"Outputs' partials are multiplied by cotangents, and added up."
struct Pull{W}
    w::W                             # (n, m, N)
    i::Int
end
@inline function give(x::Pull, total::SVector{K, T}, k, u::SVector{N}, t) where {K, T, N}
    w = column(Val(N), T, x.w, k, x.i)
    return total + sum(map(seen, w, u))
end
# Where nobody looks, an infinite derivative is none.
@inline function seen(w, y::Dual{G, T, K}) where {G, T, K}
    return iszero(w) ? zero(SVector{K, T}) : w * SVector{K, T}(partials(y).values)
end

# -- kernels -----------------------------------------------------------------------------------

"What all threads read."
struct Data{U, V, M, I}
    u0::U                            # (n, N)
    p::V
    own::M                           # (nown, N)
    slot::I                          # of each parameter: its row of `own`, or 0
    directions::I                    # of each parameter: its direction, or 0
end
Adapt.adapt_structure(to, x::Data) =
    Data(map(y -> adapt(to, y), (x.u0, x.p, x.own, x.slot, x.directions))...)

@inline state(::Val{N}, ::Type{T}, u0, i) where {N, T} =
    SVector{N, T}(ntuple(j -> (@inbounds u0[j, i]), Val(N)))
@inline function seeded_state(::Val{N}, ::Type{S}, u0, i, first_, by_state) where {N, S <: Dual}
    unit(j, ::Type{Dual{G, T, K}}) where {G, T, K} =
        Dual{G}((@inbounds u0[j, i]), Partials(ntuple(q -> T(by_state & (j == first_ + q)), Val(K))))
    return SVector{N, S}(ntuple(j -> unit(j, S), Val(N)))
end

@kernel function solve_kernel!(
        u, report, reached, data, f, alg, times, steps, ::Val{N}, ::Val{NP}, ::Val{T}
    ) where {N, NP, T}
    i = @index(Global, Linear)
    all_p = Parameters{T}(data.p, data.own, data.slot, data.directions, i, 0)
    result = walk(
        Keep(u, i), nothing, alg, f, state(Val(N), T, data.u0, i), parameters(Val(NP), all_p),
        span_of(times, i), times, steps
    )
    @inbounds begin
        report[1, i], report[2, i] = result[2], result[3]
        report[3, i], report[4, i] = result[4], result[5]
        reached[i] = result[6]
    end
end

@kernel function pull_kernel!(
        gradient, report, w, data, f, alg, times, steps, by_state, members, ::Val{N}, ::Val{NP},
        ::Val{T}, ::Val{K}
    ) where {N, NP, T, K}
    thread = @index(Global, Linear)
    i, chunk = (thread - 1) % members + 1, (thread - 1) ÷ members
    first_ = chunk * K
    S = Dual{MemberTag, T, K}
    all_p = Parameters{S}(data.p, data.own, data.slot, data.directions, i, first_)
    result = walk(
        Pull(w, i), zero(SVector{K, T}), alg, f,
        seeded_state(Val(N), S, data.u0, i, first_, by_state), parameters(Val(NP), all_p),
        span_of(times, i), times, steps
    )
    for q in 1:min(K, size(gradient, 1) - first_)
        @inbounds gradient[first_ + q, i] = result[1][q]
    end
    @inbounds report[1, i, chunk + 1], report[2, i, chunk + 1] = result[2], result[3]
end

# f at outputs: the slopes by which a cotangent of the state is one of the time.
@kernel function slope_kernel!(
        slopes, u, data, f, times, ::Val{N}, ::Val{NP}, ::Val{T}
    ) where {N, NP, T}
    thread = @index(Global, Linear)
    m = size(u, 2)
    k, i = (thread - 1) % m + 1, (thread - 1) ÷ m + 1
    all_p = Parameters{T}(data.p, data.own, data.slot, data.directions, i, 0)
    v = f(
        column(Val(N), T, u, k, i), parameters(Val(NP), all_p),
        output_time(times, span_of(times, i), k)
    )
    write!(slopes, v, k, i)
end

# -- the host's side ---------------------------------------------------------------------------

const GROUP = 64                     # threads a group: each needs many registers

# The vector of `n` numbers at an address of the device's, or of the host's.
function taken(r::MembersRequest, m::MembersModel{T}, at, n) where {T}
    r.there != 0 && return wrap(m.device, T, at, n)
    return upload(m.device, n == 0 ? T[] : unsafe_wrap(Array, Ptr{T}(at), Int(n)))
end
# The same to be filled, and what brings it there.
function filled(r::MembersRequest, m::MembersModel{T}, at, n, like) where {T}
    r.there != 0 && return wrap(m.device, T, at, n)
    return like isa Array ? unsafe_wrap(Array, Ptr{T}(at), Int(n)) : similar(like, T, n)
end
function bring(r::MembersRequest, ::MembersModel{T}, at, x) where {T}
    r.there != 0 || x isa Array || isempty(x) || unsafe_copyto!(Ptr{T}(at), pointer(Array(x)), length(x))
    return
end

outputs(r::MembersRequest) = r.nsaveat == 0 ? 2 : Int(r.nsaveat)

# What kernels read, on the device, with directions by the parameters `by` (from 1).
function data_of(r::MembersRequest, m::MembersModel{T}, by::Vector{Int}, offset) where {T}
    N = Int(r.members)
    slot, directions = zeros(Int, m.np), zeros(Int, m.np)
    for (row, j) in enumerate(vector(Int64, r.at, r.nown))
        slot[j + 1] = row
    end
    for (d, j) in enumerate(by)
        directions[j] = offset + d
    end
    return Data(
        reshape(taken(r, m, r.u0, m.n * N), m.n, N), taken(r, m, r.p, m.np),
        reshape(taken(r, m, r.own, r.nown * N), Int(r.nown), N), upload(m.device, slot),
        upload(m.device, directions)
    )
end

function times_of_request(r::MembersRequest, m::MembersModel{T}) where {T}
    spans = r.spans == C_NULL ? [r.t0, r.t1] : vector(Float64, r.spans, 2 * r.members)
    return Times(
        reshape(upload(m.device, T.(spans)), 2, :),
        upload(m.device, T.(vector(Float64, r.saveat, r.nsaveat)))
    )
end

function steps_of(r::MembersRequest, m::MembersModel{T}) where {T}
    given = T.(vector(Float64, r.abstol, r.nabstol))
    abstol = length(given) == 1 ? given[1] : SVector{m.n, T}(given)
    or(x, otherwise) = isnan(x) ? T(otherwise) : T(x)
    return Steps{r.adaptive != 0}(
        abstol, T(r.reltol), T(r.dt), or(r.dtmax, Inf), or(r.dtmin, 0), Int(r.maxiters)
    )
end

backend_of(data::Data) = get_backend(data.u0)
# A group of the processor's is a task: few members, and all of its threads have some.
group(::KernelAbstractions.CPU, n) = clamp(cld(n, 4 * Threads.nthreads()), 1, GROUP)
group(backend, n) = GROUP
function launch(m::MembersModel, kernel, data, n, args...)
    backend = backend_of(data)
    kernel(backend)(args...; ndrange = n, workgroupsize = group(backend, n))
    settle(m.device)
    return
end

function PySciML.solve_members(r::MembersRequest, m::MembersModel{T}, alg) where {T}
    lock(m.lock) do
        activate(m.device)
        N, M = Int(r.members), outputs(r)
        data = data_of(r, m, Int[], 0)
        f = member_function(m, alg, taken(r, m, r.c, m.nc))
        u = filled(r, m, r.u, m.n * M * N, data.u0)
        fill!(u, T(NaN))
        report, reached = upload(m.device, zeros(Int, 4, N)), upload(m.device, zeros(T, N))
        launch(
            m, solve_kernel!, data, N, reshape(u, m.n, M, N), report, reached, data, f, alg,
            times_of_request(r, m), steps_of(r, m), Val(m.n), Val(m.np), Val(T)
        )
        bring(r, m, r.u, u)
        found = Array(report)
        unsafe_copyto!(Ptr{Int}(r.counts), pointer(found), length(found))
        ended = Float64.(Array(reached))
        unsafe_copyto!(r.reached, pointer(ended), N)
        settle(m.device)
    end
    return
end

"""
    chunk(n, directions)

How many directions a thread takes: the numbers of a stage stay within what a thread has registers
for, and all chunks have about the same size.
"""
function chunk(n, directions)
    most = clamp(32 ÷ n, 1, 8)
    return cld(directions, cld(directions, most))
end

function PySciML.differentiate_members(a::MembersAdjointRequest, m::MembersModel{T}, alg) where {T}
    r = a.forward
    lock(m.lock) do
        activate(m.device)
        n, N, M = m.n, Int(r.members), outputs(r)
        by, by_state = vector(Int64, a.directions, a.ndirections) .+ 1, a.by_state != 0
        D = (by_state ? n : 0) + length(by)
        data = data_of(r, m, by, by_state ? n : 0)
        f = member_function(m, alg, taken(r, m, r.c, m.nc))
        times, w = times_of_request(r, m), taken(r, m, a.cotangents, n * M * N)
        if D > 0
            K = chunk(n, D)
            chunks = cld(D, K)
            gradient = filled(r, m, a.gradient, D * N, data.u0)
            report = upload(m.device, zeros(Int, 2, N, chunks))
            launch(
                m, pull_kernel!, data, N * chunks, reshape(gradient, D, N), report,
                reshape(w, n, M, N), data, f, alg, times, steps_of(r, m), by_state, N, Val(n),
                Val(m.np), Val(T), Val(K)
            )
            bring(r, m, a.gradient, gradient)
            require_outputs(Array(report), vector(Int64, r.counts, 4 * N), N)
        end
        if a.slopes != C_NULL
            slopes = filled(r, m, a.slopes, n * M * N, data.u0)
            launch(
                m, slope_kernel!, data, M * N, reshape(slopes, n, M, N),
                reshape(taken(r, m, r.u, n * M * N), n, M, N), data, f.f, times, Val(n), Val(m.np),
                Val(T)
            )
            bring(r, m, a.slopes, slopes)
        end
        settle(m.device)
    end
    return
end

function require_outputs(report, counts, N)
    for i in 1:N
        reached, code = findmin(view(report, 1, i, :))
        reached < counts[4 * (i - 1) + 1] && error(
            "the sensitivities of member $(i - 1) stopped with retcode " *
                "$(ReturnCode.T(report[2, i, code])) before the last output; they have the solution's " *
                "tolerances: loosen these, or take EnsembleThreads()"
        )
    end
    return
end
