# The border for ensembles: see bridge.jl.

"""
What an ensemble is asked for: as for a solve, `u0` with one column a member, and then what each
member has of its own. The mirror of `ENSEMBLE` in pysciml/engines/julia/ensemble.py.
"""
struct EnsembleRequest
    solve::Request
    members::Int64
    threads::Int64
    nown::Int64
    at::Ptr{Int64}                   # from 0
    own::Ptr{Cvoid}                  # nown numbers a member
end

"What an ensemble gives back; arrays stay Julia's, alive as long as the handle."
struct EnsembleResponse
    handle::Int64
    total::Int64
    counts::Ptr{Int64}
    t::Ptr{Float64}
    u::Ptr{Cvoid}
    source::Ptr{Int64}
    retcodes::Ptr{Int64}
    stats::Ptr{Int64}
    reached::Ptr{Float64}
end

struct EnsembleAdjointRequest
    handle::Int64
    sensealg::Int64
    cotangents::Ptr{Cvoid}
    abstol::Float64
    reltol::Float64
    du0::Ptr{Cvoid}
    dp::Ptr{Cvoid}
    down::Ptr{Cvoid}
    dt0::Ptr{Float64}                # both null where nobody asks for them
    dtimes::Ptr{Float64}
end

function c_ensemble(
        request::Ptr{EnsembleRequest}, response::Ptr{EnsembleResponse}, message::Ptr{Ptr{UInt8}}
    )::Cint
    return guarded(message) do
        r = unsafe_load(request)
        unsafe_store!(
            response,
            ensemble_request(r, lookup(MODELS, r.solve.model), lookup(OBJECTS, r.solve.alg))
        )
    end
end

function ensemble_request(e::EnsembleRequest, model::Model{T}, alg) where {T}
    r, N = e.solve, Int(e.members)
    members = Members{T}(
        reshape(vector(T, r.u0, r.n * N), Int(r.n), N), vector(T, r.p, r.np),
        vector(Int64, e.at, e.nown) .+ 1,
        reshape(vector(T, e.own, e.nown * N), Int(e.nown), N)
    )
    x = run_ensemble(
        model, alg, members, vector(T, r.c, r.nc), (T(r.t0), T(r.t1)), options_of(T, r), e.threads
    )
    return EnsembleResponse(
        register!(HANDLES, x), size(x.u, 2), pointer(x.counts), pointer(x.t), pointer(x.u),
        pointer(x.source), pointer(x.retcodes), pointer(x.stats), pointer(x.reached)
    )
end

function c_ensemble_adjoint(
        request::Ptr{EnsembleAdjointRequest}, message::Ptr{Ptr{UInt8}}
    )::Cint
    return guarded(message) do
        r = unsafe_load(request)
        ensemble_adjoint_request(r, lookup(HANDLES, r.handle), lookup(OBJECTS, r.sensealg))
    end
end

function ensemble_adjoint_request(
        r::EnsembleAdjointRequest, e::Ensemble{T}, sensealg
    ) where {T}
    n, total = size(e.u)
    cotangents = reshape(vector(T, r.cotangents, n * total), n, total)
    by_times = r.dt0 != C_NULL
    g = ensemble_adjoint(e, cotangents, sensealg, T(r.abstol), T(r.reltol), by_times)
    write_out(r.du0, g.u0)
    write_out(r.dp, g.p)
    write_out(r.down, g.own)
    by_times || return
    write_out(r.dt0, g.t0)
    write_out(r.dtimes, g.times)
    return
end
