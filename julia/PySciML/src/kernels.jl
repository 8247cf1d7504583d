# Kernels: compiled functions behind one concrete type for each role.

"""
    Workspace{S, R}

The memory an emitted kernel works in: buffers of the element type `S` (a number type or a dual
number), integer and boolean buffers, and its literal arrays with real numbers of type `R`.
"""
struct Workspace{S, R}
    f::Vector{S}
    i::Vector{Int}
    b::Vector{Bool}
    kf::Vector{R}
    ki::Vector{Int}
    kb::Vector{Bool}
end

"""
    KernelSource{F, R}

A compiled kernel function `f(ws, out, inputs..., c)` with what its workspaces need: the lengths
of the buffers and the literal arrays.
"""
struct KernelSource{F, R}
    f::F
    sizes::NTuple{3, Int}
    kf::Vector{R}
    ki::Vector{Int}
    kb::Vector{Bool}
end

function workspace(::Type{S}, s::KernelSource{F, R}) where {S, F, R}
    nf, ni, nb = s.sizes
    return Workspace{S, R}(
        zeros(S, nf), zeros(Int, ni), zeros(Bool, nb), s.kf, s.ki, s.kb
    )
end

# A kernel function with its own workspace and the data vector `c`.
struct Bound{F, S, R} <: Function
    f::F
    ws::Workspace{S, R}
    c::Vector{R}
end

function (b::Bound)(out, u, p, t)
    b.f(b.ws, out, u, p, t, b.c)
    return nothing
end
function (b::Bound)(out, w, u, p, t)
    b.f(b.ws, out, w, u, p, t, b.c)
    return nothing
end
function (b::Bound)(out, w, du, u, p, t)
    b.f(b.ws, out, w, du, u, p, t, b.c)
    return nothing
end

"Thrown where a Python function called back from Julia has failed; Python holds the exception."
struct CallbackError <: Exception end

"Thrown where a function has no kernel of an optional role."
struct Unavailable <: Exception end

# A function of Python's, called through C: it reads `inputs` and writes `out`, arrays that are
# Python's memory, and returns nonzero where it failed.
struct Foreign{T, N} <: Function
    pointer::Ptr{Cvoid}
    inputs::Vector{Vector{T}}
    out::Array{T, N}
end

function callback!(f::Foreign, t)
    status = ccall(f.pointer, Cint, (Cdouble,), t)
    return status == 0 || throw(CallbackError())
end
function (f::Foreign)(out, u, p, t)
    copyto!(f.inputs[1], u)
    callback!(f, t)
    copyto!(out, f.out)
    return nothing
end
function (f::Foreign)(out, w, u, p, t)
    copyto!(f.inputs[1], w)
    copyto!(f.inputs[2], u)
    callback!(f, t)
    copyto!(out, f.out)
    return nothing
end
function (f::Foreign)(out, w, du, u, p, t)
    copyto!(f.inputs[1], w)
    copyto!(f.inputs[2], du)
    copyto!(f.inputs[3], u)
    callback!(f, t)
    copyto!(out, f.out)
    return nothing
end

"""
    Kernel{T, S}

A callable of signature `S` over `Vector{T}`: one concrete type for all models. What it calls
stands behind a `FunctionWrapper`, and is fetched by `load` when it is first needed. Arguments
that are not `Vector{T}` are copied into the kernel's own vectors; with dual numbers among them
the emitted source runs in workspaces of that type.

A kernel owns buffers, so it is not shared between threads: see `clone`.
"""
mutable struct Kernel{T, S} <: Function
    fw::FunctionWrapper{Nothing, S}
    role::Symbol
    source::Any                      # KernelSource, Foreign, or nothing while not loaded
    c::Vector{T}
    load::Any                        # function (role) -> source
    scratch::Vector{Vector{T}}
    generic::Dict{DataType, Any}
    function Kernel{T, S}(role, c, load) where {T, S}
        k = new{T, S}()
        k.role, k.source, k.c, k.load = role, nothing, c, load
        k.scratch = [T[] for _ in 1:5]
        k.generic = Dict{DataType, Any}()
        k.fw = FunctionWrapper{Nothing, S}(Unloaded(k))
        return k
    end
end

# Stands in a kernel until it is first called.
struct Unloaded{K} <: Function
    kernel::K
end
function (x::Unloaded)(args...)
    ensure!(x.kernel)
    x.kernel.fw(args...)
    return nothing
end

const VectorSig{T} = Tuple{Vector{T}, Vector{T}, Vector{T}, T}
const MatrixSig{T} = Tuple{Matrix{T}, Vector{T}, Vector{T}, T}
const ProductSig{T} = Tuple{Vector{T}, Vector{T}, Vector{T}, Vector{T}, T}
const BatchSig{T} = Tuple{Vector{T}, Vector{T}, Vector{T}, Vector{T}, Vector{T}}
const ResidualMatrixSig{T} = Tuple{Matrix{T}, Vector{T}, Vector{T}, Vector{T}, T}
const ResidualProductSig{T} = Tuple{
    Vector{T}, Vector{T}, Vector{T}, Vector{T}, Vector{T}, T,
}

