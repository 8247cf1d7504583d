# Equations in two parts: partitioned ones, whose state is (v, u), and split ones, a sum of two sides.

"""
    Parts{T}

The functions of an equation in two parts: of the `whole` of it, and of each part alone, over one
data vector. `nv` entries of the state belong to the first part; 0 for a split equation, whose
parts are summed. Where it is `linear`, the first of these is a matrix times the state.
"""
struct Parts{T}
    whole::Functions{T}
    first::Functions{T}
    second::Functions{T}
    nv::Int
    linear::Bool
end
# The parts read the whole's data: a name of its own, as the default constructor takes the same.
parts_of(whole::Functions{T}, first, second, nv, linear) where {T} = Parts{T}(
    whole, over(first, data(whole)), over(second, data(whole)), Int(nv), linear != 0
)
data(x::Parts) = data(x.whole)
clone(x::Parts) = parts_of(clone(x.whole), clone(x.first), clone(x.second), x.nv, x.linear)

# The functions with kernels of their own over the data vector `c`.
function over(f::Functions{T}, c::Vector{T}) where {T}
    remade(k::K) where {K <: Kernel} =
        (new = K(k.role, c, k.load); isloaded(k) && attach!(new, k.source); new)
    return Functions{T}(map(remade, kernels(f))..., ReentrantLock(), f.driven)
end

# A part of a partitioned equation as SciML calls it, with velocity and position by themselves.
struct OfBoth{T} <: Function
    kernel::VectorKernel{T}
    x::Vector{T}
    nv::Int
end
function (f::OfBoth)(out, v, u, p, t)
    copyto!(f.x, 1, v, 1, f.nv)
    copyto!(f.x, f.nv + 1, u, 1, length(f.x) - f.nv)
    f.kernel(out, f.x, p, t)
    return nothing
end

function Model(parts::Parts{T}, n::Integer) where {T}
    f = parts.nv > 0 ? partitioned_function(parts, Int(n)) : split_function(parts, Int(n))
    return Model{T, typeof(parts), typeof(f)}(
        parts, f, Int(n), nothing, nothing, ReentrantLock(), []
    )
end
clone(m::Model{T, <:Parts}) where {T} = Model(clone(m.functions), m.n)

function partitioned_function(parts::Parts{T}, n) where {T}
    side(f) = OfBoth{T}(f.value, zeros(T, n), parts.nv)
    return DynamicalODEFunction{true, FullSpecialize}(side(parts.first), side(parts.second))
end

function split_function(parts::Parts{T}, n) where {T}
    a, b, J = parts.first, parts.second, zeros(T, n, n)
    return SplitFunction{true, FullSpecialize}(
        ODEFunction{true, FullSpecialize}(a.value; a.jac, a.tgrad, jac_prototype = J),
        ODEFunction{true, FullSpecialize}(b.value; b.jac, b.tgrad);
        a.jac, a.tgrad, jac_prototype = J, _func_cache = zeros(T, n)
    )
end

function problem(m::Model{T, Parts{T}}, u0, p, tspan, ::Nothing, ::Nothing) where {T}
    parts = m.functions
    if parts.nv > 0
        state = ArrayPartition(u0[1:parts.nv], u0[(parts.nv + 1):end])
        return ODEProblem(m.f, state, tspan, p)
    end
    return ODEProblem(parts.linear ? semilinear(m, u0, p, tspan[1]) : m.f, u0, tspan, p)
end

# With the matrix of the linear part as SciML's operator, which exponential methods ask for.
function semilinear(m::Model{T}, u0, p, t) where {T}
    A = zeros(T, m.n, m.n)
    m.functions.first.jac(A, u0, p, t)
    return SplitFunction{true, FullSpecialize}(
        ODEFunction{true, FullSpecialize}(MatrixOperator(A)), m.f.f2; _func_cache = zeros(T, m.n)
    )
end

matrix(us::Vector{<:ArrayPartition{T}}, n) where {T} = matrix(Vector{T}.(us), n)

# Tolerances for each entry, laid out as the state is.
like_state(tolerance, u0) = tolerance
like_state(tolerance::Vector, u0::ArrayPartition) =
    ArrayPartition(tolerance[eachindex(u0.x[1])], tolerance[(length(u0.x[1]) + 1):end])

# `nv` and `linear` as in `Parts`.
function c_new_parts(
        functions::Int64, first::Int64, second::Int64, n::Int64, nv::Int64, linear::Int64,
        id::Ptr{Int64}, message::Ptr{Ptr{UInt8}}
    )::Cint
    return guarded(message) do
        parts = parts_of((lookup(FUNCTIONS, i) for i in (functions, first, second))..., nv, linear)
        unsafe_store!(id, register!(MODELS, Model(parts, n)))
    end
end
