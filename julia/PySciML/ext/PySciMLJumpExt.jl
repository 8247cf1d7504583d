"""
Jump processes by JumpProcesses.
"""
module PySciMLJumpExt

using JumpProcesses: JumpProcesses, ConstantRateJump, JumpProblem, JumpSet, MassActionJump,
    SSAStepper, VariableRateJump, reset_aggregated_jumps!
using PySciML: Affect, AtMost, BelowBound, Cut, Event, EventRecord, Fire, Jumps, Options, PySciML,
    Rate, all_stops, callback, note!
using Random: Xoshiro, randexp
using SciMLBase: CallbackSet, ContinuousCallback, DiscreteCallback, ReturnCode, SciMLBase, terminate!

include("jumps/hazard.jl")

# The numbers of the events of one kind.
numbered(kind, j::Jumps, events) = [i for i in j.first:length(events) if events[i].kind === kind]

has_bounds(events, i) = i < length(events) && events[i + 1].kind === :bound

# A reaction's numbers: its rate constant (as it is multiplied), how many reactants it has, these as
# pairs (entry of the state, how many), and the same for what it changes.
function reaction(e::Event{T}) where {T}
    k = Int(e.times[2])
    pairs(numbers) = [Int(numbers[i]) => Int(numbers[i + 1]) for i in 1:2:(length(numbers) - 1)]
    return e.times[1], pairs(e.times[3:(2 + 2k)]), pairs(e.times[(4 + 2k):end])
end

function mass_action(events, numbers)
    isempty(numbers) && return nothing
    parts = [reaction(events[i]) for i in numbers]
    return MassActionJump(
        first.(parts), getindex.(parts, 2), getindex.(parts, 3); scale_rates = false
    )
end

function bounded(events::Vector{Event{T}}, i, fire) where {T}
    found = Dict{Int, Rate{T}}()
    k = i + 1
    while k <= length(events) && events[k].kind === :bound
        # a bound's own messages name the jump
        found[events[k].direction] = Rate(events[k], zero(T), events[i].direction)
        k += 1
    end
    most = Ref(T(Inf))
    return VariableRateJump(
        BelowBound(Rate(events[i]), most), fire(i); urate = AtMost(found[0], most),
        rateinterval = found[1], lrate = get(found, 2, nothing)
    )
end

"""
    aggregated(prob, jumps, events, log) -> JumpProblem or nothing

The jumps that an aggregator draws: all but those whose rate goes along with the solution.
"""
function aggregated(prob, j::Jumps{T}, events, log) where {T}
    fire(i) = Fire{T}(i, events, log, j.keep, zeros(T, length(prob.u0)))
    reactions, constants = numbered(:reaction, j, events), numbered(:constant, j, events)
    variable = filter(i -> has_bounds(events, i), numbered(:variable, j, events))
    isempty(reactions) && isempty(constants) && isempty(variable) && return nothing
    jumps = JumpSet(
        Tuple(bounded(events, i, fire) for i in variable),
        Tuple(ConstantRateJump(Rate(events[i]), fire(i)) for i in constants),
        nothing, mass_action(events, reactions)
    )
    return JumpProblem(
        prob, j.aggregator, jumps; rng = Xoshiro(hash(j.seed)), save_positions = (true, true),
        dep_graph = given(j.dependent), vartojumps_map = given(j.by_variable),
        jumptovars_map = given(j.variables)
    )
end
given(graph) = isempty(graph) ? nothing : graph

# A jump that the aggregator has drawn, with a record of it. JumpProcesses carries out reactions by
# itself.
struct Logged{A, T} <: Function
    aggregation::A
    reactions::Vector{Int}
    log::Vector{EventRecord{T}}
    keep::Bool
    before::Vector{T}
    most::Int
end
function (l::Logged)(integrator)
    n = length(l.reactions)
    n > 0 && copyto!(l.before, integrator.u)
    l.aggregation.prev_jump = 0
    l.aggregation(integrator)
    k = l.aggregation.prev_jump
    1 <= k <= n && note!(l.log, integrator, l.reactions[k], l.before, l.keep)
    length(l.log) > l.most && terminate!(integrator, ReturnCode.MaxIters)
    return nothing
end

function logged(problem, j::Jumps{T}, events, log, save, most) where {T}
    aggregation = problem.discrete_jump_aggregation
    l = Logged(
        aggregation, numbered(:reaction, j, events), log, j.keep, zeros(T, length(problem.prob.u0)),
        most
    )
    return DiscreteCallback(aggregation, l; initialize = aggregation, save_positions = save)
end

# What else happens may change rates, which aggregators keep.
struct Resetting{A} <: Function
    affect::A
end
(r::Resetting)(integrator) = (r.affect(integrator); reset_aggregated_jumps!(integrator); nothing)
resetting(f) = f === nothing ? nothing : Resetting(f)
resetting(c::DiscreteCallback) = DiscreteCallback(
    c.condition, resetting(c.affect!); c.initialize, c.save_positions
)
resetting(c::ContinuousCallback) = ContinuousCallback(
    c.condition, resetting(c.affect!), resetting(c.affect_neg!); c.save_positions, c.abstol,
    c.repeat_nudge
)

function users(j::Jumps, events::Vector{Event{T}}, log) where {T}
    return ntuple(i -> resetting(callback(events[i], Affect{T}(i, events, log))), j.first - 1)
end

function PySciML.jump_callbacks(
        prob, j::Jumps{T}, events::Vector{Event{T}}, log, watch, cuts
    ) where {T}
    problem = aggregated(prob, j, events, log)
    drawn = problem === nothing ? () : (logged(problem, j, events, log, (true, true), typemax(Int)),)
    general = filter(i -> !has_bounds(events, i), numbered(:variable, j, events))
    hazard = isempty(general) ? () : (hazard_callback(prob, j, events, log, general, cuts),)
    return CallbackSet(drawn..., hazard..., users(j, events, log)..., watch)
end

function PySciML.integrate_counts(
        prob, j::Jumps{T}, events::Vector{Event{T}}, log, o::Options{T}, dense::Bool, watch
    ) where {T}
    t0, t1 = prob.tspan
    problem = aggregated(prob, j, events, log)
    drawn = logged(problem, j, events, log, (false, dense), o.maxiters)
    problem = JumpProblem(
        prob, problem.aggregator, problem.discrete_jump_aggregation, CallbackSet(drawn),
        problem.constant_jumps, problem.variable_jumps, problem.regular_jump,
        problem.massaction_jump, problem.rng, problem.kwargs
    )
    # SSAStepper takes the last of these times for the end, and gives the state there
    saveat = dense || isempty(o.saveat) ? nothing :
        last(o.saveat) == t1 ? o.saveat : [o.saveat; t1]
    integrator = SciMLBase.__init(
        problem, SSAStepper(); saveat, callback = CallbackSet(users(j, events, log)..., watch),
        tstops = sort!(all_stops(o.tstops, events)), alias_jump = true
    )
    SciMLBase.solve!(integrator)
    # one that has met too many jumps is taken to the end all the same
    code = integrator.sol.retcode
    return integrator.sol, code == ReturnCode.MaxIters ? last(log).t :
        code == ReturnCode.Success ? t1 : integrator.t
end

end
