"""
Compiles what Python calls, with PythonCall loaded: see `workload_solves`.
"""
module PySciMLPythonCallExt

using PrecompileTools: @compile_workload
using PySciML: forget_workload, workload_solves
using PythonCall: PythonCall

@compile_workload begin
    workload_solves()
    forget_workload()
end

end
