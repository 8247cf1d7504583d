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

@testset "the fastest mode, by products" begin
    function seen(J, looks)
        g = PySciML.Growth(zeros(size(J, 1)))
        return map(1:looks) do _
            PySciML.look!(v -> J * v, g)
            g.rate, g.decays
        end
    end
    heat = SymTridiagonal(fill(-2.0, 40), fill(1.0, 39))
    for (rate, decays) in seen(heat, 5)
        @test decays && 0.8 * opnorm(Matrix(heat)) < rate <= opnorm(Matrix(heat))
    end
    @test !any(last, seen(-heat, 5))
    # swinging, in units as unequal as they may be, about to decay, and growing beside what decays
    for J in ([0.0 1.0e4; -1.0 0.0], [0.0 1.0; -1.0 -0.2], [0.0 1.0e-3; -1.0e3 0.0], [-1.0 0.0; 0.0 1.2])
        @test !any(last, seen(J, 20))
    end
end

@testset "modes that decay are gone by the beginning of the mesh" begin
    through(lambda, mesh) = prod(PySciML.radau_factor(h * lambda) for h in diff(mesh))
    cut(mesh, parts) = PySciML.subdivided(mesh, parts)
    for lambda in (-0.7, -6.0, -1.0e3, -1.0e6, -30.0 + 5.0im), start in (Float64[], [0.0, 0.001, 0.01])
        mesh, tol = [start; 1.0; 2.0], 1.0e-9
        whole = mesh
        for k in (length(mesh) - 1):-1:1
            parts = PySciML.parts_for_damping(lambda, view(mesh, 1:(k + 1)), tol)
            new = cut(mesh[k:(k + 1)], [parts])
            whole = [filter(<(mesh[k]), whole); new; filter(>(mesh[k + 1]), whole)]
        end
        exact = exp(lambda * (mesh[end] - mesh[1]))
        @test abs(through(lambda, whole) - exact) <= 2 * PySciML.SLACK * tol
        @test length(whole) < 300
    end
    # enough intervals damp by themselves
    @test PySciML.parts_for_damping(-10.0, 0.0:1.0:20.0, 1.0e-6) == 1
    @test PySciML.parts_for_damping(-10.0, 0.0:1.0:2.0, 1.0e-6) > 1
end

@testset "meshes that resolve the parameters' part" begin
    @test PySciML.subdivided([0.0, 1.0, 3.0], [2, 1]) == [0.0, 0.5, 1.0, 3.0]
    # beside an interval that is cut none is longer than its parts
    @test PySciML.as_neighbours([1.0, 1, 1, 4, 1, 1, 1], collect(0.0:7.0)) == [1, 4, 4, 4, 4, 4, 1]
    @test PySciML.as_neighbours([1.0, 3.0], [4.0, 2.0, 1.0]) == [6, 3]

    still(u, _...) = fill!(u, 0)
    # u' = p rate(t)
    given(; roles...) = PySciML.Functions{Float64}(
        role -> (out, _, p, t) -> (out[1] = roles[role](p[1], t); nothing), 0, true
    )
    driven(rate) =
        given(; value = (p, t) -> p * rate(t), jac_u = (p, t) -> 0.0, jac_p = (p, t) -> rate(t))
    mesh = collect(0.0:2.0:10.0)
    finer(rate, mesh) = PySciML.resolving(mesh, driven(rate), 1, still, [0.0], 1.0e-6)
    waves = finer(t -> cos(40t), mesh)
    @test issubset(mesh, waves)
    @test 0.03 / 40 < minimum(diff(waves)) && maximum(diff(waves)) < (1.0e-6 / 1.4e-5)^0.2 / 40
    back = finer(t -> cos(40t), reverse(mesh))
    @test issorted(back; rev = true) && 0.8 < length(back) / length(waves) < 1.25
    @test finer(t -> 1.0, mesh) === mesh
    # the same of the state's derivative, and where it cannot be told, as a root's
    of_state(rate) = PySciML.resolving(
        mesh, given(; value = (p, t) -> 0.0, jac_u = (p, t) -> rate(t), jac_p = (p, t) -> 1.0), 1,
        still, [0.0], 1.0e-6
    )
    @test of_state(t -> cos(40t)) == waves
    @test of_state(t -> Inf) === mesh
    # of many states, in a direction: the large ones do not hide another
    n, p = 60, [fill(1.0, 9); 0.0]
    function rates(out, u, p, t)
        out .= u .* cos(t)
        out[1] += p[1] * cos(t) + p[10] * cos(40t)
        return nothing
    end
    many = PySciML.Functions{Float64}(role -> (@assert role === :value; rates), 0, true)
    @test maximum(diff(PySciML.resolving(mesh, many, n, still, p, 1.0e-6))) <
        (1.0e-6 / 1.4e-5)^0.2 / 40
    # a part of the solution beside the largest, or none: what has one is followed by the steps
    calls = Ref(0)
    function counted(out, u, p, t)
        calls[] += 1
        out[1] = p[1] * cos(40t) + p[2]
        return nothing
    end
    by(p) = PySciML.resolving(
        mesh, PySciML.Functions{Float64}(_ -> counted, 0, true), 1, (u, _...) -> fill!(u, 1), p, 1.0e-6
    )
    @test by(ones(500)) === mesh && calls[] == 0
    # and what was seen through is not looked at again: three nodes an interval, in two values each
    cut_ = length(by([0.0; ones(499)])) - 1
    @test cut_ > 300 && calls[] < 2 * 6 * cut_
    # among many some are always small: these are looked at where they are nothing beside the others
    @test by([1.0e-3; ones(499)]) === mesh
    # jumps that nobody told of: no mesh resolves them
    @test finer(t -> sign(sin(40t)), mesh) === mesh
    # nor are those looked at that do not depend on time, or by pieces
    quiet = PySciML.Functions{Float64}(_ -> (du, u, p, t) -> error("was looked at"))
    @test PySciML.resolving(mesh, quiet, 1, still, [0.0], 1.0e-6) === mesh
    @test !PySciML.clone(quiet).driven && PySciML.clone(driven(cos)).driven
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
