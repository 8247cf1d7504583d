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
it is gone back through by the continuous adjoint, in as many parts as are needed; in fewer where
that mode decays and is gone by the beginning: its integral is right whenever it is damped. So is a
step that does not resolve f_p (see driven_mesh.jl).

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
    ::DiscreteAdjoint, sol, alg::Tsit5, ts::Vector{T}, cotangents::Matrix{T}, abstol, reltol, model
) where {T} = backwards(
    model.functions, sol.t, sol.u, sol.k, sol.prob.p, ts, cotangents, T(reltol),
    readable(sol, alg).interp
)

function backwards(
        f::Functions{T}, times::Vector{T}, us::Vector{Vector{T}},
        stages::Vector{Vector{Vector{T}}}, p::Vector{T}, ts::Vector{T}, cotangents::Matrix{T},
        reltol::T, interp
    ) where {T}
    n = length(first(us))
    # with few parameters both products come from one sweep, and `pulled` holds them all
    gathered = Gathered(f, p, n)
    together = !gathered.batched
    pulled = zeros(T, together ? n + length(p) : n)
    total = zeros(T, length(pulled))
    product!(w, u, t) = together ? f.vjp_up(pulled, w, u, p, t) : f.vjp(pulled, w, u, p, t)
    keep!(weight, w, u, t) =
        together ? add!(total, weight, pulled) : gather!(gathered, weight, w, u, t)
    lambda = steps_back(
        product!, keep!, view(pulled, 1:n), zeros(T, n), times, us, stages, ts, cotangents, reltol,
        parts_for_steps(times, f, n, interp, p, reltol)
    )
    return lambda, together ? deleteat!(total, 1:n) : finish!(gathered)
end

# The size of the transposed Jacobian by power iteration, carried from step to step.
mutable struct Growth{T, V}
    const v::V
    rate::T
    size::T                          # of the last product
    since::Int                       # steps since it was looked at
    against::T                       # the last product's cosine with what it was taken of
    decays::Bool                     # whether the fastest mode does, by two products
end

function Growth(like::AbstractVector{T}) where {T}
    # any vector will do that holds something of every mode
    v = [one(T) + T(0.5) * sin(T(37) * i * i) for i in eachindex(like)]
    return Growth(copyto!(similar(like), v ./ norm(v)), T(-1), zero(T), 0, zero(T), false)
end

# The rate at which the fastest mode moves; `product` multiplies with the Jacobian. Of two products
# together: of an oscillator in unequal units one alone may say anything. The last look's is one of
# them where this one's is not much larger. Looked at every fourth step while the step is far from
# `limit`.
function follow!(product::F, g::Growth{T}, dt, limit) where {F, T}
    g.since += 1
    abs(dt) * g.rate < limit / 3 && 0 <= g.rate && g.since < 4 && return g.rate
    return look!(product, g)
end

function look!(product::F, g::Growth{T}) where {F, T}
    first_look = g.rate < 0
    g.since = 0
    for _ in 1:(first_look ? 6 : 2)
        before = g.size
        product_of_v = product(g.v)
        g.size = sqrt(sum(abs2, product_of_v))
        if !(isfinite(g.size) && g.size > 0)
            g.size, g.decays = zero(T), false
            return g.rate = zero(T)
        end
        # of one that swings the next product's cosine is of the other sign
        last = g.against
        g.against = dot(g.v, product_of_v) / g.size
        g.decays = max(last, g.against) < T(-0.9)
        g.v .= product_of_v ./ g.size
        g.rate = sqrt(before * g.size)
        !first_look && g.size < T(1.5) * before && break
    end
    return g.rate
end

# One step of a solution: u(t), the step's length, and its stages.
struct Step{T, V}
    t::T
    dt::T
    u::V
    k::Vector{V}
end

# y = u(t + theta dt)
function state!(y, s::Step{T}, theta) where {T}
    copyto!(y, s.u)
    for r in 1:7
        add!(y, T(s.dt * weight(r, theta)), s.k[r])
    end
    return y
end

# The way back over the steps, on the host or a device.
mutable struct StepsBack{T, V, P, K, X, C}
    const product!::P                # (w, u, t): the product with the Jacobian at u, into `pulled`
    const keep!::K                   # (weight, w, u, t): adds the parameters' part of the product
    const pulled::X
    const lambda::V
    const y::V
    const nu::Vector{V}              # cotangents of the stages
    passed::V                        # of the stage that the step before shares with this one
    handed::Bool                     # whether that is anything
    const ts::Vector{T}
    const cotangents::C
    j::Int                           # outputs that are still to come in
    moved::Bool                      # whether any cotangent has
    const growth::Growth{T, V}
    const reach::T
end

