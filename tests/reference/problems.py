"""Problems with published solutions, from the Test Set for IVP Solvers but for one.

Equations, constants and reference values are those of F. Mazzia and C. Magherini, *Test Set for
Initial Value Problem Solvers*, release 2.4, Department of Mathematics, University of Bari (2008).
Each was checked against its own reference with an independent solver (SciPy's Radau or, for the
differential-algebraic ones, SUNDIALS' IDA) before it was trusted; see ``test_reference.py`` for
the check that the suite keeps.

A right-hand side is ``f(u, p, t)``, as :class:`pysciml.ODEProblem` takes it. The constants are
plain numbers in the functions, so ``p`` is None but for what changes on the way (MEDAKZO's feed).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import atanh, pi

import torch
from torch import Tensor

from reference.values import BEAM, E5, MEDAKZO, PLEIADES, POLLU, RINGMOD

__all__ = ["DAES", "ODES", "Problem", "by_name", "mescd"]

Parameters = Tensor | None
Function = Callable[[Tensor, Parameters, Tensor], Tensor]


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@dataclass(frozen=True, eq=False)
class Problem:
    """An initial value problem and what is known of its solution at the end.

    Attributes
    ----------
    f : function (u, p, t) to du, or to M du where there is a mass matrix
    u0 : float64 tensor (n,)
    tspan : (t0, t1)
    reference : float64 tensor
        The published solution at ``t1``, of the components in ``components``.
    components : list of indices, or None for all
    abstol : float
        The absolute tolerance that goes with a relative one of ``reltol``; what is "small" in
        the problem decides it.
    reltol : float
        A tolerance at which the suite solves it.
    mass_matrix : float64 tensor (n, n), or None for an explicit problem
    legs : list of (end, p)
        ``f`` is smooth up to each end, with that p; by default one leg, with None.
    slack : digits lost between a local tolerance and the error at ``t1``
    """

    name: str
    f: Function
    u0: Tensor
    tspan: tuple[float, float]
    reference: Tensor
    abstol: float = 1e-10
    reltol: float = 1e-8
    components: list[int] | None = None
    mass_matrix: Tensor | None = None
    differential_vars: list[bool] | None = None
    legs: list[tuple[float, Parameters]] = field(default_factory=list)
    slack: float = 2.0

    def __post_init__(self) -> None:
        if not self.legs:
            self.legs.append((self.tspan[1], None))

    def __repr__(self) -> str:
        return self.name


def mescd(problem: Problem, u: Tensor, abstol: float, reltol: float) -> float:
    """The test set's measure of correct digits.

    That is ``min_i -log10(|error_i| / (abstol / reltol + |reference_i|))``.
    """
    if problem.components is not None:
        u = u[problem.components]
    scale = abstol / reltol + problem.reference.abs()
    worst = ((u - problem.reference).abs() / scale).max()
    return float(-torch.log10(worst.clamp_min(1e-17)))


def hires(u: Tensor, p: Parameters, t: Tensor) -> Tensor:
    """High irradiance responses of photomorphogenesis (Schäfer 1975): 8 reactants."""
    y1, y2, y3, y4, y5, y6, y7, y8 = u.unbind()
    bound = 280 * y6 * y8
    return torch.stack(
        [
            -1.71 * y1 + 0.43 * y2 + 8.32 * y3 + 0.0007,
            1.71 * y1 - 8.75 * y2,
            -10.03 * y3 + 0.43 * y4 + 0.035 * y5,
            8.32 * y2 + 1.71 * y3 - 1.12 * y4,
            -1.745 * y5 + 0.43 * (y6 + y7),
            -bound + 0.69 * y4 + 1.71 * y5 - 0.43 * y6 + 0.69 * y7,
            bound - 1.81 * y7,
            -bound + 1.81 * y7,
        ]
    )


def pollu(u: Tensor, p: Parameters, t: Tensor) -> Tensor:
    """Air pollution chemistry of the Dutch institute RIVM (Verwer 1994): 25 reactions of 20."""
    (y1, y2, y3, y4, y5, y6, y7, _, y9, y10, y11, _, y13, y14, _, y16, y17, _, y19, y20) = (
        u.unbind()
    )
    r1, r2, r3 = 0.35 * y1, 26.6 * y2 * y4, 1.23e4 * y5 * y2
    r4, r5, r6 = 8.6e-4 * y7, 8.2e-4 * y7, 1.5e4 * y7 * y6
    r7, r8, r9 = 1.3e-4 * y9, 2.4e4 * y9 * y6, 1.65e4 * y11 * y2
    r10, r11, r12 = 9e3 * y11 * y1, 0.022 * y13, 1.2e4 * y10 * y2
    r13, r14, r15 = 1.88 * y14, 1.63e4 * y1 * y6, 4.8e6 * y3
    r16, r17, r18 = 3.5e-4 * y4, 0.0175 * y4, 1e8 * y16
    r19, r20, r21 = 4.44e11 * y16, 1.24e3 * y17 * y6, 2.1 * y19
    r22, r23, r24, r25 = 5.78 * y19, 0.0474 * y1 * y4, 1.78e3 * y19 * y1, 3.12 * y20
    return torch.stack(
        [
            r2 + r3 + r9 + r11 + r12 + r22 + r25 - r1 - r10 - r14 - r23 - r24,
            r1 + r21 - r2 - r3 - r9 - r12,
            r1 + r17 + r19 + r22 - r15,
            r15 - r2 - r16 - r17 - r23,
            2 * r4 + r6 + r7 + r13 + r20 - r3,
            r3 + 2 * r18 - r6 - r8 - r14 - r20,
            r13 - r4 - r5 - r6,
            r4 + r5 + r6 + r7,
            -r7 - r8,
            r7 + r9 - r12,
            r8 + r11 - r9 - r10,
            r9,
            r10 - r11,
            r12 - r13,
            r14,
            r16 - r18 - r19,
            -r20,
            r20,
            r23 + r25 - r21 - r22 - r24,
            r24 - r25,
        ]
    )


def orego(u: Tensor, p: Parameters, t: Tensor) -> Tensor:
    """Oregonator: the Belousov-Zhabotinskii reaction (Field and Noyes 1974)."""
    y1, y2, y3 = u.unbind()
    return torch.stack(
        [
            77.27 * (y2 + y1 * (1 - 8.375e-6 * y1 - y2)),
            (y3 - (1 + y1) * y2) / 77.27,
            0.161 * (y1 - y3),
        ]
    )


def rober(u: Tensor, p: Parameters, t: Tensor) -> Tensor:
    """Robertson's autocatalytic reaction (1966), over eleven decades of time."""
    y1, y2, y3 = u.unbind()
    slow, fast, fastest = 0.04 * y1, 1e4 * y2 * y3, 3e7 * y2 * y2
    return torch.stack([fast - slow, slow - fast - fastest, fastest])


