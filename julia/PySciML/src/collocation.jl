# Gradients of stiff equations and of DAEs: the adjoint by collocation on the solution's own mesh.

"""
    CollocationAdjoint()

The continuous adjoint, collocated on the steps of the forward solution and the output times by
the 3-stage Radau IIA rule, and the parameters' gradient by the same rule's weights. Stiffness is
harmless, nothing restarts at an output, and every form of equation is taken: a mass matrix of any
rank, and residuals of index 1. Forms dense Jacobians and solves systems of three times their size.

With `mu = M' lambda` the adjoint of `M u' = f(u, p, t)` is, backwards in time,
`mu(a) = mu(b) + integral of J' lambda`, and `dL/dp = integral of f_p' lambda`. On an interval
lambda is represented at the rule's nodes taken backwards from its end (Hairer and Wanner, "Solving
Ordinary Differential Equations II", section IV.5: order 5, stiffly accurate, L-stable).
"""
struct CollocationAdjoint end

const RADAU_C = ((4 - sqrt(6)) / 10, (4 + sqrt(6)) / 10, 1.0)
const RADAU_A = (
    ((88 - 7 * sqrt(6)) / 360, (296 - 169 * sqrt(6)) / 1800, (-2 + 3 * sqrt(6)) / 225),
    ((296 + 169 * sqrt(6)) / 1800, (88 + 7 * sqrt(6)) / 360, (-2 - 3 * sqrt(6)) / 225),
    ((16 - sqrt(6)) / 36, (16 + sqrt(6)) / 36, 1 / 9),
)
# Most parts that an interval is cut into, and the largest system solved by plain elimination.
const MOST_PARTS, PLAIN_SOLVE = 4096, 24
# An interval is cut where its error is SLACK times the tolerance, and then down to it.
const SLACK = 30

segment_adjoint(
    ::CollocationAdjoint, sol, alg, ts::Vector{T}, cotangents::Matrix{T}, abstol, reltol, model
) where {T} = collocate(
    Equation(model), readable(sol, alg).interp, sol.t, sol.prob.p, ts, cotangents, T(reltol)
)

# What one interval needs, made once a segment.
struct Collocation{T, E, I, G}
    equation::E
    interp::I
    p::Vector{T}
    reach::T                         # the largest |h lambda| of modes that have to be followed
    tol::T
    u::NTuple{3, Vector{T}}
    du::NTuple{3, Vector{T}}
    J::NTuple{3, Matrix{T}}
    M::Matrix{T}
    system::Matrix{T}
    stages::Vector{T}
    lambda::Vector{T}
    part::Vector{T}
    dp::Vector{T}
    near::Matrix{T}                  # a Jacobian with its mass matrix, and their eigenvalues
    near_mass::Matrix{T}
    eigenvalues::Vector{Complex{T}}
    gathered::G                      # of the parameters' gradient; nothing for a residual
end

gathering(e::Equation{T, <:Functions}, p) where {T} = Gathered(e.functions, p, e.n)
gathering(e::Equation{T, <:Residual}, p) where {T} = nothing

