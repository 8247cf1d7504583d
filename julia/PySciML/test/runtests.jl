using Test

@testset "PySciML" begin
    include("fastmath.jl")
    include("products.jl")
    include("kernels.jl")
    include("adjoints.jl")
    include("quality.jl")
end
