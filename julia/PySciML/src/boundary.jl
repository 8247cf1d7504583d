# Boundary value problems in standard form: pieces of the time span side by side over one variable
# s in [0, length], with conditions on the states at its two ends. What needs BoundaryValueDiffEqMIRK
# stands in ext/PySciMLBoundaryExt.jl, so that nobody else loads it.

"""
    Side{T}

A function of a vector `u`, for solvers that differentiate by dual numbers: on these its value and
Jacobian come from the kernels, at the numbers' values.
"""
struct Side{T}
    f::Functions{T}
    p::Vector{T}
    u::Vector{T}
    value::Vector{T}
    jac::Matrix{T}
end
Side(f::Functions{T}, p::Vector{T}, n, m) where {T} =
    Side{T}(f, p, zeros(T, n), zeros(T, m), zeros(T, m, n))

# `out[i] = scale f(u, p, t)[rows[i]]`, where the side's `u` has been filled by `fill_side!`: from
# `offset` on by `u`.
function give!(out, s::Side, rows, u::AbstractVector{<:AbstractFloat}, t, scale, offset = 0)
    s.f.value(s.value, s.u, s.p, t)
    for (i, row) in enumerate(rows)
        out[i] = scale * s.value[row]
    end
    return nothing
end
function give!(
        out, s::Side, rows, u::AbstractVector{D}, t, scale, offset = 0
    ) where {D <: ForwardDiff.Dual}
    s.f.value(s.value, s.u, s.p, t)
    s.f.jac(s.jac, s.u, s.p, t)
    for (i, row) in enumerate(rows)
        change = zero(ForwardDiff.partials(first(u)))
        for j in eachindex(u)
            slope = s.jac[row, offset + j]
            slope == 0 || (change += slope * ForwardDiff.partials(u[j]))
        end
        out[i] = D(scale * s.value[row], scale * change)
    end
    return nothing
end

function fill_side!(s::Side, u, offset)
    for i in eachindex(u)
        s.u[offset + i] = ForwardDiff.value(u[i])
    end
    return nothing
end

"""
    PiecesRate{T}

The right-hand side of all pieces: piece k, of `n` entries, is at the time `starts[k] + rates[k] s`.
"""
struct PiecesRate{T} <: Function
    side::Side{T}
    starts::Vector{T}
    rates::Vector{T}
    calls::Base.RefValue{Int}
    watch::Watch
end
function (r::PiecesRate)(du, u, _, s)
    n = length(r.side.u)
    for k in eachindex(r.starts)
        piece = ((k - 1) * n + 1):(k * n)
        x, t = view(u, piece), r.starts[k] + r.rates[k] * s
        fill_side!(r.side, x, 0)
        give!(view(du, piece), r.side, 1:n, x, t, r.rates[k])
    end
    r.calls[] += 1
    r.calls[] % 1024 == 0 && r.watch(nothing, s, nothing)
    return nothing
end

"""
    EndConditions{T}

The conditions of (states at s = 0, states at s = length). As a function of the states at one end
(`at_start` or not) it gives `rows`, which depend on these alone.
"""
struct EndConditions{T} <: Function
    side::Side{T}
    rows::UnitRange{Int}
    at_start::Bool
end
function (g::EndConditions{T})(out, u, _) where {T}
    s, n = g.side, length(u)
    offset = g.at_start ? 0 : n
    fill!(s.u, zero(T))
    fill_side!(s, u, offset)
    return give!(out, s, g.rows, u, zero(T), one(T), offset)
end
function (g::EndConditions{T})(out, ua, ub, ::Nothing) where {T}
    fill_side!(g.side, ua, 0)
    fill_side!(g.side, ub, length(ua))
    return give!(out, g.side, g.rows, vcat(ua, ub), zero(T), one(T))
end

"""
    BoundaryOptions

`tolerance` and `maxiters` of the nonlinear iterations; `at_start` conditions hold at the start
alone and all others at the end, none where conditions tie the two ends together.
"""
struct BoundaryOptions
    at_start::Int
    maxiters::Int
    tolerance::Float64
