# Boundary value problems, for the image of their extension.

module Boundaries

    # u = [x, x']: x'' = p[1] x with x = 1 at the start and 0 at the end
    value(ws, out, u, p, t, c) = (out[1] = u[2]; out[2] = p[1] * u[1]; nothing)
    jac_u(ws, out, u, p, t, c) = (fill!(out, 0); out[1, 2] = 1; out[2, 1] = p[1]; nothing)
    ends(ws, out, x, p, t, c) = (out[1] = x[1] - 1; out[2] = x[3]; nothing)
    jac_ends(ws, out, x, p, t, c) = (fill!(out, 0); out[1, 1] = out[2, 3] = 1; nothing)

    const RATE = (; value, jac_u)
    const CONDITIONS = (; value = ends, jac_u = jac_ends)

end

"""
    workload_boundary(alg)

What the extension for PythonCall and BoundaryValueDiffEqMIRK compiles: conditions at each end by
itself, and tied ones.
"""
function workload_boundary(alg)
    made(f) = Functions{Float64}(Kinds.loader(f, Float64))
    f, bc = made(Boundaries.RATE), made(Boundaries.CONDITIONS)
    p, none, starts, rates = [1.0], Float64[], [0.0], [1.0]
    s, states = collect(0:0.25:1), zeros(10)
    GC.@preserve p none starts rates s states for at_start in (1, 0)
        at = map(pointer, (p, none, none, none, starts, rates, s, states))
        request = BoundaryRequest(0, 0, 0, 2, 1, 4, at_start, 20, 1, 0, 0, 0, at..., 1.0e-6)
        solve_boundary(request, f, bc, alg)
    end
    mirk_tableau(alg, [0.5])
    return
end
