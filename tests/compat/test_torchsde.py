"""torchsde's interface: against torchsde itself on the same noise, and against closed forms."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
import torchsde as original
from torch import Tensor, nn

import pysciml as ps
import pysciml.compat.torchsde as torchsde
from pysciml.errors import EngineError, InputError
from support import F64, assert_close, counted_captures, f64


class Equation(nn.Module):
    """Drift, diffusion and a prior's drift for each kind of noise, in dimension 2."""

    def __init__(self, noise_type: str, sde_type: str = "ito", d: int = 2) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.noise_type, self.sde_type, self.d = noise_type, sde_type, d
        self.m = {"diagonal": d, "scalar": 1}.get(noise_type, 3)
        self.net = nn.Linear(d + 1, d).double()
        width = 1 if noise_type == "diagonal" else self.m
        self.spread = nn.Parameter(0.2 + torch.rand(d, width, dtype=F64))

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        return torch.tanh(self.net(torch.cat([y, t.expand(len(y), 1)], 1)))

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        size = 0.3 + 0.1 * torch.sin(t)
        if self.noise_type == "diagonal":
            return size * self.spread[:, 0] * torch.cos(y)
        if self.noise_type == "additive":
            return (size * self.spread).expand(len(y), -1, -1)
        return size * torch.cos(y)[:, :, None] * self.spread

    def h(self, t: Tensor, y: Tensor) -> Tensor:
        return -0.5 * y


#: Whose equation, method, noise: what both have.
CASES = [
    *(("ito", "euler", x) for x in ("diagonal", "scalar", "additive", "general")),
    *(("stratonovich", "heun", x) for x in ("diagonal", "scalar", "additive", "general")),
    *((kind, "milstein", x) for kind in ("ito", "stratonovich") for x in ("diagonal", "scalar")),
    ("ito", "milstein", "additive"),
    ("stratonovich", "milstein", "additive"),
]


def compared(
    engine: str, sde: Equation, method: str, y0: Tensor, whose: str = "torchsde", **options: Any
) -> tuple[Any, Any]:
    """pysciml's and torchsde's results on the same noise, ``whose`` Brownian motion it may be."""
    size = (len(y0), sde.m + ("logqp" in options and sde.noise_type == "diagonal"))
    kind = original.BrownianInterval if whose == "torchsde" else torchsde.BrownianInterval
    bm = kind(0.0, 1.0, size=size, dtype=F64, entropy=5)
    ts = torch.tensor([0.0, 0.3, 0.75, 1.0], dtype=F64)
    given = {"ts": ts, "method": method, "dt": 0.125, **options}
    # Julia's takes a difference in place of the diffusion's derivative
    grad_free = {"grad_free": True} if method == "milstein" and engine == "julia" else {}
    got = torchsde.sdeint(sde, y0, bm=bm, options={"engine": engine}, **given)
    theirs = bm if whose == "torchsde" else _Bare(bm)
    return got, original.sdeint(sde, y0, bm=theirs, options=grad_free, **given)


class _Bare:
    """Our Brownian motion as torchsde takes one."""

    def __init__(self, bm: Any) -> None:
        self.bm, self.shape, self.dtype, self.device = bm, bm.shape, bm.dtype, bm.device
        self.levy_area_approximation = "none"

    def __call__(self, ta: Any, tb: Any, return_U: bool = False, return_A: bool = False) -> Tensor:
        return self.bm(ta, tb)


@pytest.mark.parametrize("whose", ["torchsde", "pysciml"])
@pytest.mark.parametrize(("kind", "method", "noise"), CASES)
def test_against_torchsde_on_the_same_noise(
    engine: str, kind: str, method: str, noise: str, whose: str
) -> None:
    # in Julia Milstein's method takes scalar noise of one sample
    batch = 1 if method == "milstein" and noise == "scalar" else 4
    sde = Equation(noise, kind)
    y0 = torch.randn(batch, 2, dtype=F64, requires_grad=True)
    got, want = compared(engine, sde, method, y0, whose)
    assert got.shape == want.shape == (4, batch, 2)
    assert_close(got, want, 1e-9)
    inputs = [y0, *sde.parameters()]
    a = torch.autograd.grad(got.square().sum(), inputs)
    b = torch.autograd.grad(want.square().sum(), inputs)
    for g, h in zip(a, b, strict=True):
        assert_close(g, h, 1e-8)