end

"""
    solve_mirk(alg, rate, conditions, s, guess, options) -> (u, retcode)

Solve a method's equations on the mesh `s`, of which `guess` holds the states; the extension adds
the method.
"""
function solve_mirk end

"""
    mirk_tableau(alg, taus) -> Vector

The method's coefficients, one after the other: numbers s of stages and q of these with those of the
interpolant, c (q), v (q), b (s), x (q, q) row by row, weights of the stages at `taus` (q, length);
the extension adds the method.
"""
function mirk_tableau end

"What a boundary value problem is asked for; the mirror of `BoundaryRequest` in boundary.py."
struct BoundaryRequest
    f::Int64
    bc::Int64
    alg::Int64
    n::Int64
    pieces::Int64
    intervals::Int64
    at_start::Int64
    maxiters::Int64
    np::Int64
    nc::Int64
    nbp::Int64
    nbc::Int64
    p::Ptr{Float64}
    c::Ptr{Float64}
    bp::Ptr{Float64}
    bc_c::Ptr{Float64}
    starts::Ptr{Float64}
    rates::Ptr{Float64}
    s::Ptr{Float64}
    states::Ptr{Float64}             # the guess, where the solution is written
    tolerance::Float64
end

"What comes back besides the states."
struct BoundaryResponse
    retcode::Int64
    calls::Int64
end

function c_solve_boundary(
        request::Ptr{BoundaryRequest}, response::Ptr{BoundaryResponse}, message::Ptr{Ptr{UInt8}}
    )::Cint
    return guarded(message) do
        r = unsafe_load(request)
        unsafe_store!(
            response, solve_boundary(
                r, lookup(FUNCTIONS, r.f)::Functions{Float64},
                lookup(FUNCTIONS, r.bc)::Functions{Float64}, lookup(OBJECTS, r.alg)
            )
        )
    end
end

# The functions with their kernels, this solve's own: another thread may solve with the same ones.
function own_kernels(f::Functions)
    return lock(f.lock) do
        ensure!(f.value)
        ensure!(f.jac)
        clone(f)
    end
end

function solve_boundary(r::BoundaryRequest, f, bc, @nospecialize(alg))
    T = Float64
    f, bc = own_kernels(f), own_kernels(bc)
    copyto!(data(f), vector(T, r.c, r.nc))
    copyto!(data(bc), vector(T, r.bc_c, r.nbc))
    n, whole = Int(r.n), Int(r.n * r.pieces)
    rate = PiecesRate{T}(
        Side(f, vector(T, r.p, r.np), n, n), vector(T, r.starts, r.pieces),
        vector(T, r.rates, r.pieces), Ref(0), Watch()
    )
    conditions = EndConditions{T}(
        Side(bc, vector(T, r.bp, r.nbp), 2 * whole, whole), 1:whole, true
    )
    options = BoundaryOptions(r.at_start, r.maxiters, r.tolerance)
    m = Int(r.intervals) + 1
    states = reshape(vector(T, r.states, whole * m), whole, m)
    u, retcode = Base.invokelatest(
        solve_mirk, alg, rate, conditions, vector(T, r.s, m), collect.(eachcol(states)), options
    )::Tuple{Matrix{T}, ReturnCode.T}
    size(u) == size(states) || error("the method has changed the mesh")
    write_out(r.states, u)
    return BoundaryResponse(Int(retcode), rate.calls[])
end

# `out` has room for 2 + 2q + s + q^2 + q m numbers, of which the first two say how many there are.
function c_mirk_tableau(
        alg::Int64, taus::Ptr{Float64}, m::Int64, out::Ptr{Float64}, room::Int64,
        message::Ptr{Ptr{UInt8}}
    )::Cint
    return guarded(message) do
        made = Base.invokelatest(
            mirk_tableau, lookup(OBJECTS, alg), vector(Float64, taus, m)
        )::Vector{Float64}
        length(made) <= room || error("the method has more stages than there is room for")
        write_out(out, made)
    end
end