"`out = f(u, p, t)`, a vector: right-hand side, time derivative, condition, affect."
const VectorKernel{T} = Kernel{T, VectorSig{T}}
"`J = f(u, p, t)`, a matrix: Jacobians."
const MatrixKernel{T} = Kernel{T, MatrixSig{T}}
"`out = f(w, u, p, t)`: products with a Jacobian; also a residual `f(du, u, p, t)`."
const ProductKernel{T} = Kernel{T, ProductSig{T}}
"`out = sum of f(w, u, p, t)` over points whose `w`, `u` and `t` follow each other."
const BatchKernel{T} = Kernel{T, BatchSig{T}}
"`J = f(du, u, p, t)`: Jacobians of a residual."
const ResidualMatrixKernel{T} = Kernel{T, ResidualMatrixSig{T}}
"`out = f(w, du, u, p, t)`: products with a Jacobian of a residual."
const ResidualProductKernel{T} = Kernel{T, ResidualProductSig{T}}

isloaded(k::Kernel) = k.source !== nothing

"""
    ensure!(kernel)

Fetch and compile the kernel if that has not happened yet.
"""
ensure!(k::Kernel) = (isloaded(k) || attach!(k, k.load(k.role)); k)

"""
    attach!(kernel, source)

Give a kernel its function: a `KernelSource` or a `Foreign`.
"""
function attach!(k::Kernel{T, S}, source) where {T, S}
    k.source = source
    empty!(k.generic)
    bound = source isa KernelSource ? Bound(source.f, workspace(T, source), k.c) : source
    k.fw = Base.invokelatest(FunctionWrapper{Nothing, S}, bound)::FunctionWrapper{Nothing, S}
    return k
end

"""
    clone(kernel)

The same kernel with buffers of its own, for another thread.
"""
function clone(k::Kernel{T, S}) where {T, S}
    new = Kernel{T, S}(k.role, copy(k.c), k.load)
    isloaded(k) && attach!(new, k.source)
    return new
end

# -- calls: one method an arity, since SciMLBase counts arguments ----------------------------------

(k::Kernel{T, VectorSig{T}})(out::Vector{T}, u::Vector{T}, p::Vector{T}, t::T) where {T} =
    k.fw(out, u, p, t)
(k::Kernel{T, MatrixSig{T}})(out::Matrix{T}, u::Vector{T}, p::Vector{T}, t::T) where {T} =
    k.fw(out, u, p, t)
(k::Kernel{T, ProductSig{T}})(
    out::Vector{T}, w::Vector{T}, u::Vector{T}, p::Vector{T}, t::T
) where {T} = k.fw(out, w, u, p, t)
(k::Kernel{T, BatchSig{T}})(
    out::Vector{T}, w::Vector{T}, u::Vector{T}, p::Vector{T}, t::Vector{T}
) where {T} = k.fw(out, w, u, p, t)
(k::Kernel{T, ResidualMatrixSig{T}})(
    out::Matrix{T}, w::Vector{T}, u::Vector{T}, p::Vector{T}, t::T
) where {T} = k.fw(out, w, u, p, t)
(k::Kernel{T, ResidualProductSig{T}})(
    out::Vector{T}, w::Vector{T}, du::Vector{T}, u::Vector{T}, p::Vector{T}, t::T
) where {T} = k.fw(out, w, du, u, p, t)

(k::Kernel{T, VectorSig{T}})(out, u, p, t) where {T} = anyhow(k, out, (u, p), t)
(k::Kernel{T, MatrixSig{T}})(out, u, p, t) where {T} = anyhow(k, out, (u, p), t)
(k::Kernel{T, ProductSig{T}})(out, w, u, p, t) where {T} = anyhow(k, out, (w, u, p), t)
(k::Kernel{T, ResidualMatrixSig{T}})(out, w, u, p, t) where {T} = anyhow(k, out, (w, u, p), t)
(k::Kernel{T, ResidualProductSig{T}})(out, w, du, u, p, t) where {T} =
    anyhow(k, out, (w, du, u, p), t)

plain(x) = eltype(x) <: AbstractFloat

# Arguments of any array or number type.
function anyhow(k::Kernel{T}, out, inputs::Tuple, t) where {T}
    if plain(out) && plain(t) && all(plain, inputs)
        dense = ntuple(i -> own(k, i, inputs[i]), length(inputs))
        if out isa Array{T, arity(k)}
            k.fw(out, dense..., T(t))
        else
            to = arity(k) == 1 ? resize!(k.scratch[5], length(out)) : Matrix{T}(undef, size(out))
            k.fw(to, dense..., T(t))
            copyto!(out, to)
        end
    else
        generic(k, out, inputs, t)
    end
    return nothing
end

arity(::Kernel{T, S}) where {T, S} = ndims(fieldtype(S, 1))

own(k::Kernel{T}, i, x::Vector{T}) where {T} = x
function own(k::Kernel{T}, i, x::AbstractVector) where {T}
    return copyto!(resize!(k.scratch[i], length(x)), x)
end

# Dual numbers: the same source in workspaces of their type, one a type.
function generic(k::Kernel{T}, out, inputs, t) where {T}
    ensure!(k)
    source = k.source
    source isa KernelSource || error(
        "a function that is called back in Python cannot run on $(eltype(out)); " *
            "write it so that it can be captured, or take another sensealg or algorithm"
    )
    S = promote_type(eltype(out), map(eltype, inputs)..., typeof(t))
    ws = get!(() -> workspace(S, source), k.generic, S)
    Base.invokelatest(source.f, ws, out, inputs..., t, k.c)
    return nothing
end
