# The equation around a point of a solution: the rate u', and how small changes go on from there.
#
# Both forms, `M u' = f(u, p, t)` and `F(u', u, p, t) = 0`, are linearised as
# `M v' = J v + f_p q + f_t s` (with M = dF/du', J = -dF/du, f_p = -dF/dp, f_t = -dF/dt for the
# second). Where M is singular its left null space W gives the constraints `W' f = 0`; their
# derivative by time, `W' (J u' + f_t) = 0`, determines the rates of algebraic variables (index 1;
# Brenan, Campbell, Petzold, "Numerical Solution of Initial-Value Problems in
# Differential-Algebraic Equations", section 2.3).

"""
    Equation{T, F}

A model's functions with its mass matrix (nothing for the identity, and for residuals).
"""
struct Equation{T, F}
    functions::F
    mass::Union{Nothing, Matrix{T}}
    n::Int
end
Equation(m::Model{T, F}) where {T, F} = Equation{T, F}(m.functions, m.mass_matrix, m.n)

isresidual(::Equation) = false
isresidual(::Equation{T, <:Residual}) where {T} = true

"Whether the equation has the form u' = f."
isplain(e::Equation) = !isresidual(e) && e.mass === nothing

# f, or the residual, at (du, u, t); `du` counts for a residual only.
value!(out, e::Equation, du, u, p, t) = (e.functions.value(out, u, p, t); out)
value!(out, e::Equation{T, <:Residual}, du, u, p, t) where {T} =
    (e.functions.value(out, du, u, p, t); out)

# J there
jacobian!(J, e::Equation{T, <:Functions}, du, u, p, t) where {T} = (e.functions.jac(J, u, p, t); J)
function jacobian!(J, e::Equation{T, <:Residual}, du, u, p, t) where {T}
    e.functions.jac_u(J, du, u, p, t)
    J .*= -1
    return J
end
mass!(M, e::Equation{T, <:Functions}, du, u, p, t) where {T} =
    e.mass === nothing ? copyto!(M, I) : copyto!(M, e.mass)
mass!(M, e::Equation{T, <:Residual}, du, u, p, t) where {T} =
    (e.functions.jac_du(M, du, u, p, t); M)

# out = f_p' w, and f_t
pull_p!(out, e::Equation{T, <:Functions}, w, du, u, p, t) where {T} =
    (e.functions.vjp_p(out, w, u, p, t); out)
function pull_p!(out, e::Equation{T, <:Residual}, w, du, u, p, t) where {T}
    e.functions.vjp_p(out, w, du, u, p, t)
    out .*= -1
    return out
end
by_time!(out, e::Equation{T, <:Functions}, du, u, p, t) where {T} =
    (e.functions.tgrad(out, u, p, t); out)
function by_time!(out, e::Equation{T, <:Residual}, du, u, p, t) where {T}
    e.functions.tgrad(out, du, u, p, t)
    out .*= -1
    return out
end

"""
    Linearised{T}

M and J at one point, with bases of M's range (`kept`) and left null space (`null`).
"""
struct Linearised{T}
    mass::Matrix{T}
    jac::Matrix{T}
    kept::Matrix{T}
    null::Matrix{T}
    t::Float64
end

function Linearised(e::Equation{T}, du, u, p, t) where {T}
    M, J = zeros(T, e.n, e.n), zeros(T, e.n, e.n)
    mass!(M, e, du, u, p, t)
    jacobian!(J, e, du, u, p, t)
    left, sigma, _ = svd(M)
    rank = count(>(100 * e.n * eps(T) * max(first(sigma), floatmin(T))), sigma)
    return Linearised{T}(M, J, left[:, 1:rank], left[:, (rank + 1):end], Float64(t))
end

function determined(matrix, rhs, t)
    F = lu(matrix; check = false)
    out = issuccess(F) ? F \ rhs : fill!(similar(rhs), NaN)
    all(isfinite, out) || error(
        "the constraints do not determine the algebraic variables at t = $t (a DAE of an index " *
            "above 1), but gradients need an index of 1: differentiate the constraints with " *
            "respect to time by hand until each algebraic variable stands in one of them"
    )
    return out
end

"""
    split_cotangent(linearised, c) -> (mu, w)

`c = mu + J' w`, mu in the range of M' and w in its left null space: a cotangent of algebraic
variables acts at once; the state's is mu, and the parameters get `-f_p' w`.
"""
function split_cotangent(l::Linearised, c)
    rank = size(l.kept, 2)
    columns = [l.mass' * l.kept l.jac' * l.null]
    x = determined(columns, c, l.t)
    return columns[:, 1:rank] * x[1:rank], l.null * x[(rank + 1):end]
end

"""
    settle!(dp, equation, c, du, u, p, t) -> mu

Of a cotangent `c` of the state at one point what acts on its differential variables; what acts on
the parameters at once is added to `dp`.
"""
function settle!(dp, e::Equation{T}, c, du, u, p, t) where {T}
    l = Linearised(e, du, u, p, t)
    size(l.null, 2) == 0 && return c
    mu, null = split_cotangent(l, c)
    isempty(p) || (dp .-= pull_p!(zeros(T, length(p)), e, null, du, u, p, t))
    return mu
end

# v with `M v = differential` along M's range and `W' J v = W' algebraic`
stacked(l::Linearised, differential, algebraic) = determined(
    [l.kept' * l.mass; l.null' * l.jac], [l.kept' * differential; l.null' * algebraic], l.t
)

"""
    rate(equation, u, p, t, guess) -> u'

The rate of all variables, algebraic ones included; a residual that is nonlinear in u' needs a
`guess` near it.
"""
function rate(e::Equation{T, <:Functions}, u, p, t, guess) where {T}
    out = zeros(T, e.n)
    e.functions.value(out, u, p, t)
    e.mass === nothing && return out
    l = Linearised(e, out, u, p, t)
    size(l.null, 2) == 0 && return e.mass \ out
    return stacked(l, out, -by_time!(zeros(T, e.n), e, out, u, p, t))
end
function rate(e::Equation{T, <:Residual}, u, p, t, guess) where {T}
    du, value, f_t = copy(guess), zeros(T, e.n), zeros(T, e.n)
    for _ in 1:12
        e.functions.value(value, du, u, p, t)
        by_time!(f_t, e, du, u, p, t)
        l = Linearised(e, du, u, p, t)
        step = stacked(l, -value, -f_t - l.jac * du)
        du .+= step
        maximum(abs, step) <= 100 * eps(T) * maximum(abs, du) && break
    end
    return du
end
