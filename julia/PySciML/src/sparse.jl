# Sparse Jacobians: computed by columns that share no row together, solved by sparse LU.

"""
    Pattern(n, colptr, rowval, from, ncolors)

Which entries of an `n` by `n` Jacobian can be nonzero, column by column (the diagonal always among
them), and where each comes from in the compressed Jacobian `J * seed` of `ncolors` columns: `from`
holds linear indices, 0 for an entry that is always zero (Curtis, Powell and Reid, "On the
estimation of sparse Jacobian matrices", 1974).
"""
struct Pattern
    n::Int
    colptr::Vector{Int}
    rowval::Vector{Int}
    from::Vector{Int}
    ncolors::Int
end

"A matrix of the pattern, with ones everywhere in it."
prototype(::Type{T}, s::Pattern) where {T} =
    SparseMatrixCSC(s.n, s.n, copy(s.colptr), copy(s.rowval), ones(T, length(s.rowval)))

"""
    SparseJacobian(kernel, pattern)

`jac!(J, u, p, t)` by the kernel of the compressed Jacobian; `J` is sparse or dense.
"""
struct SparseJacobian{T} <: Function
    kernel::MatrixKernel{T}
    pattern::Pattern
    product::Matrix{T}
end
SparseJacobian(kernel::MatrixKernel{T}, s::Pattern) where {T} =
    SparseJacobian{T}(kernel, s, Matrix{T}(undef, s.n, s.ncolors))

function (j::SparseJacobian{T})(J, u, p, t) where {T}
    s = j.pattern
    product = eltype(J) === T ? j.product : Matrix{eltype(J)}(undef, s.n, s.ncolors)
    j.kernel(product, u, p, t)
    spread!(J, product, s)
    return nothing
end

function spread!(J::SparseMatrixCSC, product, s::Pattern)
    if getcolptr(J) != s.colptr || rowvals(J) != s.rowval
        # an algorithm's own matrix, whose pattern holds more, or has lost what was zero once
        fill!(nonzeros(J), 0)
        return entries!(J, product, s)
    end
    values = nonzeros(J)
    @inbounds for (k, i) in enumerate(s.from)
        values[k] = i == 0 ? zero(eltype(values)) : product[i]
    end
    return J
end
spread!(J, product, s::Pattern) = entries!(fill!(J, 0), product, s)

function entries!(J, product, s::Pattern)
    for column in 1:s.n, k in s.colptr[column]:(s.colptr[column + 1] - 1)
        s.from[k] == 0 || (J[s.rowval[k], column] = product[s.from[k]])
    end
    return J
end

function sparse_function(f::Functions{T}, s::Pattern, mass_matrix) where {T}
    kernel = MatrixKernel{T}(:jac_c, f.value.c, f.value.load)
    common = (;
        jac = SparseJacobian(kernel, s), f.tgrad, f.paramjac, f.jvp, f.vjp, f.vjp_p,
        jac_prototype = prototype(T, s),
    )
    mass_matrix === nothing && return ODEFunction{true, FullSpecialize}(f.value; common...)
    return ODEFunction{true, FullSpecialize}(
        f.value; common..., mass_matrix = sparse(mass_matrix)
    )
end

"""
    dense_function(f, prototype) -> ODEFunction

The function with another `jac_prototype`, and a dense mass matrix.
"""
dense_function(f, jac_prototype) = ODEFunction{true, FullSpecialize}(
    f.f; f.jac, f.tgrad, f.paramjac, f.jvp, f.vjp, f.vjp_p, jac_prototype,
    mass_matrix = f.mass_matrix isa SparseMatrixCSC ? Matrix(f.mass_matrix) : f.mass_matrix
)

"The problem with the function so; `remake` would keep the old prototype."
function without_prototype(prob::ODEProblem)
    return ODEProblem(dense_function(prob.f, nothing), prob.u0, prob.tspan, prob.p)
end

"""
    sparse_default()

The default algorithm for models with a sparse Jacobian: as `DefaultODEAlgorithm`, with sparse LU
also beyond 500 states, where that one takes Krylov's method without a preconditioner.
"""
function sparse_default()
    quiet = (; autodiff = AutoFiniteDiff())
    return OrdinaryDiffEqCore.AutoAlgSwitch(
        (Tsit5(), Vern7(; lazy = Val{true}())),
        (Rosenbrock23(; quiet...), Rodas5P(; quiet...), FBDF(; quiet...), FBDF(; quiet...))
    )
end
