# Ensembles for the package image.

"""
    workload_ensemble(alg, sensealg; saveat)

Solve three members of the workload's problem as Python does, on one thread, and go back.
"""
function workload_ensemble(alg, sensealg; saveat = [0.0, 0.5, 1.0])
    model = workload_model()
    u0, p, own, at = fill(2.0, 6), [0.5, 1.0], [0.4, 0.5, 0.6], [0]
    abstol, message = [1.0e-6], Ref(Ptr{UInt8}(0))
    response = Ref{EnsembleResponse}()
    GC.@preserve u0 p own at abstol saveat begin
        solve = Request(
            register!(MODELS, model), register!(OBJECTS, alg), 0, 0, 1, 100_000, 2, 2, 0,
            length(saveat), 0, 1, pointer(u0), pointer(p), C_NULL, pointer(saveat), C_NULL,
            pointer(abstol), C_NULL, C_NULL, 0.0, 1.0, 1.0e-3, NaN, NaN, NaN
        )
        request = Ref(EnsembleRequest(solve, 3, 1, 1, pointer(at), pointer(own)))
        GC.@preserve request response message c_ensemble(
            Base.unsafe_convert(Ptr{EnsembleRequest}, request),
            Base.unsafe_convert(Ptr{EnsembleResponse}, response),
            Base.unsafe_convert(Ptr{Ptr{UInt8}}, message)
        )
    end
    message[] == C_NULL || error(unsafe_string(message[]))
    r = response[]
    w, du0, dp, down, dt0 = ones(2 * r.total), zeros(6), zeros(2), zeros(3), zeros(3)
    dtimes = zeros(r.total)
    GC.@preserve w du0 dp down dt0 dtimes begin
        request = Ref(
            EnsembleAdjointRequest(
                r.handle, register!(OBJECTS, sensealg), pointer(w), 1.0e-6, 1.0e-3, pointer(du0),
                pointer(dp), pointer(down), pointer(dt0), pointer(dtimes)
            )
        )
        GC.@preserve request message c_ensemble_adjoint(
            Base.unsafe_convert(Ptr{EnsembleAdjointRequest}, request),
            Base.unsafe_convert(Ptr{Ptr{UInt8}}, message)
        )
    end
    message[] == C_NULL || error(unsafe_string(message[]))
    return
end

function workload_ensembles()
    workload_ensemble(Tsit5(), DiscreteAdjoint())
    workload_ensemble(Tsit5(), DiscreteAdjoint(); saveat = Float64[])
    workload_ensemble(DefaultODEAlgorithm(; autodiff = AutoFiniteDiff()), CollocationAdjoint())
    return
end