@pytest.mark.parametrize("noise", ["diagonal", "general"])
@pytest.mark.parametrize("d", [1, 2, 4])
def test_the_log_ratio_against_torchsde(engine: str, noise: str, d: int) -> None:
    sde = Equation(noise, d=d)
    y0 = torch.randn(3, d, dtype=F64, requires_grad=True)
    got, want = compared(engine, sde, "euler", y0, logqp=True)
    assert got[1].shape == want[1].shape == (3, 3)
    for a, b in zip(got, want, strict=True):
        assert_close(a, b, 1e-8)
    inputs = [y0, *sde.parameters()]
    for a, b in zip(
        torch.autograd.grad(got[1].sum(), inputs), torch.autograd.grad(want[1].sum(), inputs),
        strict=True,
    ):  # fmt: skip
        assert_close(a, b, 1e-7)


class GBM(torchsde.SDEIto):
    def __init__(self, a: Any = 0.5, b: Any = 0.4) -> None:
        super().__init__("diagonal")
        self.a, self.b = nn.Parameter(f64(a)), nn.Parameter(f64(b))

    def drift(self, t: Tensor, y: Tensor) -> Tensor:
        return self.a * y

    def both(self, t: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return self.a * y, self.b * y

    f, f_and_g = drift, both


def strong_error(engine: str, method: str, dt: float) -> float:
    bm = original.BrownianInterval(0.0, 1.0, size=(200, 1), dtype=F64, entropy=2, halfway_tree=True,
                                   tol=1e-5)  # fmt: skip
    sde, y0 = GBM(), torch.ones(200, 1, dtype=F64)
    with torch.no_grad():
        y = torchsde.sdeint(
            sde, y0, [0.0, 1.0], bm, method, dt=dt, options={"engine": engine}
        )[-1]  # fmt: skip
    return float((y - torch.exp(0.5 - 0.08 + 0.4 * bm(0.0, 1.0))).abs().mean())


@pytest.mark.parametrize(("method", "order"), [("euler", 0.5), ("milstein", 1.0)])
def test_strong_order_on_torchsdes_own_noise(engine: str, method: str, order: float) -> None:
    coarse, fine = (strong_error(engine, method, dt) for dt in (2.0**-3, 2.0**-7))
    assert abs(math.log2(coarse / fine) / 4 - order) < 0.2


METHODS_OF_ALL = [
    (None, "ito"), ("euler", "ito"), ("milstein", "ito"), ("srk", "ito"), (None, "stratonovich"),
    ("midpoint", "stratonovich"), ("heun", "stratonovich"), ("euler_heun", "stratonovich"),
    ("reversible_heun", "stratonovich"), ("milstein", "stratonovich"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "kind"), METHODS_OF_ALL)
def test_moments_of_geometric_brownian_motion(engine: str, method: Any, kind: str) -> None:
    n, a, b = 4000, 0.5, 0.3
    sde, y0 = GBM(a, b), torch.ones(n, 1, dtype=F64)
    sde.sde_type = kind
    torch.manual_seed(0)
    with torch.no_grad():
        y = torchsde.sdeint(
            sde, y0, [0.0, 0.5, 1.0], method=method, dt=0.02, options={"engine": engine}
        )  # fmt: skip
    rate = a if kind == "ito" else a + b * b / 2
    for k, t in ((1, 0.5), (2, 1.0)):
        mean = math.exp(rate * t)
        spread = mean * math.sqrt(math.exp(b * b * t) - 1)
        assert abs(float(y[k].mean()) - mean) < 4 * spread / math.sqrt(n) + 0.02 * mean
        assert abs(float(y[k].std()) / spread - 1) < 0.1


@pytest.mark.parametrize(
    ("engine", "method"),
    [
        ("sundials", None),
        pytest.param("julia", None, marks=pytest.mark.julia),
        pytest.param("julia", "euler", marks=pytest.mark.julia),
    ],
)
def test_adaptive_steps(engine: str, method: Any) -> None:
    y = torchsde.sdeint(
        GBM(), torch.ones(2000, 1, dtype=F64), [0.0, 1.0], method=method, adaptive=True, dt=0.1,
        rtol=1e-3, atol=1e-3, options={"engine": engine},
    )[-1]  # fmt: skip
    assert abs(float(y.detach().mean()) - math.exp(0.5)) < 0.08


def test_noise_is_new_at_each_call_and_models_are_captured_once(engine: str) -> None:
    sde, y0 = Equation("diagonal"), torch.randn(3, 2, dtype=F64)
    options = {"dt": 0.1, "method": "euler", "options": {"engine": engine}}
    first = torchsde.sdeint(sde, y0, [0.0, 1.0], **options)
    with counted_captures() as names:
        second = torchsde.sdeint(sde, y0, [0.0, 1.0], **options)
    assert names == [] and not torch.equal(first, second)
    torch.manual_seed(3)
    a = torchsde.sdeint(sde, y0, [0.0, 1.0], **options)
    torch.manual_seed(3)
    assert torch.equal(a, torchsde.sdeint(sde, y0, [0.0, 1.0], **options))


def test_the_adjoint_interface_trains(engine: str) -> None:
    sde = GBM(0.1, 0.1)
    y0 = torch.ones(64, 1, dtype=F64)
    optimiser = torch.optim.Adam(sde.parameters(), lr=0.05)
    for _ in range(40):
        optimiser.zero_grad()
        y = torchsde.sdeint_adjoint(
            sde, y0, torch.tensor([0.0, 1.0]), dt=0.1, method="milstein",
            names={"drift": "drift"}, options={"engine": engine},
        )[-1]  # fmt: skip
        (y.mean() - 2.0).square().backward()
        optimiser.step()
    assert abs(float(y.detach().mean()) - 2.0) < 0.25 and float(sde.a.detach()) > 0.4


def test_extra_state_float32_and_other_algorithms(engine: str) -> None:
    sde = GBM().float()
    alg = ps.torchsde.euler() if engine == "sundials" else ps.EM(split=False)
    options = {"engine": engine}
    ys, state = torchsde.sdeint(
        sde, torch.ones(2, 1), [0.0, 1.0], method=alg, dt=0.25, extra=True, options=options
    )
    assert ys.shape == (2, 2, 1) and ys.dtype == torch.float32 and state == ()


def test_brownian_interval() -> None:
    bm = torchsde.BrownianInterval(0.0, 2.0, size=(3000, 1), dtype=F64, entropy=1)
    parts = [bm(a, a + 0.5) for a in (0.5, 0.0, 1.5, 1.0)]
    assert_close(parts[0] + parts[1] + parts[2] + parts[3], bm(0.0, 2.0), 1e-12)
    for part in parts:
        assert abs(float(part.var()) / 0.5 - 1) < 0.12 and abs(float(part.mean())) < 0.05
    joint = torch.corrcoef(torch.cat(parts, dim=1).T) - torch.eye(4, dtype=F64)
    assert float(joint.abs().max()) < 0.08
    again = torchsde.BrownianInterval(0.0, 2.0, size=(3000, 1), dtype=F64, entropy=1)
    assert torch.equal(again(0.5, 1.0), parts[0]) and torch.equal(bm(0.5, 1.0), parts[0])
    like = torchsde.brownian_interval_like(torch.zeros(2, 3), t0=0.0, t1=1.0)
    assert like(0.2, 0.2).shape == (2, 3) and like(1.0).dtype == torch.float32


def test_motions_that_have_a_start() -> None:
    w0, w1 = torch.randn(2000, 1, dtype=F64), torch.randn(2000, 1, dtype=F64)
    path = torchsde.BrownianPath(0.5, w0)
    assert torch.equal(path(0.5), w0)
    assert_close(path(0.75) + path(0.75, 1.5), path(1.5), 1e-12)
    assert abs(float(path(0.5, 0.75).var()) / 0.25 - 1) < 0.15
    tree = torchsde.BrownianTree(0.0, w0, 2.0, w1, entropy=1)
    assert_close(tree(2.0), w1, 1e-12)
    gap = tree(1.0) - (w0 + w1) / 2
    assert abs(float(gap.var()) / 0.5 - 1) < 0.15
    assert torch.equal(tree(1.0), torchsde.BrownianTree(0.0, w0, 2.0, w1, entropy=1)(1.0))
    bm = torchsde.BrownianPath(0.0, torch.zeros(2, 1, dtype=F64))
    assert ask(bm=bm, dt=0.1).shape == (2, 2, 1)
    with pytest.raises(InputError, match=r"w1 must be a tensor like w0, of shape \(2000, 1\)"):
        torchsde.BrownianTree(0.0, w0, 1.0, w1[:3])
    with pytest.raises(InputError, match="w0 is a float; give a tensor"):
        torchsde.BrownianPath(0.0, 1.0)


def ask(**options: Any) -> Any:
    given = {"sde": GBM(), "y0": torch.ones(2, 1, dtype=F64), "ts": [0.0, 1.0], **options}
    given["options"] = {"engine": "sundials", **given.get("options", {})}
    return torchsde.sdeint(**given)


class Written:
    """An equation of functions of its own."""

    noise_type, sde_type = "diagonal", "ito"

    def __init__(self, f: Any = lambda t, y: y, g: Any = lambda t, y: y) -> None:
        self.f, self.g = f, g


class OnlyProducts(torchsde.SDEIto):
    def f(self, t: Tensor, y: Tensor) -> Tensor:
        return y

    def g_prod(self, t: Tensor, y: Tensor, v: Tensor) -> Tensor:
        return y * v


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"sde": nn.Linear(1, 1)}, InputError, "has no attribute noise_type"),
        ({"sde": OnlyProducts("diagonal")}, InputError, "products alone"),
        ({"y0": torch.ones(2)}, InputError, r"y0 has shape \(2,\); give a tensor \(batch, d\)"),
        ({"ts": [1.0, 0.0]}, InputError, "two increasing times"),
        (
            {"ts": [0.0, torch.ones((), requires_grad=True)]},
            InputError,
            "ts requires grad, but a path along noise has no derivative",
        ),
        ({"sde": GBM}, InputError, "sde is the class GBM; give an object"),
        ({"sde": Written(f=lambda y: y)}, InputError, r"f of sde takes \(y\), but .*\(t, y\)"),
        ({"sde": Written(f=lambda y, t: y)}, InputError, "f of sde takes .*put them in this order"),
        ({"sde": Written(f=lambda t, y: 0.0)}, InputError, "f gave a float; it must give a tensor"),
        ({"sde": Written(g=lambda t, y: None)}, InputError, "g gave a NoneType; it must give a"),
        ({"sde": Written(g=nn.Bilinear(1, 2, 1))}, InputError, "sde mixes dtypes|sde fails on"),
        ({"y0": [1.0, 2.0]}, InputError, r"y0 is a list; give a tensor \(batch, d\)"),
        ({"y0": torch.ones(2, 1, device="meta")}, InputError, "y0 is on the device meta"),
        ({"ts": torch.tensor([0j, 1])}, InputError, "ts is tensor"),
        ({"dt": None}, InputError, "dt is None; give a number > 0"),
        ({"dt": "a"}, InputError, "dt is 'a'; give a number > 0"),
        ({"names": ["f"]}, InputError, "names is a list; give a dict"),
        ({"names": {"drft": "f"}}, InputError, "the key 'drft'.*Did you mean 'drift'"),
        ({"bm": 3}, InputError, r"bm is a int; give a motion.*size=\(2, 1\)"),
        ({"bm": torchsde.BrownianInterval}, InputError, "bm is the class BrownianInterval; give"),
        ({"method": "heun"}, InputError, "Ito's equation is solved by euler, milstein, srk"),
        ({"method": "eular"}, InputError, "Did you mean 'euler'"),
        ({"logqp": True}, InputError, r"a method h\(t, y\)"),
        ({"options": {"step": 1}}, InputError, "options does not take 'step'"),
        ({"extra_solver_state": (1,)}, EngineError, "keep no state beside y"),
        (
            {"bm": torchsde.BrownianInterval(size=(3, 1))}, InputError,
            r"bm has shape \(3, 1\), but the equation needs \(2, 1\)",
        ),
        (
            {"bm": torchsde.BrownianInterval(size=(2, 1)), "adaptive": True}, EngineError,
            "followed at fixed steps only",
        ),
    ],
)  # fmt: skip
def test_bad_input(options: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match) as caught:
        ask(**options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"size": 3}, r"size is 3; give the shape \(batch, m\)"),
        ({"size": (-1, 1)}, r"size is \(-1, 1\)"),
        ({"t0": (4, 2), "size": (1, 1)}, r"t0 is \(4, 2\); give a number"),
        ({"t1": math.inf, "size": (1, 1)}, "t1 is inf; give a finite time"),
        ({"size": (1, 1), "dtype": "float64"}, "dtype is 'float64'; give torch.float64"),
        ({"size": (1, 1), "dtype": torch.int64}, "dtype is torch.int64"),
        ({"size": (1, 1), "device": "gpu"}, "device is 'gpu'"),
        ({"size": (1, 1), "entropy": 1.5}, "entropy is 1.5; give a whole number"),
        ({"size": (1, 1), "entropy": torch.tensor(1.5)}, r"entropy is tensor\(1.5000\)"),
        ({"W": [0.0]}, r"W is \[0.0\]; give a tensor"),
        ({"W": torch.ones(2, 1, dtype=torch.int64)}, "W is of torch.int64"),
        ({"W": torch.ones(2, 1, requires_grad=True)}, "W requires grad, but no gradient"),
        ({"W": torch.full((2, 1), math.nan)}, "W holds numbers that are not finite"),
        ({"W": torch.ones(2, 1), "size": (3, 1)}, r"W has shape \(2, 1\), but size is \(3, 1\)"),
    ],
)
def test_motions_that_cannot_be(given: dict[str, Any], match: str) -> None:
    with pytest.raises(InputError, match=match):
        torchsde.BrownianInterval(**given)


