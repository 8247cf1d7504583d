"""How a gradient is computed: SciML's sensitivity algorithms, by name, as data.

An adjoint has two parts: the cotangent of the state, an equation solved backwards, and the
parameters' gradient, an integral along it. That integral feeds back into nothing, so its own error
need not shorten the steps of a solve (Kidger, Chen, Lyons, "Hey, that's not an ODE: faster ODE
adjoints via seminorms", ICML 2021). Only the cotangent is under the error control of the steps with
``GaussAdjoint``, ``CollocationAdjoint`` and ``QuadratureAdjoint``: these are the paper's seminorm,
and what a backward pass costs in steps does not depend on the parameters. ``InterpolatingAdjoint``
and ``BacksolveAdjoint`` step the integral beside the cotangent and control the error of both.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "BacksolveAdjoint",
    "CollocationAdjoint",
    "DiscreteAdjoint",
    "ForwardDiffSensitivity",
    "ForwardSensitivity",
    "GaussAdjoint",
    "InterpolatingAdjoint",
    "QuadratureAdjoint",
    "SensitivityAlgorithm",
]


@dataclass(frozen=True)
class SensitivityAlgorithm:
    """Base of all of them.

    abstol, reltol
        Tolerances of the adjoint (or sensitivity) solve; the forward solve's where None.
    """

    abstol: float | None = None
    reltol: float | None = None

    @property
    def name(self) -> str:
        return type(self).__name__


@dataclass(frozen=True)
class GaussAdjoint(SensitivityAlgorithm):
    """Continuous adjoint with the parameter gradient by Gauss quadrature. The default.

    The gradient takes no part in the error control of the steps.

    On the ``julia`` engine this is SciMLSensitivity's method of the same name. On the
    ``sundials`` engine the adjoint equation is collocated (Hairer and Wanner, "Solving Ordinary
    Differential Equations II", sections IV.5 and IV.8): by ten Gauss-Legendre nodes on intervals of
    many steps after Adams' method, else by 3-stage Radau IIA on the forward solution's own mesh.

    checkpointing
        Keep the outputs of ``saveat`` only, and solve forward again from each to the next on the
        way back (julia engine): memory for one such stretch, and the time of one more solve. Where
        every step is kept anyway (no saveat, events, a mass matrix) it changes nothing.
    """

    checkpointing: bool = False


@dataclass(frozen=True)
class InterpolatingAdjoint(SensitivityAlgorithm):
    """Continuous adjoint stepped backwards, the forward state from its interpolant.

    The parameter gradient is stepped with it, under the same error control.

    checkpointing
        As of :class:`GaussAdjoint`.
    """

    checkpointing: bool = False


@dataclass(frozen=True)
class QuadratureAdjoint(SensitivityAlgorithm):
    """Continuous adjoint stepped backwards, then the parameter gradient by adaptive quadrature.

    The gradient takes no part in the error control of the steps; its quadrature has its own.
    """


@dataclass(frozen=True)
class BacksolveAdjoint(SensitivityAlgorithm):
    """Continuous adjoint with the state solved backwards beside it.

    The parameter gradient is stepped with both, under the same error control. Needs no memory, and
    is unstable wherever the forward equation contracts: the state that it reconstructs drifts away
    from the one that was solved, and so do the gradients. Never a default; compare it with
    GaussAdjoint before trusting it.
    """

    checkpointing: bool = True


@dataclass(frozen=True)
class CollocationAdjoint(SensitivityAlgorithm):
    """Continuous adjoint, collocated on the forward solution's own mesh.

    The 3-stage Radau IIA rule on the solver's steps and the output times (Hairer and Wanner,
    "Solving Ordinary Differential Equations II", section IV.5), and the parameter gradient by the
    same rule. Stiffness is harmless, nothing restarts at an output, and mass matrices of any rank
    and residuals of index 1 are taken. It forms dense Jacobians: for up to a few dozen states.
    ``abstol`` does not count; intervals are cut where ``reltol`` needs it. On ``sundials`` this is
    what ``GaussAdjoint`` does; the default for small systems and DAEs on ``julia``.
    """


@dataclass(frozen=True)
class DiscreteAdjoint(SensitivityAlgorithm):
    """The derivative of the numbers that the solver computed, its steps taken as given.

    Each Runge-Kutta step is run backwards through its stages (Sanz-Serna, SIAM Review 58, 2016),
    the outputs between steps through the interpolant. Nothing is solved again, so no tolerance
    counts but for two cases: a step that is too long for a mode that only the cotangent excites,
    or for a parameter that leaves no trace in the solution (a fast control that is zero so far),
    is gone through by the continuous adjoint in parts, as ``reltol`` needs. Else the gradient is
    exact for the discrete solution, and as good as that is. The julia engine's default after
    ``Tsit5``, the only algorithm that it takes.
    """


@dataclass(frozen=True)
class ForwardSensitivity(SensitivityAlgorithm):
    """The sensitivity equations beside the state: the cost grows with the number of parameters.

    On the ``sundials`` engine they are collocated on the forward solution's own mesh, which is cut
    where ``reltol`` needs it; ODEs and DAEs, through events. ``abstol`` does not count there.
    On the ``julia`` engine they are solved by the algorithm of the solve at ``abstol`` and
    ``reltol``; ODEs without a mass matrix, through events.
    """


@dataclass(frozen=True)
class ForwardDiffSensitivity(SensitivityAlgorithm):
    """Dual numbers through the solver (julia engine): exact derivative of the discrete solution.

    The solve is repeated with its own tolerances; ``abstol`` and ``reltol`` here do not count. It
    does not go through events.
    """
