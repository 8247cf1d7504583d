# The package as a whole: methods without ambiguities, a complete Project.toml; and of solves: types
# that are known from the border on, and steps that allocate nothing.

using ADTypes: AutoFiniteDiff
using OrdinaryDiffEqBDF: FBDF
using OrdinaryDiffEqRosenbrock: Rodas5P
using OrdinaryDiffEqTsit5: Tsit5
using OrdinaryDiffEqVerner: Vern7
using PySciML
using PySciML: Event, Functions, Handle, Model, Options, Response
using SciMLBase
using TOML
using Test

@testset "package" begin
    @test isempty(Test.detect_ambiguities(PySciML; recursive = true))
    @test isempty(Test.detect_unbound_args(PySciML; recursive = true))
    @test isempty(filter(n -> !isdefined(PySciML, n), names(PySciML)))
    project = TOML.parsefile(joinpath(pkgdir(PySciML), "Project.toml"))
    needed = merge(project["deps"], project["weakdeps"])
    @test setdiff(keys(needed), keys(project["compat"])) == Set{String}()
    loaded = Set(string(id.uuid) for id in keys(Base.loaded_modules))
    @test all(in(loaded), values(project["deps"]))  # none is named and never used
    for (name, triggers) in project["extensions"]
        @test isfile(joinpath(pkgdir(PySciML), "ext", "$name.jl"))
        @test all(haskey(project["weakdeps"], t) for t in vcat(triggers))
    end
end

oscillator(::Type{T}) where {T} =
    Model(Functions{T}(role -> PySciML.Workload.source(role, T)), 2)
solver(alg) = alg(; autodiff = AutoFiniteDiff())

# memory of a step in the midst of a solve, once everything is compiled
function memory_of_a_step(model::Model{T}, alg) where {T}
    prob = PySciML.problem(model, T[2, 2], T[0.5, 1], (T(0), T(1000)), nothing, nothing)
    integrator = SciMLBase.init(prob, alg; save_everystep = false, reltol = T(1.0e-3))
    memory() = @allocated SciMLBase.step!(integrator)
    foreach(_ -> memory(), 1:20)
    return minimum(memory() for _ in 1:20)
end

@testset "solves in $T" for T in (Float64, Float32)
    model = oscillator(T)
    u0, p, c, span = T[2, 2], T[0.5, 1], T[], (T(0), T(1))
    @test (@inferred PySciML.problem(model, u0, p, span, nothing, nothing)) isa ODEProblem
    for alg in (Tsit5(), Vern7(), solver(Rodas5P), solver(FBDF))
        options = Options{T}(; saveat = T[0, 0.5, 1])
        handle = @inferred PySciML.run(model, alg, u0, p, c, span, options)
        @test handle isa Handle{T, typeof(model)} && handle.u isa Matrix{T}
        @test (@inferred PySciML.interpolate(handle, [0.3], 0)) isa Matrix{T}
        @test (@inferred PySciML.respond(handle)) isa Response
        options = Options{T}(; saveat = T[0, 0.5, 1], dense = true)
        handle = PySciML.run(model, alg, u0, p, c, span, options)
        gradient = @inferred PySciML.adjoint(
            handle, T[0, 0.5, 1], [0, 1, 2], ones(T, 2, 3), Float64[],
            PySciML.CollocationAdjoint(), T(1.0e-6), T(1.0e-3)
        )
        @test gradient isa PySciML.Gradient{T} && all(isfinite, gradient.p)
    end
    @test memory_of_a_step(model, Tsit5()) == 0
    @test memory_of_a_step(model, Vern7()) == 0
    @test memory_of_a_step(model, solver(Rodas5P)) == 0
end

@testset "the types do not depend on the model" begin
    other(ws, out, u, p, t, c) = (out .= p[1] .* u; nothing)
    source = PySciML.KernelSource(other, (0, 0, 0), Float64[], Int[], Bool[])
    @test typeof(Model(Functions{Float64}(role -> source), 7)) === typeof(oscillator(Float64))
end

@testset "the equations of forward sensitivities" begin
    T, n, m = Float64, 2, 2
    f = oscillator(T).functions
    equations = PySciML.SensitivityEquations{T}(f, n, zeros(n, n), zeros(n, m), zeros(n), zeros(n))
    made = PySciML.sensitivity_function(equations, 10, solver(Rodas5P))
    @test typeof(made) === typeof(oscillator(T).f)
    x, p = [0.4, -1.1, 1.0, 0.2, 0.0, 1.0, 0.3, -0.5, 0.1, 0.9], [1.3, 0.7]
    rate(x, t = 0.2) = (out = zero(x); made.f(out, x, p, t); out)
    central(k, h = 1.0e-6) = (e = [i == k ? h : 0.0 for i in 1:10]; (rate(x + e) - rate(x - e)) / 2h)
    J = zeros(10, 10)
    made.jac(J, x, p, 0.2)
    @test J ≈ stack(central, 1:10) atol = 1.0e-6
    v, out = collect(range(-1, 1, 10)), zeros(10)
    made.jvp(out, v, x, p, 0.2)
    @test out ≈ J * v atol = 1.0e-6
    made.tgrad(out, x, p, 0.2)
    @test out == zeros(10)
    inner = PySciML.sensitivity_function(equations, 10, Tsit5())
    @test size(inner.jac_prototype) == (0, 0)
end