function Collocation(e::Equation{T}, interp, p, reltol) where {T}
    n = e.n
    square() = zeros(T, n, n)
    line() = zeros(T, n)
    # the rule's error on a mode z = h lambda is about |z|^6 / 7200, its error constant
    tol = max(T(reltol), eps(T))
    reach = (7200 * SLACK * tol)^(1 // 6)
    gathered = gathering(e, p)
    return Collocation{T, typeof(e), typeof(interp), typeof(gathered)}(
        e, interp, p, T(reach), tol, (line(), line(), line()), (line(), line(), line()),
        (square(), square(), square()), square(), zeros(T, 3n, 3n), zeros(T, 3n), line(),
        zeros(T, length(p)), zeros(T, length(p)), fill(T(NaN), n, n), square(),
        zeros(Complex{T}, n), gathered
    )
end

function collocate(
        e::Equation{T}, interp, steps::Vector{T}, p::Vector{T}, ts::Vector{T},
        cotangents::Matrix{T}, reltol
    ) where {T}
    w = Collocation(e, interp, p, reltol)
    mesh = resolving(joined_mesh(steps, ts), e.functions, e.n, interp, p, reltol)
    mu, j, watch = zeros(T, e.n), length(ts), Watch()
    function jump!(t)
        while j >= 1 && ts[j] == t
            mu .+= acting(w, view(cotangents, :, j), t)
            j -= 1
        end
        return
    end
    for k in (length(mesh) - 1):-1:1
        watch(nothing, mesh[k], nothing)
        jump!(mesh[k + 1])
        all(iszero, mu) || interval!(mu, w, mesh[k], mesh[k + 1], 3, view(mesh, 1:(k + 1)))
    end
    jump!(mesh[1])
    w.gathered === nothing || (w.dp .+= finish!(w.gathered))
    return mu, w.dp
end

gather!(w::Collocation{T, E, I, Gathered{T}}, weight, i, t) where {T, E, I} =
    gather!(w.gathered, weight, w.lambda, w.u[i], t)
function gather!(w::Collocation{T, E, I, Nothing}, weight, i, t) where {T, E, I}
    isempty(w.p) && return
    pull_p!(w.part, w.equation, w.lambda, w.du[i], w.u[i], w.p, t)
    add!(w.dp, weight, w.part)
    return
end

# Steps and output times, strictly in the direction of integration.
function joined_mesh(steps::Vector{T}, ts::Vector{T} = T[]) where {T}
    back = last(steps) < first(steps)
    return sort!(unique!(sort!([steps; ts])); rev = back)
end

# Of a cotangent of the state at t what acts on the differential variables; the rest acts on the
# parameters at once.
function acting(w::Collocation{T}, c, t) where {T}
    e = w.equation
    isplain(e) && return c
    u, du = w.u[1], w.du[1]
    w.interp(u, t, nothing, Val{0}, w.p, :left)
    isresidual(e) && copyto!(du, rate(e, u, w.p, t, interpolated_rate(w, t)))
    return settle!(w.dp, e, c, du, u, w.p, t)
end

function interpolated_rate(w::Collocation{T}, t) where {T}
    w.interp(w.du[1], t, nothing, Val{1}, w.p, :left)
    return w.du[1]
end

# mu from the end of an interval to its beginning; `depth` limits how often it is cut. `before`: the
# mesh to its end, nothing where it is a part of an interval.
function interval!(mu, w::Collocation{T}, a, b, depth, before = nothing) where {T}
    e, n, h, p = w.equation, w.equation.n, b - a, w.p
    nodes = (T(b - RADAU_C[1] * h), T(b - RADAU_C[2] * h), a)
    for i in 1:3
        w.interp(w.u[i], nodes[i], nothing, Val{0}, p, i == 3 ? :right : :left)
        if isresidual(e)
            w.interp(w.du[i], nodes[i], nothing, Val{1}, p, i == 3 ? :right : :left)
        end
        jacobian!(w.J[i], e, w.du[i], w.u[i], p, nodes[i])
    end
    isplain(e) || mass!(w.M, e, w.du[2], w.u[2], p, nodes[2])
    parts = depth > 0 ? parts_needed(w, h, before) : 1
    if parts > 1
        for k in parts:-1:1
            from = k == 1 ? a : T(a + (k - 1) * h / parts)
            to = k == parts ? b : T(a + k * h / parts)
            interval!(mu, w, from, to, depth - 1)
        end
        return mu
    end
    # row i of the stage system: M' L_i - h sum_j A_ij J_j' L_j = mu
    S = w.system
    for j in 1:3, i in 1:3
        factor, J = T(-h * RADAU_A[i][j]), w.J[j]
        @inbounds for c in 1:n, r in 1:n
            S[(i - 1) * n + r, (j - 1) * n + c] = factor * J[c, r]
        end
    end
    if isplain(e)
        for i in 1:(3n)
            S[i, i] += one(T)
        end
    else
        for i in 1:3
            mass!(w.M, e, w.du[i], w.u[i], p, nodes[i])
            @inbounds for c in 1:n, r in 1:n
                S[(i - 1) * n + r, (i - 1) * n + c] += w.M[c, r]
            end
        end
    end
    for i in 1:3
        copyto!(w.stages, (i - 1) * n + 1, mu, 1, n)
    end
    solve_stages!(w)
    for i in 1:3
        copyto!(w.lambda, 1, w.stages, (i - 1) * n + 1, n)
        gather!(w, T(h * RADAU_A[3][i]), i, nodes[i])
    end
    isplain(e) ? copyto!(mu, w.lambda) : mul!(mu, w.M', w.lambda)
    return mu
end

function solve_stages!(w::Collocation{T}) where {T}
    m = length(w.stages)
    if m <= PLAIN_SOLVE
        Runtime.solve!(w.system, 1, 1, m, w.stages, 1, 1, m, m, 1)
    else
        ldiv!(lu!(w.system; check = false), w.stages)
    end
    all(isfinite, w.stages) || error(
        "the adjoint's stage equations are singular: the model's Jacobian is not finite on the " *
            "solution, or the equation is a DAE of an index above 1"
    )
    return
end

# The forward mesh resolves the modes that the solution contains. A cotangent can excite others:
# those that decay are damped by the rule, mostly as they should be (see damping.jl), but a mode that
# oscillates or grows must be followed. Eigenvalues, with a mass matrix those of the pencil, are taken
# anew where the matrices have changed.
function parts_needed(w::Collocation{T}, h, before) where {T}
    J, plain = w.J[2], isplain(w.equation)
    size = norm(J)
    isfinite(size) && (!plain || abs(h) * size > w.reach) || return 1
    changed = !(distance(J, w.near) <= T(0.2) * size) ||
        !plain && !(distance(w.M, w.near_mass) <= T(0.2) * norm(w.M))
    if changed
        copyto!(w.near, J)
        if plain
            copyto!(w.eigenvalues, eigvals!(copy(J)))
        else
            copyto!(w.near_mass, w.M)
            copyto!(w.eigenvalues, eigvals!(copy(J), copy(w.M)))
        end
    end
    need, damped = zero(T), 1
    for lambda in w.eigenvalues
        z = h * lambda
        abs(z) < T(1.0e6) || continue    # the algebraic part's are infinite, or large by rounding
        if must_be_followed(z) && real(z) > -5
            need = max(need, abs(z))
        elseif before !== nothing && real(z) < 0
            damped = max(damped, parts_for_damping(lambda, before, w.tol))
        end
    end
    need > w.reach || return damped
    return max(damped, ceil(Int, min(T(SLACK)^(1 // 6) * need / w.reach, T(MOST_PARTS))))
end

# Whether a mode swings or grows.
must_be_followed(z) = abs(imag(z)) > 0.3 * abs(real(z)) || real(z) > 0

function distance(A, B)
    total = zero(eltype(A))
    @inbounds for i in eachindex(A, B)
        total += abs2(A[i] - B[i])
    end
    return sqrt(total)
end
