"""The algorithms of torchsde by their own names, for SDEProblem on a machine without Julia.

They belong to the embedded engine, ``engine="sundials"``, and need the package torchsde:
``pip install 'pysciml[sde]'``. Steps are taken in torch, and gradients go back through them by
torch's autograd, or with ``sensealg=BacksolveAdjoint()`` by torchsde's adjoint (Li, Wong, Chen,
Duvenaud, "Scalable gradients for stochastic differential equations", AISTATS 2020; for
``reversible_heun`` Kidger, Foster, Li, Lyons, "Efficient and accurate gradients for neural SDEs",
NeurIPS 2021).

===================  =================================  ===========================  ==============
name                 equation                           noise                        strong order
===================  =================================  ===========================  ==============
``euler``            Ito                                any                          0.5; additive 1
``milstein``         ``interpretation="Ito"`` or        diagonal, scalar, additive   1
                     ``"Stratonovich"``
``srk``              Ito                                diagonal, scalar, additive   1.5
``midpoint``         Stratonovich                       any                          1; general 0.5
``heun``             Stratonovich                       any                          1; general 0.5
``euler_heun``       Stratonovich                       any                          1; general 0.5
``log_ode``          Stratonovich                       any                          1; general 0.5
``reversible_heun``  Stratonovich                      any                          0.5; additive 1
===================  =================================  ===========================  ==============

``euler`` and ``reversible_heun`` take steps of one size, ``dt``; the others choose theirs unless
``adaptive=False``. ``milstein(grad_free=True)`` uses a difference in place of the diffusion's
derivative. With diagonal noise, ``milstein`` and ``srk`` have their order where each entry of the
diffusion depends on its own entry of the state alone.
"""

from __future__ import annotations

from typing import Any

from pysciml.algorithms import Algorithm, AlgorithmName
from pysciml.errors import did_you_mean

__all__ = [
    "euler",
    "euler_heun",
    "heun",
    "log_ode",
    "midpoint",
    "milstein",
    "reversible_heun",
    "srk",
]

euler = AlgorithmName("euler", "torchsde")
milstein = AlgorithmName("milstein", "torchsde", ("interpretation", "grad_free"))
srk = AlgorithmName("srk", "torchsde")
midpoint = AlgorithmName("midpoint", "torchsde")
heun = AlgorithmName("heun", "torchsde")
euler_heun = AlgorithmName("euler_heun", "torchsde")
log_ode = AlgorithmName("log_ode", "torchsde")
reversible_heun = AlgorithmName("reversible_heun", "torchsde")

#: Fixed steps only.
FIXED_STEP = frozenset({"euler", "reversible_heun"})

#: Not for general noise, unless it is additive.
COMMUTATIVE = frozenset({"milstein", "srk"})

#: What of the noise between steps an algorithm reads, beside its increments.
LEVY_AREA = {"srk": "space-time", "log_ode": "foster"}


def interpretation(alg: Algorithm) -> str:
    """``"ito"`` or ``"stratonovich"``: which equation an algorithm solves."""
    if alg.name == "milstein":
        return str(alg.options.get("interpretation", "Ito")).lower()
    return "ito" if alg.name in ("euler", "srk") else "stratonovich"


def __getattr__(name: str) -> Any:
    hint = "" if name.startswith("__") else did_you_mean(name, __all__)
    raise AttributeError(f"module 'pysciml.torchsde' has no attribute {name!r}.{hint}")
