# The adjoint of the discrete solution: the steps of an explicit Runge-Kutta method backwards.

"""
    DiscreteAdjoint()

The derivative of the numbers that the solver computed, with its steps taken as given: each step
is run backwards through its stages by vector-Jacobian products, the outputs between steps through
the interpolant, which is linear in the stages. Exact for the discrete solution; costs one product
a stage, restarts nowhere, and needs the stages that a dense solution keeps. For `Tsit5`.

A step may be too long for modes of the model that the solution does not hold: the solution never
shows it, while a cotangent that excites such a mode would grow without bound where the method is
unstable. So the Jacobian's size is followed by power iteration, and a step that does not resolve
it is gone back through by the continuous adjoint, in as many parts as are needed.

Sanz-Serna, "Symplectic Runge-Kutta schemes for adjoint equations, automatic differentiation,
optimal control, and more", SIAM Review 58 (2016).
"""
struct DiscreteAdjoint end

# Tsitouras, "Runge-Kutta pairs of order 5(4) satisfying only the first column simplifying
# assumption", Computers & Mathematics with Applications 62 (2011): nodes, stages (the last row is
# the step itself), and the interpolant's weights as polynomials in theta, from its lowest power.
const TSIT5_C = (0.0, 0.161, 0.327, 0.9, 0.9800255409045097, 1.0, 1.0)
# Rows of one length, filled up with zeros, so that all have one type.
padded(row) = ntuple(i -> i <= length(row) ? Float64(row[i]) : 0.0, 6)
const TSIT5_A = map(
    padded, (
    (),
    (0.161,),
    (-0.008480655492356989, 0.335480655492357),
    (2.8971530571054935, -6.359448489975075, 4.3622954328695815),
    (5.325864828439257, -11.748883564062828, 7.4955393428898365, -0.09249506636175525),
    (
        5.86145544294642, -12.92096931784711, 8.159367898576159, -0.071584973281401,
        -0.028269050394068383,
    ),
    (
        0.09646076681806523, 0.01, 0.4798896504144996, 1.379008574103742, -3.290069515436081,
        2.324710524099774,
    ),
    )
)
const TSIT5_WEIGHTS = (
    (1.0, -2.763706197274826, 2.9132554618219126, -1.0530884977290216),
    (0.0, 0.13169999999999998, -0.2234, 0.1017),
    (0.0, 3.9302962368947516, -5.941033872131505, 2.490627285651253),
    (0.0, -12.411077166933676, 30.33818863028232, -16.548102889244902),
    (0.0, 37.50931341651104, -88.1789048947664, 47.37952196281928),
    (0.0, -27.896526289197286, 65.09189467479366, -34.87065786149661),
    (0.0, 1.5, -4.0, 2.5),
)

weight(i, theta) = theta * evalpoly(theta, TSIT5_WEIGHTS[i])

