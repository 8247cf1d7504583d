# Gradients: backwards over the segments of a solution and its events.
#
# On each segment SciMLSensitivity carries the cotangent of the state and gives the parameters'
# (see ext/PySciMLSensitivityExt.jl); here stand the events between the segments.

"""
    Gradient{T}

Cotangents of the inputs of a solve: of `u0`, `p`, `t0`, of every output time, and of the events'
own parameters, as pairs (condition, affect).
"""
struct Gradient{T}
    u0::Vector{T}
    p::Vector{T}
    t0::Float64
    times::Vector{Float64}
    events::Vector{Tuple{Vector{T}, Vector{T}}}
end

"""
    segment_adjoint(sensealg, sol, alg, ts, cotangents, abstol, reltol) -> (du0, dp)

One smooth stretch: the cotangent at its start and the parameters', for cotangents (one column a
time) of the states at `ts`, which are distinct and in the order of integration. SciMLSensitivity
adds the methods.
"""
function segment_adjoint end

"""
    solve_forward(sensealg, handle, ts, cotangents) -> (du0, dp)

As `segment_adjoint`, for methods that go forward.
"""
function solve_forward end

isforward(sensealg) = false

"""
    adjoint(handle, ts, source, cotangents, of_events, sensealg, abstol, reltol) -> Gradient

Gradient of `sum(cotangents .* u(ts)) + sum(of_events .* event times)`. `source` says what moves each time: see FlatSolution in
Python; an event's outputs come in the order (before, after) as they were saved.
"""
function adjoint(
        h::Handle{T}, ts::Vector{T}, source::Vector{Int}, cotangents::Matrix{T},
        of_events::Vector{Float64}, sensealg, abstol, reltol
    ) where {T}
    densify!(h)
    return lock(h.model.lock) do
        copyto!(data(h.model.functions), h.c)
        if isempty(h.log)
            smooth(h, ts, source, cotangents, sensealg, abstol, reltol)
        else
            with_events(h, ts, source, cotangents, of_events, sensealg, abstol, reltol)
        end
    end
end

function smooth(h::Handle{T}, ts, source, cotangents, sensealg, abstol, reltol) where {T}
    times, joined = join_equal(ts, cotangents)
    du0, dp = if isempty(times)
        zeros(T, h.model.n), zeros(T, length(h.prob.p))
    elseif isforward(sensealg)
        solve_forward(sensealg, h, times, joined, abstol, reltol)
    else
        segment_adjoint(sensealg, h.sol, h.alg, times, joined, abstol, reltol)
    end
    dtimes = time_gradients(h, ts, source, cotangents)
    dt0 = -dot(du0, slope(h, h.prob.u0, h.prob.tspan[1]))
    return Gradient{T}(du0, dp, dt0, dtimes, no_events(h))
end

no_events(h::Handle{T}) where {T} =
    [(zeros(T, length(e.condition_p)), zeros(T, length(e.affect_p))) for e in h.events]

# The columns of equal (neighbouring) times added up.
function join_equal(ts::Vector{T}, cotangents::Matrix{T}) where {T}
    issorted(ts; lt = <=) && return ts, cotangents
    issorted(ts; rev = true, lt = <=) && return ts, cotangents
    keep = [i for i in eachindex(ts) if i == 1 || ts[i] != ts[i - 1]]
    joined = zeros(T, size(cotangents, 1), length(keep))
    column = 0
    for i in eachindex(ts)
        (i == 1 || ts[i] != ts[i - 1]) && (column += 1)
        @views joined[:, column] .+= cotangents[:, i]
    end
    return ts[keep], joined
end

# u' at a state, also with a mass matrix (its least-squares solution where that is singular).
function slope(h::Handle{T}, u, t) where {T}
    out = zeros(T, h.model.n)
    h.model.functions.value(out, u, h.prob.p, t)
    M = h.model.mass_matrix
    return M === nothing ? out : pinv(M) * out
end

# How the loss changes with each output time through the state there; events move by themselves.
function time_gradients(h::Handle{T}, ts, source, cotangents) where {T}
    dtimes = zeros(Float64, length(ts))
    u = zeros(T, h.model.n)
    for i in eachindex(ts)
        cotangent = view(cotangents, :, i)
        if source[i] > FIRST_EVENT && !all(iszero, cotangent)
            state!(u, h, ts[i])
            dtimes[i] = dot(cotangent, slope(h, u, ts[i]))
        end
    end
    return dtimes
end

state!(u, h::Handle, t) = (h.sol(u, t); u)
