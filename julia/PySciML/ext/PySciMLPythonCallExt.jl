"""
Compiles what Python calls, with PythonCall loaded: see `workload_solves`.
"""
module PySciMLPythonCallExt

using PrecompileTools: @compile_workload
using PySciML: forget_workload, workload_ensembles, workload_kinds, workload_solves
using PythonCall: PythonCall

@compile_workload begin
    workload_solves()
    workload_kinds()
    workload_ensembles()
    # the parser of kernels' sources, which loading PythonCall makes invalid too
    Meta.parse(
        "function (ws, out, in_u, in_p, in_t, in_c)\n    w = ws.f\n    @inbounds begin\n" *
            "        for i1 = 0:1\n            @simd ivdep for i2 = 0:3\n" *
            "                w[1 + 4 * i1 + i2] = -in_u[1 + i1] * 2.5e-3\n            end\n" *
            "        end\n        out[1] = w[1]^2 / (w[2] + sqrt_(w[3]))\n    end\n" *
            "    return nothing\nend\n"
    )
    forget_workload()
end

end
