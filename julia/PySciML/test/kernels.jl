# Kernels: compiled on first need, one type for all, no memory a call, any vector and number type.

using ForwardDiff
using PySciML
using Test

const SQUARES = """
function (ws, out, in_u, in_p, in_t, in_c)
    w = ws.f
    @inbounds begin
        for i = 0:1
            w[1 + i] = in_u[1 + i] * in_u[1 + i]
        end
        out[1] = in_p[1] * w[2] + in_t
        out[2] = w[1] - in_c[1]
    end
    return nothing
end
"""

@testset "kernels" begin
    loads = Symbol[]
    function load(role)
        push!(loads, role)
        return PySciML.compile(SQUARES, (2, 0, 0), (Float64[], Int[], Bool[]), Float64)
    end
    f = PySciML.Functions{Float64}(load, 1)
    PySciML.data(f) .= 3.0
    out, u, p = zeros(2), [2.0, 5.0], [10.0]
    @test isempty(loads)
    f.value(out, u, p, 1.0)
    @test out == [251.0, 1.0] && loads == [:value]
    @test (@inferred f.value(out, u, p, 1.0)) === nothing
    again(f, out, u, p) = @allocated f(out, u, p, 1.0)
    again(f.value, out, u, p)
    @test again(f.value, out, u, p) == 0
    @test loads == [:value]
    # views, and dual numbers
    wide = zeros(4)
    f.value(view(wide, 2:3), view([0.0, 2.0, 5.0], 2:3), p, 1.0)
    @test wide == [0.0, 251.0, 1.0, 0.0]
    jacobian = ForwardDiff.jacobian(u) do v
        y = similar(v)
        f.value(y, v, p, 1.0)
        return y
    end
    @test jacobian == [0.0 100.0; 4.0 0.0]
    # a clone computes by itself
    g = PySciML.clone(f)
    PySciML.data(g) .= 0.0
    g.value(out, u, p, 1.0)
    @test out == [251.0, 4.0]
    f.value(out, u, p, 1.0)
    @test out == [251.0, 1.0]
    @test typeof(f.value) === typeof(g.tgrad)
end