# Gives the cotangent of the first state; `lambda` are zeros like it. `parts`: how many each step is
# cut in at least.
function steps_back(
        product!::P, keep!::K, pulled, lambda::V, times::Vector{T}, us, stages, ts::Vector{T},
        cotangents, reltol, parts::Vector{Int} = Int[]
    ) where {P, K, T, V}
    empty_() = zero(lambda)
    b = StepsBack(
        product!, keep!, pulled, lambda, empty_(), [empty_() for _ in 1:7], empty_(), false, ts,
        cotangents, length(ts), false, Growth(lambda), T(resolved(max(reltol, eps(T))))
    )
    watch, limit = Watch(), T(1.5) * b.reach
    for i in (length(times) - 1):-1:1
        watch(nothing, times[i], nothing)
        step = Step(times[i], times[i + 1] - times[i], us[i], stages[i + 1])
        (step.dt == 0 || !b.moved && !arrives(b, step)) && continue
        u, t = us[i + 1], times[i + 1]
        rate = follow!(b.growth, step.dt, limit) do v
            product!(v, u, t)
            pulled
        end
        z = abs(step.dt) * rate
        if !isempty(parts) && parts[i] > 1
            # a Jacobian that changes with time may be larger within the step
            for theta in (T(0.7), T(0.4), T(0.1))
                at = T(step.t + theta * step.dt)
                state!(b.y, step, theta)
                z = max(z, abs(step.dt) * look!(v -> (product!(v, b.y, at); pulled), b.growth))
            end
            in_parts!(b, step, u, t, max(z, parts[i] * b.reach))
        else
            # one that decays, and is gone by the beginning, need not be followed as closely: its
            # integral is right if it is damped
            gone = b.growth.decays && rate * abs(times[i] - times[1]) > -log(reltol)
            z > limit ? in_parts!(b, step, u, t, gone ? z * b.reach / limit : z) :
                as_taken!(b, step, u, t)
        end
    end
    b.handed && pull!(b, b.passed, us[1], times[1])
    while b.j >= 1
        take!(b)
    end
    return b.lambda
end

# Through f at a state, whose rate has the cotangent `w`; the parameters' part counts `weight` times.
function pull!(b::StepsBack{T}, w, u, t) where {T}
    b.product!(w, u, t)
    b.keep!(one(T), w, u, t)
    add!(b.lambda, one(T), b.pulled)
    return
end

arrives(b::StepsBack, s::Step) = b.j >= 1 && (b.ts[b.j] - s.t) / s.dt > 0

# The next output's cotangent, which comes in at the end of what is still to be gone through.
function take!(b::StepsBack{T}) where {T}
    cotangent = view(b.cotangents, :, b.j)
    b.moved = b.moved || !all(iszero, cotangent)
    add!(b.lambda, one(T), cotangent)
    b.j -= 1
    return
end

# Through a step as the solver took it, from its end (u, t).
function as_taken!(b::StepsBack{T}, step::Step{T}, u, t) where {T}
    dt, nu, lambda, y = step.dt, b.nu, b.lambda, b.y
    # the last stage is the first one of the step after this
    nu[7], b.passed = b.passed, nu[7]
    for s in 1:(b.handed ? 6 : 7)
        fill!(nu[s], zero(T))
    end
    fill!(y, zero(T))                    # of u at the step's beginning, by the outputs
    while arrives(b, step)
        theta = (b.ts[b.j] - step.t) / dt
        if theta >= 1
            take!(b)
            continue
        end
        cotangent = view(b.cotangents, :, b.j)
        add!(y, one(T), cotangent)
        for s in 1:7
            add!(nu[s], T(dt * weight(s, theta)), cotangent)
        end
        b.moved = b.moved || !all(iszero, cotangent)
        b.handed = true
        b.j -= 1
    end
    b.moved || return
    b.handed && pull!(b, nu[7], u, t)
    for s in 1:6
        add!(nu[s], T(dt * TSIT5_A[7][s]), lambda)
    end
    add!(lambda, one(T), y)
    for s in 6:-1:2
        copyto!(y, step.u)
        for r in 1:(s - 1)
            add!(y, T(dt * TSIT5_A[s][r]), step.k[r])
        end
        pull!(b, nu[s], y, T(step.t + TSIT5_C[s] * dt))
        for r in 1:(s - 1)
            add!(nu[r], T(dt * TSIT5_A[s][r]), b.pulled)
        end
    end
    nu[1], b.passed = b.passed, nu[1]
    b.handed = true
    return
end

# Through a step that is too long for the fastest mode, |h lambda| = z, or for f_p, by the continuous
# adjoint.
function in_parts!(b::StepsBack{T}, step::Step{T}, u, t, z) where {T}
    if b.handed
        pull!(b, b.passed, u, t)
        b.handed = false
    end
    from = one(T)
    while true
        inside = arrives(b, step)
        to = inside ? min(T((b.ts[b.j] - step.t) / step.dt), one(T)) : zero(T)
        parts = ceil(Int, min((from - to) * z / b.reach, T(MOST_PARTS)))
        for m in parts:-1:1
            substep!(b, step, to + m * (from - to) / parts, (from - to) / parts)
        end
        inside || return
        take!(b)
        from = to
    end
    return
end

# lambda from u(t + theta dt) back by `part` of the step: by one step of the same method on the
# continuous adjoint along the dense solution. The products are put in `nu`.
function substep!(b::StepsBack{T}, step::Step{T}, theta, part) where {T}
    h, nu, stage = part * step.dt, b.nu, b.nu[7]
    for s in 1:6
        at = theta - TSIT5_C[s] * part
        state!(b.y, step, at)
        copyto!(stage, b.lambda)
        for r in 1:(s - 1)
            add!(stage, T(h * TSIT5_A[s][r]), nu[r])
        end
        time = T(step.t + at * step.dt)
        b.product!(stage, b.y, time)
        b.keep!(T(h * TSIT5_A[7][s]), stage, b.y, time)
        copyto!(nu[s], b.pulled)
    end
    for s in 1:6
        add!(b.lambda, T(h * TSIT5_A[7][s]), nu[s])
    end
    return
end
