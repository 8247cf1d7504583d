# Where the state of a delay equation jumps, at t0 from the history to u0 and at events, and where a
# delayed time passes such a moment later: what the way back does there.
#
# Where a delayed time passes a jump the slope jumps, from f- to f+, and the moment t moves: with the
# time e of the jump, and with all that moves the lag,
#     s_t dt + s_u (d(t) + f- dt) + s_p dp = de,
# which moves the solution after it by (f- - f+) dt.

# The cotangents of the outputs, handed to the steps that they are read from; the return value is that
# of u0, of outputs before events at the very start.
function outputs!(b::DelayedSweep{T}, h::Handle, o::Outputs, ts, cotangents) where {T}
    before_all = zeros(T, b.d.n)
    for (s, range) in enumerate(o.ranges), j in o.inside[s]
        q = view(cotangents, :, j)
        if !nothing_between(h, range)
            scatter!(b, place(b, h, range, ts[j])..., q)
        elseif s == 1
            before_all .+= q
        else
            view(b.starts, :, length(b.mesh)) .+= q
        end
    end
    return before_all
end

# As `place`, from within a range of the solution's points.
function place(b::DelayedSweep{T}, h::Handle, range, t) where {T}
    t == finish_of(h, range) && return searchsortedfirst(b.mesh, t) - 1, one(T)
    t == h.sol.t[first(range)] && return searchsortedfirst(b.mesh, t), zero(T)
    return place(b, t)
end

# How the loss changes with the times of outputs; events move by themselves.
function output_slopes(h::Handle{T}, o::Outputs, ts, cotangents, at_start) where {T}
    out = zeros(Float64, length(ts))
    for (s, range) in enumerate(o.ranges), j in o.inside[s]
        t = ts[j]
        slope = t == h.prob.tspan[1] ? at_start :
            !isempty(range) && t == finish_of(h, range) ? h.sol(t, Val{1}; continuity = :left) :
            state_at(h.sol, t, Val{1})
        out[j] = dot(view(cotangents, :, j), slope)
    end
    return out
end

# The delayed times in the middle of the step before (side < 0) or after a point of the mesh, by which
# it is told what each of them sees there; beyond the ends as much further.
function middle_beside(b::DelayedSweep, i, side)
    j = side < 0 ? i - 1 : i
    if 1 <= j < length(b.mesh)
        half = (b.mesh[j] + b.mesh[j + 1]) / 2
        return copy(asked_times!(b.d, b.sol(half), b.p, half))
    end
    here = copy(asked_times!(b.d, state_beside(b, i, -side), b.p, b.mesh[i]))
    return 2 .* here .- middle_beside(b, i, -side)
end

state_beside(b::DelayedSweep, i, side) =
    side > 0 && i == length(b.mesh) ? copy(last(b.sol.u)) :
    b.sol(b.mesh[i]; continuity = side < 0 ? :left : :right)

# x and the rate at a point of the mesh where the state is u.
x_beside(b::DelayedSweep, i, side, u) =
    copy(gather_node!(b, u, b.mesh[i], middle_beside(b, i, side)))
function rate_beside(b::DelayedSweep{T}, i, side, u) where {T}
    out = zeros(T, b.d.n)
    b.d.rhs.value(out, x_beside(b, i, side, u), b.p, b.mesh[i])
    return out
end

# One delayed time that passes one jump: f- - f+, what the delayed time depends on, and how fast it is.
struct Passage{T}
    k::Int
    jump::Int
    x::Vector{T}
    gap::Vector{T}
    s_u::Vector{T}
    speed::T
end

# All that pass at a point of the mesh where the state is u, one after the other.
function passages(b::DelayedSweep{T}, i, u) where {T}
    d, p, t = b.d, b.p, b.mesh[i]
    earlier, later = middle_beside(b, i, -1), middle_beside(b, i, 1)
    x = copy(gather_node!(b, u, t, earlier))
    f_before, f_after, s_t = zeros(T, d.n), zeros(T, d.n), zeros(T, length(d.s))
    d.asked.jac(b.times, x, p, t)
    d.asked.tgrad(s_t, x, p, t)
    found = Passage{T}[]
    for (k, j) in b.passing[i]
        at = b.jumps[j]
        at < t && (earlier[k] < at) != (later[k] < at) || continue
        d.rhs.value(f_before, x, p, t)
        seen = copy(x)
        beyond!(view(x, range_of(d, k)), b, at, later[k] > at)
        d.rhs.value(f_after, x, p, t)
        f_before == f_after && continue
        s_u = b.times[k, 1:(d.n)]
        push!(found, Passage{T}(k, j, seen, f_before .- f_after, s_u, s_t[k] + dot(s_u, f_before)))
    end
    return found
