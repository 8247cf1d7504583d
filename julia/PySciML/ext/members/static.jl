# Functions of static arrays: what a thread calls.

"""
    StaticKernel{Shape, Sizes}

An emitted function `f(ws, out, u, p, t, c)` as one of static arrays that gives an array of `Shape`.
Its buffers, of `Sizes`, are local to the call; literal arrays and data stay in the device's memory.
"""
struct StaticKernel{Shape, Sizes, F, KF, KI, KB, C}
    f::F
    kf::KF
    ki::KI
    kb::KB
    c::C
end
StaticKernel{Shape, Sizes}(f::F, kf::KF, ki::KI, kb::KB, c::C) where {Shape, Sizes, F, KF, KI, KB, C} =
    StaticKernel{Shape, Sizes, F, KF, KI, KB, C}(f, kf, ki, kb, c)
Adapt.adapt_structure(to, k::StaticKernel{Shape, Sizes}) where {Shape, Sizes} =
    StaticKernel{Shape, Sizes}(k.f, map(x -> adapt(to, x), (k.kf, k.ki, k.kb, k.c))...)

@inline function (k::StaticKernel{Shape, Sizes})(u, p, t) where {Shape, Sizes}
    S = promote_type(eltype(u), eltype(p), typeof(t))
    nf, ni, nb = Sizes
    ws = (;
        f = MVector{nf, S}(undef), i = MVector{ni, Int}(undef), b = MVector{nb, Bool}(undef),
        k.kf, k.ki, k.kb,
    )
    out = MVector{prod(Shape), S}(undef)
    k.f(ws, out, u, p, t, k.c)
    return SArray{Tuple{Shape...}}(Tuple(out))
end

"A model's kernel on its device, with the data vector `c` there."
function static_kernel(m::MembersModel, role, shape, c)
    s = source(m, role)
    place(x) = upload(m.device, x)
    return StaticKernel{shape, s.sizes}(s.f, place(s.kf), place(s.ki), place(s.kb), c)
end

"""
    Held

What a member's integrator takes for its parameters: `p` themselves, and its own time `s`, counted
from `start` in units of `rate`. f is not a number at times within `least` after `s`: so a step that
an error estimate has made too short ends, where DiffEqGPU's own bound is an error for all members.
"""
struct Held{P, T}
    p::P
    start::T
    rate::T
    s::T
    least::T
end

"f with its derivatives, over a member's own time."
struct MemberFunction{F, J, G} <: AbstractODEFunction{false}
    f::F
    jac::J
    tgrad::G
    mass_matrix::UniformScaling{Bool}
end
@inline time_of(h::Held, s) = h.start + h.rate * s
@inline function (x::MemberFunction)(u, h::Held, s)
    v = h.rate * x.f(u, h.p, time_of(h, s))
    short = (h.s < s) & (s < h.s + h.least)
    return map(y -> Base.ifelse(short, oftype(y, NaN), y), v)
end

# A derivative, where each of `K` own times in it counts `rate`.
struct Rated{F, K}
    f::F
end
Rated{K}(f::F) where {F, K} = Rated{F, K}(f)
@inline (x::Rated{F, 1})(u, h::Held, s) where {F} = h.rate * x.f(u, h.p, time_of(h, s))
@inline (x::Rated{F, 2})(u, h::Held, s) where {F} =
    h.rate * h.rate * x.f(u, h.p, time_of(h, s))
Adapt.adapt_structure(to, x::Rated{F, K}) where {F, K} = Rated{K}(adapt(to, x.f))
Adapt.adapt_structure(to, x::MemberFunction) =
    MemberFunction(adapt(to, x.f), adapt(to, x.jac), adapt(to, x.tgrad), x.mass_matrix)

const IMPLICIT = Union{GPUKvaerno3, GPUKvaerno5, GPURodas4, GPURodas5P, GPURosenbrock23}

roles(alg) = alg isa IMPLICIT ? (:value, :jac_u, :jac_t) : (:value,)
function PySciML.fetch_kernels!(m::MembersModel, alg)
    lock(() -> foreach(role -> source(m, role), roles(alg)), m.lock)
    return
end

function member_function(m::MembersModel, alg, c)
    n = m.n
    jac = tgrad = nothing
    if alg isa IMPLICIT
        jac = Rated{1}(static_kernel(m, :jac_u, (n, n), c))
        tgrad = Rated{2}(static_kernel(m, :jac_t, (n,), c))
    end
    return MemberFunction(static_kernel(m, :value, (n,), c), jac, tgrad, I)
end

# -- parameters --------------------------------------------------------------------------------

"""
    Parameters{S}

The parameters of member `i` as a vector that reads the device's memory: entry `j` is `shared[j]`, or
row `slot[j]` of the member's own. Numbers of type `S`: duals have the partials that `directions`
says, of which those after `first` are asked for.
"""
struct Parameters{S, V, M, I} <: AbstractVector{S}
    shared::V
    own::M
    slot::I
    directions::I
    i::Int
    first::Int
end
Parameters{S}(shared::V, own::M, slot::I, directions::I, i, first) where {S, V, M, I} =
    Parameters{S, V, M, I}(shared, own, slot, directions, i, first)
Base.size(p::Parameters) = (length(p.slot),)
@inline function Base.getindex(p::Parameters{S}, j::Int) where {S}
    @inbounds begin
        k = p.slot[j]
        x = k == 0 ? p.shared[j] : p.own[k, p.i]
        return seeded(S, x, p.directions, j, p.first)
    end
end

struct MemberTag end
@inline seeded(::Type{T}, x, directions, j, first) where {T <: AbstractFloat} = x
@inline function seeded(::Type{Dual{G, T, K}}, x, directions, j, first) where {G, T, K}
    d = @inbounds directions[j] - first
    return Dual{G}(x, Partials(ntuple(q -> T(q == d), Val(K))))
end

# Few parameters are read once.
const FEW = 32
@inline function parameters(::Val{NP}, all::Parameters{S}) where {NP, S}
    return NP <= FEW ? SVector{NP, S}(ntuple(j -> all[j], Val(NP))) : all
end
