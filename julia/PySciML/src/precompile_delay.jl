# Delay equations, for the image of their extension.

module Delays

    # x = [u; u(t - 1)] of two states each: u' = p[1] u(t - 1) - p[2] u, and its history, constant
    value(ws, out, x, p, t, c) = (out[1:2] .= p[1] .* x[3:4] .- p[2] .* x[1:2]; nothing)
    function jac_u(ws, out, x, p, t, c)
        fill!(out, 0)
        for i in 1:2
            out[i, i] = -p[2]
            out[i, 2 + i] = p[1]
        end
        return nothing
    end
    function vjp_p(ws, out, w, x, p, t, c)
        out[1] = w[1] * x[3] + w[2] * x[4]
        out[2] = -w[1] * x[1] - w[2] * x[2]
        return nothing
    end
    asked(ws, out, x, p, t, c) = (out[1] = t - 1; nothing)
    one_(ws, out, x, p, t, c) = (fill!(out, 1); nothing)
    zero_(ws, out, x, p, t, c) = (fill!(out, 0); nothing)
    pulled(ws, out, w, x, p, t, c) = (fill!(out, 0); nothing)

    const RATE = (; value, jac_u, vjp_p)
    const ASKED = (; value = asked, jac_u = zero_, jac_t = one_, vjp_p = pulled)
    const HISTORY = (; value = one_, jac_t = zero_, vjp_p = pulled)

end

function workload_delay_model(moved::Int = 0)
    made(f) = Functions{Float64}(Kinds.loader(f, Float64))
    parts = map(made, (Delays.RATE, Delays.RATE, Delays.ASKED, Delays.HISTORY))
    return Model(delayed(parts..., [moved], true, true, 2), 2)
end

"""
    workload_delays(algorithms)

What the extension for PythonCall and DelayDiffEq compiles.
"""
function workload_delays(algorithms)
    for alg in algorithms
        handle = workload_solve(workload_delay_model(), alg; dense = 1).handle
        interpolate(lookup(HANDLES, handle), [0.3], 0)
        workload_adjoint(handle, CollocationAdjoint())
    end
    alg = first(algorithms)
    workload_solve(workload_delay_model(2), alg)
    workload_solve(workload_delay_model(), alg; events = workload_events(:continuous, Float64))
    return
end