def test_types_adjoints_and_motions_that_cannot_be() -> None:
    with pytest.raises(InputError, match="ta is 'a'; give a number"):
        torchsde.BrownianInterval(size=(1, 1))("a")
    with pytest.raises(InputError, match="y is a int; give a tensor"):
        torchsde.brownian_interval_like(3)
    with pytest.raises(InputError, match="noise_type is 'diag'; give one of 'diagonal'"):
        torchsde.SDEIto("diag")
    with pytest.raises(InputError, match="takes an nn.Module as sde"):
        torchsde.sdeint_adjoint(object(), torch.ones(1, 1), [0.0, 1.0])
    with pytest.raises(EngineError, match="levy_area_approximation is 'foster'"):
        torchsde.BrownianInterval(size=(1, 1), levy_area_approximation="foster")
    with pytest.raises(EngineError, match="draws increments only"):
        torchsde.BrownianInterval(size=(1, 1))(0.0, 1.0, return_U=True)
    with pytest.raises(InputError, match="lies outside the Brownian motion"):
        torchsde.BrownianInterval(size=(1, 1))(0.0, 2.0)
    with pytest.warns(UserWarning, match="Unexpected arguments"):
        ask(dt=0.5, method="euler", steps=3)
    with pytest.warns(torchsde.NoEffectWarning, match="adjoint_method has no effect"):
        torchsde.sdeint_adjoint(
            GBM(), torch.ones(1, 1, dtype=F64), [0.0, 1.0], dt=0.5, adjoint_method="euler",
            options={"engine": "sundials"},
        )  # fmt: skip


@pytest.mark.julia
def test_what_the_julia_engine_cannot_do() -> None:
    options = {"engine": "julia"}
    with pytest.raises(EngineError, match="log_ode reads areas of the noise"):
        sde = Equation("diagonal", "stratonovich")
        ask(sde=sde, y0=torch.ones(2, 2, dtype=F64), method="log_ode", options=options)
    with pytest.raises(EngineError, match="in smaller batches"):
        y0 = torch.ones(2000, 2, dtype=F64)
        ask(sde=Equation("general"), y0=y0, options=options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ask(dt=0.1, options=options)
