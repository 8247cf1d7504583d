# Jumps whose rate goes along with a solution: the next one comes when the rates' integral has grown
# by a number drawn from the exponential distribution, and is one of them with a probability
# proportional to its rate there. Salis, Kaznessis, "Accurate hybrid stochastic simulation of a system
# of coupled chemical or biochemical reactions", Journal of Chemical Physics 122 (2005).
#
# JumpProcesses' own VR_Direct counts from t = 0 wherever a solve begins, and takes the integral over
# a step by four points, however long it is (JumpProcesses 9.29).

"""
    Hazard{T}

`left`: what the rates' integral has yet to grow by from `since` on, until the next jump. `ended` and
`left_there`: the end of a step, and what was left there; `dW`: the noise of that step, if there is
(of W, and then of Z where the algorithm draws it).
"""
mutable struct Hazard{T} <: Function
    const rates::Vector{Rate{T}}
    const fires::Vector{Fire{T}}
    const rng::Xoshiro
    const tolerance::T
    const u::Vector{T}
    const cuts::Dict{Int, Cut{T}}
    const dW::Vector{T}
    since::T
    left::T
    ended::T
    left_there::T
end

function hazard_callback(prob, j::Jumps{T}, events, log, numbers, cuts) where {T}
    n = length(prob.u0)
    # a rate may be below zero by as much as the solution is off
    h = Hazard{T}(
        [Rate(events[i], sqrt(eps(T))) for i in numbers],
        [Fire{T}(i, events, log, true, zeros(T, n)) for i in numbers],
        Xoshiro(hash(j.seed, UInt(0x6a756d70))), sqrt(eps(T)), zeros(T, n), cuts, T[],
        prob.tspan[1], zero(T), T(NaN), zero(T)
    )
    begin_at(callback, u, t, integrator) =
        (draw!(h, t); SciMLBase.derivative_discontinuity!(integrator, false))
    return ContinuousCallback(
        h, nothing, act(h); initialize = begin_at, save_positions = (true, true), interp_points = 0
    )
end

function draw!(h::Hazard{T}, t) where {T}
    h.since, h.left, h.ended = t, randexp(h.rng, T), T(NaN)
    return
end

total(h::Hazard, u, p, t) = sum(rate -> rate(u, p, t), h.rates)

function (h::Hazard)(u, t, integrator)
    catch_up!(h, integrator)
    t == h.since && return h.left
    value = h.left - grown(h, s -> within!(h.u, integrator, s), h.since, t, integrator.p)
    if t == integrator.t
        h.ended, h.left_there = t, value
        noise!(h.dW, integrator, integrator.sol.prob)
    end
    return value
end

noise!(dW, integrator, _) = dW
function noise!(dW, integrator, ::SciMLBase.AbstractSDEProblem)
    W = integrator.W
    append!(empty!(dW), W.dW)
    W.dZ === nothing || append!(dW, W.dZ)
    return dW
end

# The steps that have been taken since: to their end, or to where another event has cut them.
function catch_up!(h::Hazard, integrator)
    from = integrator.tprev
    from == h.since && return
    h.left = from == h.ended ? h.left_there :
        h.left - grown(h, s -> copyto!(h.u, integrator.sol(s)), h.since, from, integrator.p)
    h.since = from
    return
end

within!(u, integrator, t) =
    integrator.alg isa PySciML.DEFAULT ? copyto!(u, integrator(t)) : integrator(u, t)

const NODES = (0.1834346424956498, 0.525532409916329, 0.7966664774136267, 0.9602898564975363)
const WEIGHTS = (0.362683783378362, 0.31370664587788727, 0.22238103445337448, 0.10122853629037626)

# Gauss' rule of eight points on halves of halves, until halving an interval changes nothing.
function grown(h::Hazard, state!::F, from, to, p) where {F}
    function rule(a, b)
        middle, half, out = (a + b) / 2, (b - a) / 2, zero(a)
        for (x, w) in zip(NODES, WEIGHTS), s in (middle - half * x, middle + half * x)
            state!(s)
            out += w * total(h, h.u, p, s)
        end
        return out * half
    end
    return refined(rule, from, to, rule(from, to), h.tolerance, 0)
end
function refined(rule::F, a, b, whole, tolerance, depth) where {F}
    middle = (a + b) / 2
    left, right = rule(a, middle), rule(middle, b)
    both = left + right
    (depth >= 20 || abs(both - whole) <= tolerance * (1 + abs(both))) && return both
    return refined(rule, a, middle, left, tolerance, depth + 1) +
        refined(rule, middle, b, right, tolerance, depth + 1)
end

function act(h::Hazard)
    return function (integrator)
        u, p, t = integrator.u, integrator.p, integrator.t
        at = rand(h.rng) * total(h, u, p, t)
        k, sum_ = 0, zero(at)
        while k < length(h.rates) && (k == 0 || sum_ <= at)
            k += 1
            sum_ += h.rates[k](u, p, t)
        end
        h.fires[k](integrator)
        h.ended > t && !isempty(h.dW) &&
            (h.cuts[length(first(h.fires).log)] = Cut{eltype(h.u)}(h.ended, copy(h.dW)))
        draw!(h, t)
        JumpProcesses.reset_aggregated_jumps!(integrator)
        return nothing
    end
end
