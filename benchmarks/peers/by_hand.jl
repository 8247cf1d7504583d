# The problems of the table as a Julia user writes them: in place, with buffers, and solved by
# DifferentialEquations.jl with nothing of pysciml in between.
module ByHand

using LinearAlgebra: mul!
using OrdinaryDiffEqBDF: FBDF
using OrdinaryDiffEqRosenbrock: Rodas5P
using OrdinaryDiffEqTsit5: Tsit5
using OrdinaryDiffEqVerner: Vern7
using SciMLBase: ODEProblem, FullSpecialize, solve

const ALGORITHMS = Dict("Tsit5" => Tsit5, "Vern7" => Vern7, "Rodas5P" => Rodas5P, "FBDF" => FBDF)

# dense layers with tanh between them, on the columns of x
struct Network{A}
    weights::Vector{Matrix{Float64}}
    biases::Vector{Vector{Float64}}
    hidden::Vector{A}
end
function Network(p, x)
    n = count(startswith("w"), keys(p))
    weights, biases = [p["w$i"] for i in 0:(n - 1)], [vec(p["b$i"]) for i in 0:(n - 1)]
    hidden = [similar(x, size(w, 1), size(x)[2:end]...) for w in weights[1:(end - 1)]]
    return Network(weights, biases, hidden)
end
function (net::Network)(out, x)
    for (i, h) in enumerate(net.hidden)
        mul!(h, net.weights[i], x)
        h .= tanh.(h .+ net.biases[i])
        x = h
    end
    mul!(out, net.weights[end], x)
    out .+= net.biases[end]
    return out
end

function lotka_volterra_ude(p, u0)
    net, rates = Network(p, u0), vec(p["rates"])
    return (du, u, _, t) -> (net(du, u); du .+= rates .* u; nothing)
end

function spiral_node(p, u0)
    net, cubes = Network(p, u0), similar(u0)
    return (du, u, _, t) -> (cubes .= u .^ 3 ./ 4; net(du, cubes); nothing)
end

large_node(p, u0) = (net = Network(p, u0); (du, u, _, t) -> (net(du, u); nothing))

function rober(p, u0)
    k = [0.04, 1.0e4, 3.0e7] .* exp.(vec(p["log_k"]))
    return function (du, u, _, t)
        slow, fast, fastest = k[1] * u[1], k[2] * u[2] * u[3], k[3] * u[2]^2
        du[1], du[2], du[3] = fast - slow, slow - fast - fastest, fastest
        return nothing
    end
end

function pollu(p, u0, rates, first, second, balance)
    k = rates .* exp.(vec(p["log_k"]))
    made = [[i for i in row if i > 0] for row in balance]
    taken = [[-i for i in row if i < 0] for row in balance]
    return function (du, u, _, t)
        r = ntuple(i -> k[i] * u[first[i]] * (second[i] == 0 ? one(u[1]) : u[second[i]]), 25)
        for j in eachindex(du)
            total = zero(u[1])
            for i in made[j]
                total += r[i]
            end
            for i in taken[j]
                total -= r[i]
            end
            du[j] = total
        end
        return nothing
    end
end

function reaction_diffusion_ude(p, u0)
    n, diffusion = length(u0), p["diffusion"][1] * length(u0)^2
    w0, b0, w1, b1 = vec(p["w0"]), vec(p["b0"]), vec(p["w1"]), p["b1"][1]
    return function (du, u, _, t)
        @inbounds for i in 1:n
            left, right = u[i == 1 ? n : i - 1], u[i == n ? 1 : i + 1]
            reaction = b1
            for j in eachindex(w0)
                reaction += w1[j] * tanh(w0[j] * u[i] + b0[j])
            end
            du[i] = diffusion * (left - 2 * u[i] + right) + reaction
        end
        return nothing
    end
end

"""
    solver(f, alg, u0, tspan, saveat, abstol, reltol, out) -> function

A function of no arguments that solves and writes the states at `saveat` to `out`.
"""
function solver(f, alg, u0, tspan, saveat, abstol, reltol, out)
    prob = ODEProblem{true, FullSpecialize}(f, u0, tspan)
    a = ALGORITHMS[alg]()
    return function ()
        sol = solve(prob, a; abstol, reltol, saveat, save_everystep = false)
        for (j, u) in enumerate(sol.u)
            copyto!(out, 1 + (j - 1) * length(u), u, 1, length(u))
        end
        return nothing
    end
end

end
