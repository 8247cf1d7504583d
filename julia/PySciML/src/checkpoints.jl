# Gradients from output to output: of the solution its outputs are kept alone, and each stretch
# between two of them is solved once more on the way back.

"""
    Checkpointed(sensealg)

A sensitivity algorithm whose checkpoints are the outputs. SciMLSensitivity's own checkpointing
reads the whole solution (GaussAdjoint's fails besides, in 7.112), and so saves no memory here.
"""
struct Checkpointed{S}
    sensealg::S
end

segment_adjoint(c::Checkpointed, stretch...) = segment_adjoint(c.sensealg, stretch...)

function backwards(
        h::Handle{T}, ts, source, cotangents, of_events, c::Checkpointed, abstol, reltol
    ) where {T}
    if h.dense || h.model.mass_matrix !== nothing || !issubset(ts, h.t)
        return backwards(h, ts, source, cotangents, of_events, c.sensealg, abstol, reltol)
    end
    times, joined = join_equal(ts, cotangents)
    start = h.prob.tspan[1]
    w, dp = zeros(T, h.model.n), zeros(T, length(h.prob.p))
    for j in reverse(eachindex(times))
        w .+= view(joined, :, j)
        times[j] == start && break
        all(iszero, w) && continue
        from = j == 1 ? start : times[j - 1]
        u = from == start ? h.prob.u0 : h.u[:, findfirst(==(from), h.t)]
        sol = stretch(h, u, (from, times[j]))
        w, part = Base.inferencebarrier(segment_adjoint)(
            c.sensealg, sol, bare(h.alg), [times[j]], reshape(w, :, 1), abstol, reltol, h.model
        )::Tuple{Vector{T}, Vector{T}}
        dp .+= part
    end
    return w, dp, no_events(h)
end

# The solution from one output to the next, every step of it.
function stretch(h::Handle{T}, u::Vector{T}, span) where {T}
    o = h.options
    options = Options{T}(;
        o.abstol, o.reltol, o.tstops, o.dt, o.dtmax, o.dtmin, o.maxiters, o.adaptive, dense = true
    )
    prob = problem(h.model, u, h.prob.p, span, nothing, nothing)
    sol, reached = Base.inferencebarrier(integrate)(
        prob, h.alg, options, true, Event{T}[], EventRecord{T}[]
    )
    SciMLBase.successful_retcode(sol) || error(
        "the solve from t = $(span[1]) on, repeated for the gradient, stopped at t = $reached " *
            "with retcode $(sol.retcode); leave checkpointing out"
    )
    return sol
end
