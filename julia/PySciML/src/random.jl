# Random equations u' = f(u, p, t, W): along a path of the noise an ordinary equation.

"""
    Random{T}

The right-hand side of a random equation with `m` processes, as a function of the state and the noise
one after the other.
"""
struct Random{T}
    f::Functions{T}
    m::Int
end
data(x::Random) = data(x.f)
clone(x::Random) = Random(clone(x.f), x.m)

# As SciML calls it.
struct RandomRate{T} <: Function
    kernel::VectorKernel{T}
    x::Vector{T}
end
function (f::RandomRate)(du, u, p, t, W)
    copyto!(f.x, u)
    copyto!(f.x, length(u) + 1, W, 1, length(W))
    f.kernel(du, f.x, p, t)
    return nothing
end

function Model(x::Random{T}, n::Integer) where {T}
    f = RODEFunction{true, FullSpecialize}(RandomRate(x.f.value, zeros(T, n + x.m)))
    return Model{T, typeof(x), typeof(f)}(x, f, Int(n), nothing, nothing, ReentrantLock(), [])
end
clone(m::Model{T, <:Random}) where {T} = Model(clone(m.functions), m.n)

noisy_problem(m::Model{T, <:Random}, alg, u0, p, tspan, seed, ::Nothing) where {T} =
    RODEProblem(m.f, u0, tspan, p; seed, rand_prototype = zeros(T, m.functions.m))

"A step of `RandomEM`, or of `RandomTamedEM` (each entry by itself)."
struct RandomEuler
    tamed::Bool
end

"A step of `RandomHeun`."
struct RandomTrapezoid end

# What the way back works with: see `Backwards`. `w` is the noise at the step's begin.
struct RandomBack{T}
    f::Functions{T}
    p::Vector{T}
    n::Int
    x::Vector{T}
    w::Vector{T}
    v::Vector{T}
    mu::Vector{T}
    pulled::Vector{T}
    total::Vector{T}
end
function Backwards(how, x::Random{T}, p::Vector{T}, n) where {T}
    empty_(k) = zeros(T, k)
    return RandomBack{T}(
        x.f, p, n, empty_(n + x.m), empty_(x.m), empty_(n), empty_(n), empty_(n + x.m + length(p)),
        empty_(length(p))
    )
end
parameters(b::RandomBack) = b.total

seek!(b, path, column) = nothing
seek!(b::RandomBack, path, column) = copyto!(b.w, view(path, :, column))

# The function at a state and noise, in `v`.
function value!(b::RandomBack, u, w, t)
    copyto!(b.x, u)
    copyto!(b.x, b.n + 1, w, 1, length(w))
    b.f.value(b.v, b.x, b.p, t)
    return b.v
end

# Through the function where it was evaluated last.
function pull!(b::RandomBack{T}, lambda, cotangent, t) where {T}
    b.f.vjp_up(b.pulled, cotangent, b.x, b.p, t)
    add!(lambda, one(T), view(b.pulled, 1:b.n))
    add!(b.total, one(T), view(b.pulled, (length(b.x) + 1):length(b.pulled)))
    return
end

function back!(how::RandomEuler, b::RandomBack{T}, lambda, u, t, dt, dW) where {T}
    v = value!(b, u, b.w, t)
    for i in 1:b.n
        b.mu[i] = dt * lambda[i] / (how.tamed ? (1 + dt * abs(v[i]))^2 : one(T))
    end
    pull!(b, lambda, b.mu, t)
    return
end

function back!(::RandomTrapezoid, b::RandomBack{T}, lambda, u, t, dt, dW) where {T}
    v, half = copy(value!(b, u, b.w, t)), dt / 2
    value!(b, u .+ dt .* v, b.w .+ dW, t + dt)
    b.mu .= half .* lambda
    along = zeros(T, b.n)
    pull!(b, along, b.mu, t + dt)
    b.mu .+= dt .* along
    lambda .+= along
    value!(b, u, b.w, t)
    pull!(b, lambda, b.mu, t)
    return
end

# -- the border ------------------------------------------------------------------------------------

function c_new_random(
        functions::Int64, n::Int64, m::Int64, id::Ptr{Int64}, message::Ptr{Ptr{UInt8}}
    )::Cint
    return guarded(message) do
        made = Random(lookup(FUNCTIONS, functions), Int(m))
        unsafe_store!(id, register!(MODELS, Model(made, n)))
    end
end