end

# The state on one side of a jump.
function beyond!(to, b::DelayedSweep, at, after::Bool)
    d, i = b.d, searchsortedfirst(b.mesh, at)
    if i == 1 && !after
        d.history.value(d.at, d.x, b.p, at)
        copyto!(to, d.at)
    else
        copyto!(to, state_beside(b, i, after ? 1 : -1))
    end
    return
end

# The cotangent of the moment of a passage, from that of the state after it.
function of_moment(passage::Passage, lambda)
    c = dot(lambda, passage.gap) / passage.speed
    isfinite(c) || error(
        "a delayed time touches the moment at which the state jumps and does not pass it, so " *
            "this solution has no derivative"
    )
    return c
end

# The same, and that of the state before it, in place; the jump and the lag's parameters get theirs.
function passage_back!(lambda, b::DelayedSweep{T}, passage::Passage{T}, t) where {T}
    c = of_moment(passage, lambda)
    lambda .-= c .* passage.s_u
    b.of_jumps[passage.jump] += c
    if b.d.times_by_p
        moving = zeros(T, length(b.d.s))
        moving[passage.k] = one(T)
        gather!(b.asked, -c, moving, passage.x, t)
    end
    return lambda
end

# What happens at a point of the mesh: events, and delayed times that pass jumps.
function jump_back!(b::DelayedSweep{T}, h::Handle{T}, o::Outputs, extra, i, by_times) where {T}
    t, lambda = b.mesh[i], view(b.starts, :, i)
    g = findfirst(==(t), view(b.jumps, 2:length(b.jumps)))
    if g === nothing
        (isempty(b.passing[i]) || i == 1) && return
        for passage in Iterators.reverse(passages(b, i, state_beside(b, i, -1)))
            passage_back!(lambda, b, passage, t)
        end
        return
    end
    first_, last_ = h.log[first(o.groups[g])], h.log[last(o.groups[g])]
    after = state_after(h, last_, o.ranges[g + 1])
    lambda .+= view(o.after, :, g)
    mu = copy(lambda)
    o.of_time[g] += b.of_jumps[g + 1]
    left = through_events!(
        extra, h, o, g, mu,
        () -> (rate_beside(b, i, -1, first_.before), rate_beside(b, i, 1, after))
    )
    if i > 1 && !isempty(b.passing[i])
        at_once!(b, h, o, i, g, mu, left, first_.before, after, by_times)
    end
    copyto!(lambda, left)
    return
end

# A delayed time passes a jump exactly at another event: where its moment moves, it moves into what
# was before the event or into what comes after it, and the two have to be the same.
function at_once!(
        b::DelayedSweep{T}, h, o, i, g, mu, left, u_before, u_after, by_times
    ) where {T}
    t, d = b.mesh[i], b.d
    moves(passage) = d.times_by_p || d.moved[passage.k] == 2 ||
        (passage.jump == 1 ? by_times : moving_event(h, o.groups[passage.jump - 1]) !== nothing)
    here, there = passages(b, i, u_before), passages(b, i, u_after)
    fixed = moving_event(h, o.groups[g]) === nothing
    isempty(here) && isempty(there) && return
    fixed && !any(moves, here) && !any(moves, there) && return
    alike = fixed && length(here) == length(there) && all(iszero(passage.s_u) for passage in here)
    alike &= all(zip(here, there)) do (x, y)
        before, after = of_moment(x, left), of_moment(y, mu)
        abs(before - after) <= sqrt(eps(T)) * (abs(before) + abs(after))
    end
    alike || error(
        "a delayed time passes the jump at t = $(b.jumps[first([here; there]).jump]) exactly at " *
            "the event of t = $t, and which of the two is first decides how the solution changes: " *
            "it has no derivative by what moves them; move the event or the lag a little, or, " *
            "where nothing is to move the lag, write it as a number"
    )
    for passage in Iterators.reverse(here)
        passage_back!(left, b, passage, t)
    end
    return
end
