"""
Compiles boundary value problems as Python asks for them, with PythonCall and
BoundaryValueDiffEqMIRK loaded.
"""
module PySciMLBoundariesExt

using BoundaryValueDiffEqMIRK: MIRK4
using PrecompileTools: @compile_workload
using PySciML: forget_workload, workload_boundary
using PythonCall: PythonCall

@compile_workload begin
    workload_boundary(MIRK4())
    forget_workload()
end

end