def vdpol(u: Tensor, p: Parameters, t: Tensor) -> Tensor:
    """Van der Pol's oscillator, scaled, with epsilon = 1e-6."""
    y1, y2 = u.unbind()
    return torch.stack([y2, ((1 - y1 * y1) * y2 - y1) / 1e-6])


def bruss(u: Tensor, p: Parameters, t: Tensor) -> Tensor:
    """The Brusselator on its limit cycle: E. Hairer, S. P. Norsett, G. Wanner, *Solving Ordinary
    Differential Equations I*, section II.4. Its reference is that of Mathematica's NDSolve with 32
    digits, as the documentation of the library russell_ode gives it; DOP853 at 1e-14 agrees."""
    feed, pull = 1.0, u[0] ** 2 * u[1]
    return torch.stack([feed + pull - 4 * u[0], 3 * u[0] - pull])


def e5(u: Tensor, p: Parameters, t: Tensor) -> Tensor:
    """Chemical pyrolysis E5 (Enright, Hull and Lindberg 1975): concentrations near 1e-22.

    The third concentration is eliminated by the invariant y2 = y3 + y4. In the four equations as
    published it is a difference of numbers 1e13 times its size: every solver that was tried in
    double precision gives noise for it at 1e13. See :func:`e5_reference`.
    """
    y1, y2, y4 = u.unbind()
    y3 = y2 - y4
    r1, r2, r3, r4 = 7.89e-10 * y1, 1.1e7 * y1 * y3, 1.13e9 * y2 * y3, 1.13e3 * y4
    return torch.stack([-r1 - r2, r1 - r3, r2 - r4])


