# Models: a function with all that derives from it, as SciML wants it.

"""
    compile(text, sizes, constants, T) -> KernelSource

Compile an emitted function (Julia source text of an anonymous function). Equal texts share one
function, so that building the same model again compiles nothing.
"""
compile(text::AbstractString, sizes, constants, ::Type{T}) where {T} = compile(
    code -> Core.eval(kernel_space(), code), String(text), text, sizes, constants, T
)

# By `evaluate(code)`; `key` is the text with what else makes functions differ.
function compile(
        evaluate::F, key::String, text::AbstractString, sizes, constants, ::Type{T}
    ) where {F, T}
    f = lock(SOURCES_LOCK) do
        length(SOURCES) < MOST_SOURCES || haskey(SOURCES, key) || empty!(SOURCES)
        get!(() -> evaluate(Meta.parse(String(text))), SOURCES, key)
    end
    kf, ki, kb = constants
    return KernelSource(
        f, (Int(sizes[1]), Int(sizes[2]), Int(sizes[3])),
        Vector{T}(kf), Vector{Int}(ki), Vector{Bool}(kb)
    )
end

const SOURCES = Dict{String, Any}()
const MOST_SOURCES = 2048  # texts that are kept; compiled code itself Julia never frees
const SOURCES_LOCK = ReentrantLock()
const SPACE = Ref{Module}()

# Emitted functions live in a module of their own, made when the first of them comes.
function kernel_space()
    if !isassigned(SPACE)
        SPACE[] = Module(:PySciMLKernels)
        Core.eval(SPACE[], :(using PySciML.Runtime, PySciML.DeviceRuntime))
    end
    return SPACE[]
end

"""
    Functions{T}

Everything about one function `f(u, p, t)`: value, derivatives and products, each a kernel that
is compiled on first need. `vjp_up` gives the products by u and by p, one after the other,
`vjp_p_batch` sums the products by p over many points. `driven` says whether the rate depends on
time otherwise than through the state, and without pieces in it: see driven_mesh.jl.
"""
struct Functions{T}
    value::VectorKernel{T}
    jac::MatrixKernel{T}
    tgrad::VectorKernel{T}
    paramjac::MatrixKernel{T}
    jvp::ProductKernel{T}
    vjp::ProductKernel{T}
    vjp_p::ProductKernel{T}
    vjp_t::ProductKernel{T}
    vjp_up::ProductKernel{T}
    vjp_p_batch::BatchKernel{T}
    lock::ReentrantLock
    driven::Bool
end

function Functions{T}(load, nc::Integer = 0, driven::Bool = false) where {T}
    c = zeros(T, nc)
    return Functions{T}(
        VectorKernel{T}(:value, c, load), MatrixKernel{T}(:jac_u, c, load),
        VectorKernel{T}(:jac_t, c, load), MatrixKernel{T}(:jac_p, c, load),
        ProductKernel{T}(:jvp_u, c, load), ProductKernel{T}(:vjp_u, c, load),
        ProductKernel{T}(:vjp_p, c, load), ProductKernel{T}(:vjp_t, c, load),
        ProductKernel{T}(:vjp_up, c, load), BatchKernel{T}(:vjp_p_batch, c, load),
        ReentrantLock(), driven
    )
end

kernels(f::Functions) =
    (f.value, f.jac, f.tgrad, f.paramjac, f.jvp, f.vjp, f.vjp_p, f.vjp_t, f.vjp_up,
    f.vjp_p_batch)

"The data vector, shared by all kernels of the function."
data(f::Functions) = f.value.c

"""
    Residual{T}

Everything about one residual `f(du, u, p, t)` of an implicit equation; `driven` as in `Functions`.
"""
struct Residual{T}
    value::ProductKernel{T}
    jac_u::ResidualMatrixKernel{T}
    jac_du::ResidualMatrixKernel{T}
    tgrad::ProductKernel{T}
    vjp_p::ResidualProductKernel{T}
    lock::ReentrantLock
    driven::Bool
end

function Residual{T}(load, nc::Integer = 0, driven::Bool = false) where {T}
    c = zeros(T, nc)
    return Residual{T}(
        ProductKernel{T}(:value, c, load), ResidualMatrixKernel{T}(:jac_u, c, load),
        ResidualMatrixKernel{T}(:jac_du, c, load), ProductKernel{T}(:jac_t, c, load),
        ResidualProductKernel{T}(:vjp_p, c, load), ReentrantLock(), driven
    )
end
data(f::Residual) = f.value.c
kernels(f::Residual) = (f.value, f.jac_u, f.jac_du, f.tgrad, f.vjp_p)

alike(f::Functions{T}) where {T} = Functions{T}(f.value.load, length(data(f)), f.driven)
alike(f::Residual{T}) where {T} = Residual{T}(f.value.load, length(data(f)), f.driven)

function clone(f::F) where {F <: Union{Functions, Residual}}
    new = alike(f)
    for (to, from) in zip(kernels(new), kernels(f))
        isloaded(from) && attach!(to, from.source)
    end
    return new
end

# The Jacobian of a residual along `du = gamma u`, as DAE solvers ask for it.
struct ResidualJacobian{T} <: Function
    f::Residual{T}
    part::Base.RefValue{Matrix{T}}
end
function (j::ResidualJacobian{T})(J, du, u, p, gamma, t) where {T}
    size(j.part[]) == size(J) || (j.part[] = similar(J, T))
    j.f.jac_u(J, du, u, p, t)
    j.f.jac_du(j.part[], du, u, p, t)
    J .+= gamma .* j.part[]
    return nothing
end

ode_function(f::Functions{T}, n, ::Nothing) where {T} = ODEFunction{true, FullSpecialize}(
    f.value; f.jac, f.tgrad, f.paramjac, f.jvp, f.vjp, f.vjp_p, jac_prototype = zeros(T, n, n)
)
ode_function(f::Functions{T}, n, mass_matrix::Matrix{T}) where {T} =
    ODEFunction{true, FullSpecialize}(
    f.value; f.jac, f.tgrad, f.paramjac, f.jvp, f.vjp, f.vjp_p, mass_matrix,
    jac_prototype = zeros(T, n, n)
)
dae_function(f::Residual{T}) where {T} = DAEFunction{true, FullSpecialize}(
    f.value; jac = ResidualJacobian(f, Ref(Matrix{T}(undef, 0, 0)))
)