# The method's error on a mode z = h lambda is mostly the first power that its stability function
# lacks, |z|^7 / 5040; that of |z|^6 is off by 4e-5 only. Modes count as resolved where it is at
# most 30 times the tolerance, as for collocation, and well within the method's stability.
resolved(reltol) = min((SLACK * 5040 * reltol)^(1 // 7), 1.25)

segment_adjoint(
    ::DiscreteAdjoint, sol, alg, ts::Vector{T}, cotangents::Matrix{T}, abstol, reltol, model
) where {T} = error(
    "DiscreteAdjoint takes solutions by Tsit5, and this one is by $(nameof(typeof(alg))); " *
        "use GaussAdjoint"
)
segment_adjoint(
    ::DiscreteAdjoint, sol, ::Tsit5, ts::Vector{T}, cotangents::Matrix{T}, abstol, reltol, model
) where {T} = backwards(
    model.functions, sol.t, sol.u, sol.k, sol.prob.p, ts, cotangents, T(reltol)
)

function backwards(
        f::Functions{T}, times::Vector{T}, us::Vector{Vector{T}},
        stages::Vector{Vector{Vector{T}}}, p::Vector{T}, ts::Vector{T}, cotangents::Matrix{T},
        reltol::T
    ) where {T}
    n = length(first(us))
    lambda, passed, y = zeros(T, n), zeros(T, n), zeros(T, n)
    nu = [zeros(T, n) for _ in 1:7]      # cotangents of the stages
    # with few parameters both products come from one sweep, and `pulled` holds them all
    gathered = Gathered(f, p, n)
    together = !gathered.batched
    pulled = zeros(T, together ? n + length(p) : n)
    total = zeros(T, length(pulled))
    product!(w, u, t) = together ? f.vjp_up(pulled, w, u, p, t) : f.vjp(pulled, w, u, p, t)
    # through f at a stage's state, whose cotangent is `w`: the first n of `pulled`; the parameters'
    # part counts `weight` times
    function pull!(w, u, t, weight = one(T))
        product!(w, u, t)
        together ? add!(total, weight, pulled) : gather!(gathered, weight, w, u, t)
        return
    end
    growth = Growth(lambda)
    reach = T(resolved(max(reltol, eps(T))))
    limit = T(1.5) * reach
    j, watch = length(ts), Watch()
    for i in (length(times) - 1):-1:1
        watch(nothing, times[i], nothing)
        t, dt, u, k = times[i], times[i + 1] - times[i], us[i], stages[i + 1]
        dt == 0 && continue
        if !all(iszero, lambda) || j >= 1 && (ts[j] - t) / dt > 0
            z = abs(dt) * follow!(growth, dt, limit) do v
                product!(v, us[i + 1], times[i + 1])
                pulled
            end
            if z > limit
                if !all(iszero, passed)
                    pull!(passed, us[i + 1], times[i + 1])
                    add!(lambda, one(T), pulled)
                    fill!(passed, zero(T))
                end
                from = one(T)
                while true
                    inside = j >= 1 && (ts[j] - t) / dt > 0
                    to = inside ? min(T((ts[j] - t) / dt), one(T)) : zero(T)
                    parts = ceil(Int, min((from - to) * z / reach, T(MOST_PARTS)))
                    for m in parts:-1:1
                        b = to + m * (from - to) / parts
                        substep!(pull!, lambda, pulled, nu, y, u, k, t, dt, b, (from - to) / parts)
                    end
                    inside || break
                    add!(lambda, one(T), view(cotangents, :, j))
                    j, from = j - 1, to
                end
                continue
            end
        end
        # the last stage is the first one of the step after this
        nu[7], passed = passed, nu[7]
        for s in 1:6
            fill!(nu[s], zero(T))
        end
        fill!(y, zero(T))                # of u at the step's beginning, by the outputs
        while j >= 1 && (ts[j] - t) / dt > 0
            theta = (ts[j] - t) / dt
            if theta >= 1
                add!(lambda, one(T), view(cotangents, :, j))
            else
                add!(y, one(T), view(cotangents, :, j))
                for s in 1:7
                    add!(nu[s], T(dt * weight(s, theta)), view(cotangents, :, j))
                end
            end
            j -= 1
        end
        if !all(iszero, nu[7])
            pull!(nu[7], us[i + 1], times[i + 1])
            add!(lambda, one(T), pulled)
        end
        for s in 1:6
            add!(nu[s], T(dt * TSIT5_A[7][s]), lambda)
        end
        add!(lambda, one(T), y)
        for s in 6:-1:2
            all(iszero, nu[s]) && continue
            copyto!(y, u)
            for r in 1:(s - 1)
                add!(y, T(dt * TSIT5_A[s][r]), k[r])
            end
            pull!(nu[s], y, T(t + TSIT5_C[s] * dt))
            add!(lambda, one(T), pulled)
            for r in 1:(s - 1)
                add!(nu[r], T(dt * TSIT5_A[s][r]), pulled)
            end
        end
        nu[1], passed = passed, nu[1]
    end
    if !all(iszero, passed)
        pull!(passed, us[1], times[1])
        add!(lambda, one(T), pulled)
    end
    for i in j:-1:1
        add!(lambda, one(T), view(cotangents, :, i))
    end
    return lambda, together ? total[(n + 1):end] : finish!(gathered)
end

# lambda from u(t + b dt) to u(t + (b - length) dt), by a step of the same method on the continuous
# adjoint along the dense solution. The products are put in `nu`.
function substep!(
        pull!::F, lambda::Vector{T}, pulled, nu, y, u, k, t::T, dt::T, b, length
    ) where {F, T}
    h = length * dt
    for s in 1:6
        theta = b - TSIT5_C[s] * length
        copyto!(y, u)
        for r in 1:7
            add!(y, T(dt * weight(r, theta)), k[r])
        end
        stage = nu[7]
        copyto!(stage, lambda)
        for r in 1:(s - 1)
            add!(stage, T(h * TSIT5_A[s][r]), nu[r])
        end
        pull!(stage, y, T(t + theta * dt), T(h * TSIT5_A[7][s]))
        copyto!(nu[s], 1, pulled, 1, Base.length(lambda))
    end
    for s in 1:6
        add!(lambda, T(h * TSIT5_A[7][s]), nu[s])
    end
    return
end

# The size of the transposed Jacobian by power iteration, carried from step to step.
mutable struct Growth{T}
    v::Vector{T}
    rate::T
    since::Int                       # steps since it was looked at
end

function Growth(like::Vector{T}) where {T}
    # any vector will do that holds something of every mode
    v = [one(T) + T(0.5) * sin(T(37) * i * i) for i in eachindex(like)]
    v ./= norm(v)
    return Growth{T}(v, T(-1), 0)
end

# The rate at which the fastest mode moves; `product` multiplies with the Jacobian. Two products at
# a time: of an oscillator in unequal units one alone may say anything. Looked at every fourth step
# while the step is far from `limit`.
function follow!(product::F, g::Growth{T}, dt, limit) where {F, T}
    g.since += 1
    abs(dt) * g.rate < limit / 3 && 0 <= g.rate && g.since < 4 && return g.rate
    first_look = g.rate < 0
    g.since = 0
    for _ in 1:(first_look ? 3 : 1)
        square = one(T)
        for _ in 1:2
            product_of_v = product(g.v)
            size = norm(view(product_of_v, 1:length(g.v)))
            (isfinite(size) && size > 0) || return g.rate = zero(T)
            square *= size
            for i in eachindex(g.v)
                g.v[i] = product_of_v[i] / size
            end
        end
        g.rate = sqrt(square)
    end
    return g.rate
end