def e5_reference() -> Tensor:
    """y2 = y3 at t = 1e13, from the published values of both.

    y4 is zero there, so the invariant makes y2 and y3 equal, but the published ones differ by
    0.15 %: rounding moved the solution they were computed by to y2 - y3 = d early on. On it the
    mean m falls as ``m' = -k (m^2 - d^2 / 4)``, so ``m = (d / 2) coth(k t d / 2)``, where the
    solution asked for is ``1 / (k t)``: both follow from the published pair.
    """
    half, mean = (E5[0] - E5[1]) / 2, (E5[0] + E5[1]) / 2
    return tensor(half / atanh(half / mean))


def beam(u: Tensor, p: Parameters, t: Tensor) -> Tensor:
    """An elastic beam clamped at one end, 40 links; ``p`` is the size of the force at the other."""
    n = 40
    z, velocity = u.view(2, n).unbind()
    force = p * torch.sin(t) ** 2
    left, right = torch.cat([-z[:1], z[:-1]]), torch.cat([z[1:], z[-1:]])
    v = n**4 * (left - 2 * z + right) + n**2 * force * (torch.cos(z) + torch.sin(z))
    between = z[:-1] - z[1:]
    ends = torch.cat([tensor(1), 2 * torch.ones(n - 2, dtype=u.dtype), tensor(3)])
    cosines = torch.diag(torch.cos(between), 1)
    c = torch.diag(ends) - cosines - cosines.T
    sines = torch.diag(torch.sin(between), 1)
    d = sines.T - sines
    return torch.cat([velocity, c @ v + d @ torch.linalg.solve(c, d @ v + velocity**2)])


def medakzo(u: Tensor, p: Parameters, t: Tensor) -> Tensor:
    """Antibodies diffusing into tumorous tissue (Akzo Nobel): two fields on 200 cells.

    ``u`` alternates the two fields; ``p`` is what feeds the diffusing one at the left.
    """
    cells = 200
    h = 1.0 / cells
    zeta = h * torch.arange(1, cells + 1, dtype=u.dtype)
    alpha = (zeta - 1) ** 3 / 8
    beta = (zeta - 1) ** 4 / 16
    v, w = u.view(cells, 2).unbind(1)
    left = torch.cat([p, v[:-1]])
    # at the last cell alpha and beta are zero: its right neighbour is never seen
    right = torch.cat([v[1:], v[-1:]])
    reaction = 100 * v * w
    dv = alpha * (right - left) / (2 * h) + beta * (left - 2 * v + right) / h**2 - reaction
    return torch.stack([dv, -reaction], 1).reshape(-1)


def ringmod(u: Tensor, p: Parameters, t: Tensor) -> Tensor:
    """Ring modulator (Horneber 1976): 15 voltages and currents, with Cs = 2e-12."""
    c, cs, cp, r, rp = 1.6e-8, 2e-12, 1e-8, 25e3, 50.0
    lh, ls1, ls2, ls3 = 4.45, 2e-3, 5e-4, 5e-4
    rg1, rg2, rg3, ri, rc = 36.3, 17.3, 17.3, 50.0, 600.0
    y1, y2, y3, y4, y5, y6, y7, y8, y9, y10, y11, y12, y13, y14, y15 = u.unbind()
    signal = 0.5 * torch.sin(2000 * pi * t)
    carrier = 2.0 * torch.sin(20000 * pi * t)

    def diode(voltage: Tensor) -> Tensor:
        return 40.67286402e-9 * (torch.exp(17.7493332 * voltage) - 1)

    q1 = diode(y3 - y5 - y7 - carrier)
    q2 = diode(-y4 + y6 - y7 - carrier)
    q3 = diode(y4 + y5 + y7 + carrier)
    q4 = diode(-y3 - y6 + y7 + carrier)
    return torch.stack(
        [
            (y8 - 0.5 * y10 + 0.5 * y11 + y14 - y1 / r) / c,
            (y9 - 0.5 * y12 + 0.5 * y13 + y15 - y2 / r) / c,
            (y10 - q1 + q4) / cs,
            (-y11 + q2 - q3) / cs,
            (y12 + q1 - q3) / cs,
            (-y13 - q2 + q4) / cs,
            (-y7 / rp + q1 + q2 - q3 - q4) / cp,
            -y1 / lh,
            -y2 / lh,
            (0.5 * y1 - y3 - rg2 * y10) / ls2,
            (-0.5 * y1 + y4 - rg3 * y11) / ls3,
            (0.5 * y2 - y5 - rg2 * y12) / ls2,
            (-0.5 * y2 + y6 - rg3 * y13) / ls3,
            (-y1 + signal - (ri + rg1) * y14) / ls1,
            (-y2 - (rc + rg1) * y15) / ls1,
        ]
    )


