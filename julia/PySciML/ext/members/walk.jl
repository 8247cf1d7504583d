# One member from its start to its end.

const SUCCESS, MAXITERS, DTMIN, UNSTABLE = map(
    Int, (ReturnCode.Success, ReturnCode.MaxIters, ReturnCode.DtLessThanMin, ReturnCode.Unstable)
)

"""
    Steps{T, A}

How steps are chosen: `dt` is the first one, or all where not adaptive; NaN where it is not given.
"""
struct Steps{Adaptive, T, A}
    abstol::A
    reltol::T
    dt::T
    dtmax::T
    dtmin::T
    maxiters::Int
end
Steps{Adaptive}(abstol::A, reltol::T, rest...) where {Adaptive, A, T} =
    Steps{Adaptive, T, A}(abstol, reltol, rest...)

# Tolerances of each state by itself, where DiffEqGPU has `abstol .+ x * reltol` and one type for both.
struct PerState{S}
    values::S
end
Base.:*(x::SVector, reltol::PerState) = x .* reltol.values
Base.broadcasted(::typeof(+), abstol::PerState, x) = Base.broadcasted(+, abstol.values, x)
@inline tolerances(o::Steps) = o.abstol, o.reltol
@inline tolerances(o::Steps{A, T, <:SVector}) where {A, T} =
    PerState(o.abstol), PerState(map(_ -> o.reltol, o.abstol))

"Members' time spans and output times, in the device's memory."
struct Times{S, V}
    spans::S                         # (2, N), or (2, 1) for all
    saveat::V                        # empty: the two ends
end
Adapt.adapt_structure(to, x::Times) = Times(adapt(to, x.spans), adapt(to, x.saveat))
@inline span_of(x::Times, i) =
    @inbounds (x.spans[1, min(i, size(x.spans, 2))], x.spans[2, min(i, size(x.spans, 2))])
@inline number_of(x::Times) = isempty(x.saveat) ? 2 : length(x.saveat)
@inline output_time(x::Times, (t0, t1), k) =
    isempty(x.saveat) ? (k == 1 ? t0 : t1) : @inbounds x.saveat[k]

@inline root_mean_square(u) = sqrt(sum(abs2, u) / length(u))
@inline of_values(u) = map(value, u)
@inline finite(u) = all(isfinite, u)
@inline finite(u::SVector{N, <:Dual}) where {N} =
    all(x -> isfinite(value(x)) & all(isfinite, partials(x)), u)

# The first step: Hairer, Nørsett and Wanner, "Solving Ordinary Differential Equations I", II.4.
@inline function first_step(f, u0, p, (t0, t1), o::Steps, order)
    T = typeof(t0)
    h = Held(p, t0, one(T), zero(T), zero(T))
    scale = o.abstol .+ abs.(of_values(u0)) .* o.reltol
    slope = of_values(f(u0, h, zero(T)))
    d0, d1 = root_mean_square(of_values(u0) ./ scale), root_mean_square(slope ./ scale)
    length_ = abs(t1 - t0)
    h0 = (d0 < T(1.0e-5)) | !(d1 >= T(1.0e-5)) ? length_ * T(1.0e-6) : T(0.01) * d0 / d1
    h0 = min(h0, length_) * sign(t1 - t0)
    after = of_values(f(u0 + h0 * slope, h, h0))
    d2 = root_mean_square((after - slope) ./ scale) / abs(h0)
    most = max(d1, d2)
    h1 = most <= T(1.0e-15) ? max(T(1.0e-6) * length_, abs(h0) * T(1.0e-3)) :
        (T(0.01) / most)^inv(T(order + 1))
    step = min(100 * abs(h0), h1, length_)
    # where f is no number next to the start a shorter step may still be taken
    return isfinite(step) & (step > 0) ? step : abs(h0)
end

@inline order_of(alg) = DiffEqGPU.alg_order(alg)
# Kvaerno's methods have a cubic between their steps: they step onto the outputs.
@inline between(alg) = true
@inline between(::Union{GPUKvaerno3, GPUKvaerno5}) = false

# The outputs at the start, and the number of the next one.
@inline function give_start(sink, total, u0, span, times)
    t0, t1 = span
    k, way = 1, sign(t1 - t0)
    while k <= number_of(times) && (output_time(times, span, k) - t0) * way <= 0
        total = give(sink, total, k, u0, t0)
        k += 1
    end
    return total, k
end

