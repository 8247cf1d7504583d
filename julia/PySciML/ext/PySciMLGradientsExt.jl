"""
Compiles the gradients that Python asks for, with PythonCall and SciMLSensitivity loaded.
"""
module PySciMLGradientsExt

using PrecompileTools: @compile_workload
using PySciML: forget_workload, workload_gradients
using PythonCall: PythonCall
using SciMLSensitivity: GaussAdjoint, ZygoteVJP

@compile_workload begin
    workload_gradients(GaussAdjoint(autojacvec = ZygoteVJP(), checkpointing = false))
    forget_workload()
end

end