def pleiades(u: Tensor, p: Parameters, t: Tensor) -> Tensor:
    """Seven stars in a plane, of masses 1 to 7 (Hairer, Nørsett and Wanner 1987). Not stiff."""
    x, y, vx, vy = u.view(4, 7).unbind()
    mass = torch.arange(1, 8, dtype=u.dtype)
    dx = x[None, :] - x[:, None]
    dy = y[None, :] - y[:, None]
    # a star does not pull itself: dx = dy = 0 there, whatever is added to the distance
    distance = dx**2 + dy**2 + torch.eye(7, dtype=u.dtype)
    pull = mass / (distance * distance.sqrt())
    return torch.cat([vx, vy, (pull * dx).sum(1), (pull * dy).sum(1)])


def chemakzo(u: Tensor, p: Parameters, t: Tensor) -> Tensor:
    """Chemical Akzo Nobel process: 5 concentrations and one equilibrium (index 1)."""
    y1, y2, y3, y4, y5, y6 = u.unbind()
    root = y2.sqrt()
    r1 = 18.7 * y1**4 * root
    r2 = 0.58 * y3 * y4
    r3 = 0.58 / 34.4 * y1 * y5
    r4 = 0.09 * y1 * y4**2
    r5 = 0.42 * y6**2 * root
    inflow = 3.3 * (0.9 / 737 - y2)
    return torch.stack(
        [
            -2 * r1 + r2 - r3 - r4,
            -0.5 * r1 - r4 - 0.5 * r5 + inflow,
            r1 - r2 + r3,
            -r2 + r3 - 2 * r4,
            r2 - r3 + r5,
            115.83 * y1 * y4 - y6,
        ]
    )


def transamp(u: Tensor, p: Parameters, t: Tensor) -> Tensor:
    """Transistor amplifier (Rentrop): 8 node voltages, capacitances as a singular mass matrix."""
    y1, y2, y3, y4, y5, y6, y7, y8 = u.unbind()
    supply, alpha, r = 6.0, 0.99, 9000.0
    signal = 0.1 * torch.sin(200 * pi * t)

    def diode(voltage: Tensor) -> Tensor:
        return 1e-6 * (torch.exp(voltage / 0.026) - 1)

    g1, g2 = diode(y2 - y3), diode(y5 - y6)
    return torch.stack(
        [
            (y1 - signal) / 1000.0,
            -supply / r + 2 * y2 / r + (1 - alpha) * g1,
            y3 / r - g1,
            (y4 - supply) / r + alpha * g1,
            -supply / r + 2 * y5 / r + (1 - alpha) * g2,
            y6 / r - g2,
            (y7 - supply) / r + alpha * g2,
            y8 / r,
        ]
    )


def transamp_mass() -> Tensor:
    m = torch.zeros(8, 8, dtype=torch.float64)
    for c, i, j in ((1e-6, 0, 1), (3e-6, 3, 4), (5e-6, 6, 7)):
        m[i, i] = m[j, j] = -c
        m[i, j] = m[j, i] = c
    m[2, 2], m[5, 5] = -2e-6, -4e-6
    return m


