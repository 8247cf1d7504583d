# Gradients of stochastic equations: Milstein's method for commutative noise, backwards.

"""
    MilsteinCommutative(stratonovich)

A step of `RKMilCommute` with iterated integrals of commutative noise, dW_j dW_k / 2 (Kloeden and
Platen, "Numerical Solution of Stochastic Differential Equations", section 10.3), and differences in
place of derivatives:

    H_k = u + dt f(u) + sqrt(dt) g_k(u)
    u  += dt f(u) + g(u) dW + sum_k (g(H_k) - g(u)) J_k / sqrt(dt),    J_jk = (dW_j dW_k - dt I_jk) / 2

(without `dt I` for Stratonovich's equation). On diagonal noise it is that of `RKMil`.
"""
struct MilsteinCommutative
    stratonovich::Bool
end

# The cotangents of the diffusion's matrix at the step's begin.
workspace(::MilsteinCommutative, ::Type{T}, n, columns) where {T} = zeros(T, n * max(columns, 0))

goes_through(::MilsteinCommutative) = (true, false, true)

function back!(s::MilsteinCommutative, b::Backwards{T}, lambda, u, t, dt, dW) where {T}
    n, columns, root = b.n, b.x.columns, sqrt(dt)
    columns > 0 || return back!(Milstein(s.stratonovich), b, lambda, u, t, dt, dW)
    b.x.drift.value(b.f, u, b.p, t)
    b.x.diffusion.value(b.g, u, b.p, t)
    weight(j, k) = (dW[j] * dW[k] - (j == k && !s.stratonovich ? dt : zero(T))) / (2 * root)
    of_diffusion!(b, lambda, dW, one(T))
    of_g = copyto!(b.work, 1, b.w, n + 1, length(b.work))
    fill!(b.mu, zero(T))                         # of all H_k together
    for k in 1:columns
        for j in 1:columns, i in 1:n
            w = lambda[i] * weight(j, k)
            b.w[j * n + i] = w
            of_g[(j - 1) * n + i] -= w
        end
        b.y .= u .+ dt .* b.f .+ root .* view(b.g, ((k - 1) * n + 1):(k * n))
        of_H = view(pull_diffusion!(b, b.y, t), 1:n)
        b.mu .+= of_H
        view(of_g, ((k - 1) * n + 1):(k * n)) .+= root .* of_H
    end
    b.mu .+= lambda
    of_drift!(b, b.mu, dt)
    copyto!(b.w, n + 1, of_g, 1, length(of_g))
    copyto!(lambda, b.mu)
    add!(lambda, one(T), pull_whole!(b, u, t))
    return
end
