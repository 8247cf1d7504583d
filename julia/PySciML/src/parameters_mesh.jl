# Where the parameters' product changes faster than the solution: a mesh that resolves it.
#
# The solver's steps tell how fast the solution changes. Where the rate depends on time otherwise than
# through the state, f_p may change faster, as that of a control that is zero so far, and the steps
# are too long for its integral beside the adjoint's weights. f_p in a fixed direction, by a
# difference, at the three nodes of every interval, tells what the Radau rule makes of it there.

# The rule's error for cos(w t), in units of h |cos|, is this times the 5/2-th power of the second
# divided difference at its nodes: 1.4e-5 (h w)^5, and the difference is (h w)^2 / 2.
const RADAU_ERROR = 7.9e-5
# Differences beyond `SEEN` times the values near by tell of no rate, as the nodes skip whole waves (it is
# (h w)^2 / 2 where they do not, about 5 where they do): such intervals are cut in `BLIND`.
const SEEN, BLIND = 1.0, 8
# Larger states are looked at together: of so many entries some always bend.
const APART = 50
# Most rounds of cutting, and most intervals.
const ROUNDS, MOST_INTERVALS = 6, 20_000

# Weights of the second divided difference, of values in the nodes' order.
const SECOND = ntuple(3) do i
    inv(prod(RADAU_C[j] - RADAU_C[i] for j in 1:3 if j != i))
end

resolved(mesh, e::Equation{T, <:Residual}, interp, p, reltol) where {T} = mesh
function resolved(
        mesh::Vector{T}, e::Equation{T, <:Functions}, interp, p::Vector{T}, reltol
    ) where {T}
    (isempty(p) || length(mesh) < 2) && return mesh
    along = Along(e.functions, p, e.n)
    interp(along.u, mesh[1], nothing, Val{0}, p, :right)
    moves_with_time!(along, mesh[1], mesh[end]) || return mesh
    for _ in 1:ROUNDS
        parts = parts_by_parameters(mesh, along, interp, p, max(T(reltol), eps(T)))
        all(==(1), parts) && break
        sum(parts) <= MOST_INTERVALS || break
        mesh = subdivided(mesh, parts)
    end
    return mesh
end

# f_p in a direction that all parameters have a part in, times a step.
struct Along{T, F}
    value::F
    ahead::Vector{T}
    behind::Vector{T}
    u::Vector{T}
    one::Vector{T}
    other::Vector{T}
    moved::NTuple{3, Vector{T}}
end
function Along(f::Functions{T}, p::Vector{T}, n) where {T}
    largest = maximum(abs, p)
    floor_ = T(1.0e-3) * (largest > 0 ? largest : one(T))
    step = [cbrt(eps(T)) * (abs(p[i]) + floor_) * T(cos(2 * (i - 1)^2 + 1)) for i in eachindex(p)]
    line() = zeros(T, n)
    return Along(
        f.value, p .+ step, p .- step, line(), line(), line(), (line(), line(), line())
    )
end

function along!(to, a::Along, t)
    a.value(a.one, a.u, a.ahead, t)
    a.value(a.other, a.u, a.behind, t)
    to .= a.one .- a.other
    return to
end

# Whether f_p at one state is another at other times.
function moves_with_time!(a::Along{T}, t0, t1) where {T}
    first_, now = along!(a.moved[1], a, t0), a.moved[2]
    return any(along!(now, a, T(t0 + x * (t1 - t0))) != first_ for x in (0.29, 0.53, 1))
end

function parts_by_parameters(mesh::Vector{T}, a::Along{T}, interp, p, reltol) where {T}
    count, n = length(mesh) - 1, length(a.u)
    rows = n <= APART ? n : 1
    largest, second, whole = zeros(T, rows, count), zeros(T, rows, count), zeros(T, rows)
    bend = zeros(T, n)
    for k in 1:count
        from, to = mesh[k], mesh[k + 1]
        h = to - from
        for i in 1:3
            t = i == 3 ? from : T(to - RADAU_C[i] * h)
            interp(a.u, t, nothing, Val{0}, p, i == 3 ? :right : :left)
            along!(a.moved[i], a, t)
        end
        x, y, z = a.moved
        bend .= SECOND[1] .* x .+ SECOND[2] .* y .+ SECOND[3] .* z
        if rows == 1
            largest[1, k], second[1, k] = maximum(norm, a.moved), norm(bend)
        else
            for r in 1:n
                largest[r, k], second[r, k] = maximum(v -> abs(v[r]), a.moved), abs(bend[r])
            end
        end
        whole .+= abs(h) .* view(largest, :, k)
    end
    # not finite in this direction: it cannot be told
    all(isfinite, second) || return ones(Int, count)
    parts = ones(count)
    for k in 1:count
        h, ratio, near = abs(mesh[k + 1] - mesh[k]), zero(T), max(k - 2, 1):min(k + 2, count)
        for r in 1:rows
            # Waves take themselves away in the integral, and the adjoint may be large where f_p is
            # small: an interval is held to the tolerance of what is near by, where it counts
            h * largest[r, k] > reltol * whole[r] / count || continue
            ratio = max(ratio, second[r, k] / maximum(view(largest, r, near)))
        end
        need = RADAU_ERROR * Float64(ratio)^2.5 / reltol
        need > 1 && (parts[k] = ceil(1.1 * need^0.2))
        ratio > SEEN && (parts[k] = BLIND)
    end
    return as_neighbours(parts, mesh)
end

# Three nodes that skip whole waves may lie on a line by chance; not in the intervals beside too: no
# interval is longer than the parts of one near it that is cut.
function as_neighbours(parts::Vector{Float64}, mesh)
    count = length(parts)
    return map(1:count) do k
        h, shortest = abs(mesh[k + 1] - mesh[k]), Inf
        for j in max(k - 2, 1):min(k + 2, count)
            parts[j] > 1 && (shortest = min(shortest, abs(mesh[j + 1] - mesh[j]) / parts[j]))
        end
        clamp(ceil(Int, h / shortest - 1.0e-6), 1, 2BLIND)
    end
end

function subdivided(mesh::Vector{T}, parts::Vector{Int}) where {T}
    out = T[mesh[1]]
    for (k, m) in enumerate(parts)
        a, b = mesh[k], mesh[k + 1]
        append!(out, T(a + (b - a) * i / m) for i in 1:(m - 1))
        push!(out, b)
    end
    return out
end
