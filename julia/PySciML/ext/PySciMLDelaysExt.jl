"""
Compiles delay equations as Python asks for them, with PythonCall and DelayDiffEq loaded.
"""
module PySciMLDelaysExt

using ADTypes: AutoFiniteDiff
using DelayDiffEq: MethodOfSteps
using OrdinaryDiffEqRosenbrock: Rodas5P
using OrdinaryDiffEqTsit5: AutoTsit5, Tsit5
using PrecompileTools: @compile_workload
using PySciML: forget_workload, workload_delays
using PythonCall: PythonCall

@compile_workload begin
    default = AutoTsit5(Rodas5P(; autodiff = AutoFiniteDiff()))
    workload_delays((MethodOfSteps(Tsit5()), MethodOfSteps(default)))
    forget_workload()
end

end