ODES = [
    Problem(
        "HIRES",
        hires,
        tensor(1, 0, 0, 0, 0, 0, 0, 0.0057),
        (0.0, 321.8122),
        tensor(
            0.7371312573325668e-3,
            0.1442485726316185e-3,
            0.5888729740967575e-4,
            0.1175651343283149e-2,
            0.2386356198831331e-2,
            0.6238968252742796e-2,
            0.2849998395185769e-2,
            0.2850001604814231e-2,
        ),
    ),
    Problem(
        "POLLU",
        pollu,
        tensor(0, 0.2, 0, 0.04, 0, 0, 0.1, 0.3, 0.01, 0, 0, 0, 0, 0, 0, 0, 0.007, 0, 0, 0),
        (0.0, 60.0),
        tensor(*POLLU),
        abstol=1e-12,
    ),
    Problem(
        "OREGO",
        orego,
        tensor(1, 2, 3),
        (0.0, 360.0),
        tensor(0.1000814870318523e1, 0.1228178521549917e4, 0.1320554942846706e3),
        abstol=1e-8,
    ),
    Problem(
        "ROBER",
        rober,
        tensor(1, 0, 0),
        (0.0, 1e11),
        tensor(0.2083340149701255e-7, 0.8333360770334713e-13, 0.9999999791665050),
        abstol=1e-16,
    ),
    Problem(
        "VDPOL",
        vdpol,
        tensor(2, 0),
        (0.0, 2.0),
        tensor(0.1706167732170483e1, -0.8928097010247975),
        abstol=1e-8,
    ),
    Problem(
        "BRUSS",
        bruss,
        tensor(1.5, 3),
        (0.0, 20.0),
        tensor(0.4986370712683478291402659846476, 4.596780349452011024598321237263),
    ),
    Problem(
        "E5",
        e5,
        tensor(1.76e-3, 0, 0),
        (0.0, 1e13),
        e5_reference(),
        components=[1],
        abstol=1e-32,
    ),
    Problem(
        "BEAM",
        beam,
        torch.zeros(80, dtype=torch.float64),
        (0.0, 5.0),
        tensor(*BEAM),
        # its vibrations, up to a frequency of 6400, are on the edge of what BDF methods damp
        abstol=1e-8,
        # nothing acts on the beam after half a period of the force
        legs=[(pi, tensor(1.5)), (5.0, tensor(0.0))],
        slack=3.0,
    ),
    Problem(
        "MEDAKZO",
        medakzo,
        tensor(0, 1).repeat(200),
        (0.0, 20.0),
        tensor(*MEDAKZO.values()),
        components=list(MEDAKZO),
        legs=[(5.0, tensor(2.0)), (20.0, tensor(0.0))],
    ),
    Problem(
        "RINGMOD",
        ringmod,
        torch.zeros(15, dtype=torch.float64),
        (0.0, 1e-3),
        tensor(*RINGMOD),
        # Its fast oscillation costs steps (200,000 here, 600,000 with Radau at 1e-8) and digits.
        abstol=1e-8,
        reltol=1e-6,
        slack=4.0,
    ),
    Problem(
        "PLEIADES",
        pleiades,
        tensor(
            *(3, 3, -1, -3, 2, -2, 2),
            *(3, -3, 2, 0, 0, -4, 4),
            *(0, 0, 0, 0, 0, 1.75, -1.5),
            *(0, 0, 0, -1.25, 1, 0, 0),
        ),
        (0.0, 3.0),
        tensor(*PLEIADES),
        # close encounters multiply an error by some ten thousand
        slack=5.0,
    ),
]

DAES = [
    Problem(
        "CHEMAKZO",
        chemakzo,
        tensor(0.444, 0.00123, 0, 0.007, 0, 115.83 * 0.444 * 0.007),
        (0.0, 180.0),
        tensor(
            0.1150794920661702,
            0.1203831471567715e-2,
            0.1611562887407974,
            0.3656156421249283e-3,
            0.1708010885264404e-1,
            0.4873531310307455e-2,
        ),
        mass_matrix=torch.diag(tensor(1, 1, 1, 1, 1, 0)),
        differential_vars=[True] * 5 + [False],
    ),
    Problem(
        "TRANSAMP",
        transamp,
        tensor(0, 3, 3, 6, 3, 3, 6, 0),
        (0.0, 0.2),
        tensor(
            -0.5562145012262709e-2,
            0.3006522471903042e1,
            0.2849958788608128e1,
            0.2926422536206241e1,
            0.2704617865010554e1,
            0.2761837778393145e1,
            0.4770927631616772e1,
            0.1236995868091548e1,
        ),
        mass_matrix=transamp_mass(),
        abstol=1e-8,
        reltol=1e-6,
        slack=3.0,
    ),
]


def by_name(name: str) -> Problem:
    """The problem of that name, differential or differential-algebraic."""
    return next(problem for problem in [*ODES, *DAES] if problem.name == name)
