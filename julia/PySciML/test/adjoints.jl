# The adjoints written here against dual numbers through the solver, and against a closed form.

using ForwardDiff
using LinearAlgebra
using OrdinaryDiffEqRosenbrock: Rodas5P
using OrdinaryDiffEqTsit5: Tsit5
using ADTypes: AutoFiniteDiff
using PySciML
using PySciML: CollocationAdjoint, DiscreteAdjoint, Event, Options
using SciMLBase
using Test

model() = PySciML.Model(
    PySciML.Functions{Float64}(role -> PySciML.Workload.source(role, Float64)), 2
)

"Gradient of sum(weights .* u(ts)) by u0 and p."
function gradient(alg, sensealg, ts, weights; u0 = [2.0, 0.3], p = [1.0, 1.5], tol = 1.0e-10)
    options = Options{Float64}(; abstol = tol, reltol = tol, saveat = ts, dense = true)
    h = PySciML.run(model(), alg, u0, p, Float64[], (0.0, 2.0), options)
    g = PySciML.adjoint(
        h, ts, collect(0:(length(ts) - 1)), weights, Float64[], sensealg, tol, tol
    )
    return [g.u0; g.p]
end

function by_duals(ts, weights; u0 = [2.0, 0.3], p = [1.0, 1.5])
    value(ws, out, u, p, t, c) = PySciML.Workload.value(ws, out, u, p, t, c)
    return ForwardDiff.gradient([u0; p]) do x
        prob = ODEProblem(
            (du, u, q, t) -> value(nothing, du, u, q, t, nothing), x[1:2], (0.0, 2.0), x[3:4]
        )
        sol = solve(prob, Tsit5(); abstol = 1.0e-12, reltol = 1.0e-12, saveat = ts)
        return sum(weights .* stack(sol.u))
    end
end

@testset "adjoints" begin
    ts = [0.0, 0.31, 0.7, 1.1, 2.0]
    weights = [1.0 -0.5 2.0 0.3 1.0; 0.2 1.0 0.0 -1.0 0.7]
    exact = by_duals(ts, weights)
    @test gradient(Tsit5(), DiscreteAdjoint(), ts, weights) ≈ exact rtol = 1.0e-8
    stiff = Rodas5P(; autodiff = AutoFiniteDiff())
    for alg in (Tsit5(), stiff)
        @test gradient(alg, CollocationAdjoint(), ts, weights) ≈ exact rtol = 1.0e-7
    end
    # an output at the very beginning and one alone inside
    for (ts, weights) in (([0.0], ones(2, 1)), ([1.3], ones(2, 1)))
        exact = by_duals(ts, weights)
        @test gradient(Tsit5(), DiscreteAdjoint(), ts, weights) ≈ exact rtol = 1.0e-7
        @test gradient(stiff, CollocationAdjoint(), ts, weights) ≈ exact rtol = 1.0e-6
    end
end

@testset "the interpolant's weights are the solver's" begin
    prob = ODEProblem((du, u, p, t) -> (du .= -u .+ t), [1.0], (0.0, 1.0))
    sol = solve(prob, Tsit5(); abstol = 1.0e-4, reltol = 1.0e-4)
    i = 2
    dt = sol.t[i + 1] - sol.t[i]
    for theta in (0.1, 0.5, 0.93)
        mine = sol.u[i][1] + dt * sum(PySciML.weight(s, theta) * sol.k[i + 1][s][1] for s in 1:7)
        @test mine ≈ sol(sol.t[i] + theta * dt)[1] rtol = 1.0e-13
    end
end