# Those from the k-th on that the last step has reached: all that are left where it has `ended` all.
@inline function give_reached(sink, total, k, integ, span, times, rate, ended)
    while k <= number_of(times)
        time = output_time(times, span, k)
        at = (time - span[1]) / rate
        at <= integ.t || ended || break
        x = at >= integ.t ? integ.u : DiffEqGPU._ode_interpolant(
            (at - integ.tprev) / integ.dt, integ.dt, integ.uprev, integ
        )
        total = give(sink, total, k, x, time)
        k += 1
    end
    return total, k
end

"""
    walk(sink, total, alg, f, u0, p, span, times, steps) -> (total, outputs, retcode, accepted, trials, reached)

Solve a member. `total = give(sink, total, k, u, t)` for output `k`, in their order.
"""
@inline function walk(sink, total, alg, f, u0, p, span, times, o::Steps{true})
    t0, t1 = span
    T, m = typeof(t0), number_of(times)
    way = sign(t1 - t0)
    # own time is counted in first steps: DiffEqGPU's least step is 1e-14, whatever the units
    first_ = isnan(o.dt) ? first_step(f, u0, p, span, o, order_of(alg)) : abs(o.dt)
    rate = way * exp2(floor(log2(min(first_, o.dtmax, abs(t1 - t0)))))
    stop = (t1 - t0) / rate
    longest, shortest = o.dtmax / abs(rate), o.dtmin / abs(rate)
    total, k = give_start(sink, total, u0, span, times)
    held = Held(p, t0, rate, zero(T), zero(T))
    integ = DiffEqGPU.init(
        alg, f, false, u0, zero(T), T(Inf), min(first_ / abs(rate), stop), held,
        tolerances(o)..., root_mean_square, nothing, CallbackSet(), nothing
    )
    code, accepted, trials, wild = SUCCESS, 0, 0, false
    while true
        s = integ.t
        stop - s <= 8 * eps(stop) && break
        trials >= o.maxiters && (code = MAXITERS; break)
        trials += 1
        target = stop
        if !between(alg) && k <= m
            target = min(stop, (output_time(times, span, k) - t0) / rate)
        end
        wanted, gap = min(integ.dtnew, longest), target - s
        dt = gap <= wanted ? gap : gap < 2 * wanted ? gap / 2 : wanted
        before, least = integ.u, max(T(1.0e-13), 32 * eps(s))
        integ.dtnew = dt
        integ.p = Held(p, t0, rate, s, least)
        DiffEqGPU.step!(integ, nothing, nothing)
        done = integ.dt
        if !finite(integ.u) || !(integ.t > s)
            # a shorter step may stay where f is a number
            wild |= !(done < 1000 * least)
            integ.u, integ.t, integ.u_modified, integ.qold = before, s, true, T(1.0e-4)
            integ.dtnew = (isfinite(done) ? min(done, dt) : dt) / 5
            integ.dtnew <= 100 * least || continue
            code = wild ? UNSTABLE : DTMIN
            break
        end
        if done < shortest && done != gap
            code = DTMIN
            break
        end
        accepted, wild = accepted + 1, false
        done == dt && dt == gap && (integ.t = target)
        done == dt && dt < wanted && (integ.dtnew = max(integ.dtnew, wanted))
        ended = stop - integ.t <= 8 * eps(stop)
        total, k = give_reached(sink, total, k, integ, span, times, rate, ended)
    end
    reached = code == SUCCESS ? t1 : t0 + rate * integ.t
    return total, k - 1, code, accepted, trials, reached
end

@inline function walk(sink, total, alg, f, u0, p, span, times, o::Steps{false})
    t0, t1 = span
    T = typeof(t0)
    rate = sign(t1 - t0) * abs(o.dt)
    stop = (t1 - t0) / rate
    total, k = give_start(sink, total, u0, span, times)
    held = Held(p, t0, rate, zero(T), zero(T))
    integ = DiffEqGPU.init(
        alg, f, false, u0, zero(T), one(T), held, nothing, CallbackSet(), false, nothing
    )
    # a last step that is none but for rounding is left out
    last_ = ceil(stop - 8 * eps(stop))
    code, accepted, s = SUCCESS, 0, zero(T)
    while s < last_
        accepted >= o.maxiters && (code = MAXITERS; break)
        next = s + 1 >= last_ ? stop : s + 1
        integ.t, integ.dt = s, next - s
        DiffEqGPU.step!(integ, nothing, nothing)
        finite(integ.u) || (code = UNSTABLE; break)
        accepted += 1
        s = integ.t = next
        total, k = give_reached(sink, total, k, integ, span, times, rate, s == stop)
        next == stop && break
    end
    reached = code == SUCCESS ? t1 : t0 + rate * s
    return total, k - 1, code, accepted, accepted, reached
end
