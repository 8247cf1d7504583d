# Algorithms by name: Julia expressions, evaluated where the packages that they need are loaded.

const ALGORITHMS = Dict{String, Any}()
const ALGORITHMS_LOCK = ReentrantLock()
const ALGORITHM_SPACE = Ref{Module}()

# A package by the name that Python gives; nothing where this project has none.
function identified(name::AbstractString)
    id = Base.identify_package(PySciML, String(name))
    return id === nothing ? Base.identify_package(String(name)) : id
end

# Every package of the solvers' family; loaded on first need.
function require(name::AbstractString)
    id = identified(name)
    id === nothing && error(
        "the Julia package $name is not installed in this project; " *
            "`python -m pysciml setup` installs it"
    )
    return Base.require(id)
end

function algorithm_space()
    if !isassigned(ALGORITHM_SPACE)
        space = Module(:PySciMLAlgorithms)
        Core.eval(space, :(using PySciML: AutoFiniteDiff, AutoForwardDiff, DefaultODEAlgorithm))
        Core.eval(space, :(const PySciML = $PySciML))
        ALGORITHM_SPACE[] = space
    end
    return ALGORITHM_SPACE[]
end

"""
    WithoutPrototype(alg)

An algorithm that is to see no `jac_prototype`: the implicit extrapolation methods make an operator
of it that no longer exists (OrdinaryDiffEqExtrapolation 2).
"""
struct WithoutPrototype{A}
    alg::A
end
is_adaptive(w::WithoutPrototype) = is_adaptive(w.alg)

"""
    Tuned(alg, options)

An algorithm with options of SciML's `init` that few solves have: a controller, `force_dtmin`, ...
They make an integrator of another type, which no precompile workload has met.
"""
struct Tuned{A, O <: NamedTuple}
    alg::A
    options::O
end
Tuned(t::Tuned, options::NamedTuple) = Tuned(t.alg, merge(t.options, options))
Tuned(w::WithoutPrototype, options::NamedTuple) = WithoutPrototype(Tuned(w.alg, options))
is_adaptive(t::Tuned) = is_adaptive(t.alg)

# The algorithm itself, and the options that come with it.
bare(alg) = alg
bare(t::Tuned) = t.alg
tuning(alg) = (;)
tuning(t::Tuned) = t.options

# A controller by `make`, of an algorithm; algorithms made of others have one for each.
controller(make, alg) = make(alg)
controller(make, w::WithoutPrototype) = controller(make, w.alg)
controller(make, alg::OrdinaryDiffEqCore.CompositeAlgorithm) =
    OrdinaryDiffEqCore.CompositeController(map(make, alg.algs))

"""
    object(text, packages)

The value of a Julia expression such as `"Rodas5P(; autodiff = AutoFiniteDiff())"` where the names
of `packages` are in scope. Values are kept by text.
"""
function object(text::AbstractString, packages)
    return lock(ALGORITHMS_LOCK) do
        get!(ALGORITHMS, String(text)) do
            space = algorithm_space()
            for name in packages
                package = require(name)
                Core.eval(space, Expr(:(=), Symbol(name), package))
            end
            Core.eval(space, Meta.parse(String(text)))
        end
    end
end
