"""ForwardSensitivity of the embedded engine: the sensitivity equations beside the state.

``S' = J S + [0 | f_p]`` with ``S(t0) = [I | 0]``, columns for u0 and p (Dickinson and Gelinas,
"Sensitivity analysis of ordinary differential equation systems", 1976). Cost grows with the
number of parameters.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pysciml.engines.base import FlatProblem, SolveOptions
from pysciml.engines.sundials.integrate import integrate
from pysciml.engines.sundials.steppers import Counts, CvodeStepper, Linear, Tolerances
from pysciml.errors import EngineError

Array = npt.NDArray[np.float64]


def forward_sensitivities(problem: FlatProblem, options: SolveOptions, times: Array) -> Array:
    """du(times) / d(u0, p): array (m, n, n + n_p). ODEs without callbacks.

    Raises EngineError for a DAE, a mass matrix or callbacks.
    """
    if problem.kind == "dae" or problem.mass_matrix is not None or problem.callbacks:
        raise EngineError(
            "ForwardSensitivity on the sundials engine is for ODEs without mass matrix and "
            "callbacks; use GaussAdjoint()."
        )
    n, n_p = len(problem.u0), len(problem.p)
    columns = n + n_p
    functions, p, c = problem.functions, problem.p, problem.c
    value_f = functions.bind("value", p, c)
    jac_u = functions.bind("jac:u", p, c)
    jac_p = functions.bind("jac:p", p, c) if n_p else None
    matrix, by_p = np.empty((n, n)), np.empty((n, n_p))

    def value(y: Array, t: float, out: Array) -> None:
        u, s = y[:n], y[n:].reshape(n, columns)
        value_f(u, t, out[:n])
        jac_u(u, t, matrix)
        rate = out[n:].reshape(n, columns)
        np.matmul(matrix, s, out=rate)
        if jac_p is not None:
            jac_p(u, t, by_p)
            rate[:, n:] += by_p

    def jvp(v: Array, y: Array, t: float, out: Array) -> None:
        # The dependence of J on u is left out: Newton's method stays convergent without it.
        jac_u(y[:n], t, matrix)
        out[:n] = matrix @ v[:n]
        np.matmul(matrix, v[n:].reshape(n, columns), out=out[n:].reshape(n, columns))

    start = np.concatenate([np.eye(n), np.zeros((n, n_p))], axis=1)
    y = np.concatenate([problem.u0, start.reshape(-1)])
    sensealg = options.sensealg
    rtol = float((sensealg and sensealg.reltol) or options.reltol)
    atol = np.broadcast_to(np.asarray(options.abstol, dtype=float), (n,))
    scale = np.concatenate([np.ones(n), np.maximum(np.abs(p), 1e-3)])
    # A sensitivity has the state's units over the parameter's: so has its tolerance.
    tolerance = np.concatenate([atol, (atol[:, None] / scale[None, :]).reshape(-1)])
    linear = Linear("gmres", krylov_dim=min(len(y), 30))
    tol = Tolerances(rtol, tolerance, max_step=abs(options.dtmax or 0.0))
    out = integrate(
        lambda: CvodeStepper("BDF", value, None, jvp, linear, tol, None, Counts()),
        problem.t0, problem.t1, y, None, np.empty(0), None, options.maxiters, lambda: 6,
    )  # fmt: skip
    if out.retcode != "Success":
        raise EngineError(
            f"The sensitivity equations stopped at t = {out.segments[-1].t[-1]:g} with retcode "
            f"{out.retcode}; loosen the tolerances or use GaussAdjoint()."
        )
    return out.segments[-1].interpolant(times)[:, n:].reshape(len(times), n, columns)
