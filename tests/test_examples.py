"""The example scripts do what they say."""

from __future__ import annotations

import ast
import importlib.util
import runpy
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

FOLDER = Path(__file__).resolve().parents[1] / "examples"

#: What each script's ``main`` must reach in its short run, and would not reach untrained.
REACHED: dict[str, Callable[[dict[str, float]], bool]] = {
    "spiral_neural_ode": lambda r: r["error"] < 1.5,
    "concentric_circles": lambda r: r["augmented"] < 0.1 < r["plain"],
    "latent_ode": lambda r: r["inside"] < 0.25,
    "cde_classification": lambda r: r["right"] > 0.9,
    "ffjord_density": lambda r: r["log_density"] > -2.6 and abs(r["integral"] - 1.0) < 0.01,
    "pendulum_energy": lambda r: max(r["Hamiltonian"], r["Lagrangian"]) < r["plain"],
    "graph_ode": lambda r: r["error"] < 0.1,
    "stiff_rober": lambda r: r["error"] < 0.26,
    "second_order": lambda r: r["inside"] < 0.25,
    "bouncing_ball": lambda r: abs(r["gravity"] - 9.8) < 1 and abs(r["restitution"] - 0.85) < 0.1,
    "ensemble": lambda r: 0.3 < r["peak"] < 0.37 and r["slope"][0] > 0 > r["slope"][1],
    "kepler_orbit": lambda r: r.get("KahanLi8", 0.0) < 1e-5 < r["adaptive"],
    "reaction_diffusion": lambda r: abs(r["covered"] - 11.6) < 0.3 and abs(r["slope"] - 9) < 1,
    "steady_state": lambda r: abs(r["yield"] - r["best"]) < 1e-4,
    "van_der_pol_control": lambda r: r["neural"] < r["linear"],
    "equilibrium_digits": lambda r: r["right"] > 0.9 and r["gap"] < 1e-2,
    "multiple_shooting": lambda r: r["multiple"] < 0.4 < r["single"],
    "neural_sde": lambda r: r["noise"] < 0.13 and r["drift"] < 0.45,
    "easiest_throw": lambda r: abs(r["slope"]) < 1e-4 and 2.0 < r["time"] < 3.5,
    "catalyst_pellet": lambda r: abs(r["m"] - 20.0) < 1e-6 and 0.0 <= r["left"] < 1e-9,
    "aftershocks": lambda r: 0.5 * r["true"] < r["learned"] < r["true"] + 0.01,
    "rod_pendulum": lambda r: abs(r["ratio"] - 3.0) < 1e-3 and abs(r["slope"] - 3.0) < 1e-2,
    "two_phases": lambda r: all(abs(x - 8**0.5) < 0.02 for x in r.values()),
    "logistic_map": lambda r: r["first"] < 0 and abs(r["last"] - 0.693) < 0.05,
}  # fmt: skip
RATES = {"lotka_volterra_fit": 0.05, "stiff_rates": 1e-4}
IN_JULIA = {"model_in_julia", "double_well", "mackey_glass", "epidemic", "rough_road"}

#: A short example for each kind of problem.
SHORT = {
    "stochastic": "double_well",
    "delay": "mackey_glass",
    "jumps": "epidemic",
    "differential-algebraic": "rod_pendulum",
    "second order": "kepler_orbit",
    "split": "two_phases",
    "steady state": "steady_state",
    "boundary value": "catalyst_pellet",
    "discrete": "logistic_map",
    "random": "rough_road",
    "ensemble": "ensemble",
}


def load(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))  # as when it is run as a script
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_script_is_tested_and_in_the_gallery() -> None:
    scripts = {p.stem for p in FOLDER.glob("[!_]*.py")}
    assert scripts == {*RATES, *REACHED, *IN_JULIA}
    gallery = (FOLDER / "README.md").read_text()
    for name in scripts:
        assert f"python examples/{name}.py" in gallery
    for name in REACHED:
        assert f"(figures/{name}.png)" in gallery and (FOLDER / f"figures/{name}.png").exists()


@pytest.mark.parametrize("kind", SHORT)
def test_each_kind_of_problem_has_an_example_of_under_30_lines(kind: str) -> None:
    """Of code: blank lines, comments and what the module says of itself are not counted."""
    text = (FOLDER / f"{SHORT[kind]}.py").read_text()
    docstring = ast.parse(text).body[0]
    assert isinstance(docstring, ast.Expr) and docstring.end_lineno is not None
    lines = [line.strip() for line in text.splitlines()[docstring.end_lineno :]]
    code = [line for line in lines if line and not line.startswith("#")]
    assert code[-1] in ("main()", "print(main())")  # none was lost
    assert len(code) < 30, f"{SHORT[kind]}.py has {len(code)} lines of code"


@pytest.mark.julia
def test_a_model_in_julia_is_fitted() -> None:
    result = runpy.run_path(str(FOLDER / "model_in_julia.py"))
    wanted = torch.tensor([9.81, 0.3], dtype=torch.float64)
    torch.testing.assert_close(result["p"].detach(), wanted, rtol=1e-2, atol=0.0)


@pytest.mark.julia
def test_noise_is_fitted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    figure = tmp_path / "figure.png"
    module = load("double_well", monkeypatch)
    result = module.main(["--quick", "--engine", "julia", "--figure", str(figure)])
    assert abs(result["well"] - 1.0) < 0.1 and abs(result["noise"] - 0.5) < 0.05, result
    assert figure.stat().st_size > 10_000


@pytest.mark.julia
def test_a_delay_is_fitted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    figure = tmp_path / "figure.png"
    module = load("mackey_glass", monkeypatch)
    result = module.main(["--quick", "--engine", "julia", "--figure", str(figure)])
    assert abs(result["production"] - 0.2) < 0.02 and abs(result["delay"] - 17.0) < 0.5, result
    assert figure.stat().st_size > 10_000


@pytest.mark.julia
def test_outbreaks_end_near_the_rate_equation(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    figure = tmp_path / "figure.png"
    module = load("epidemic", monkeypatch)
    result = module.main(["--quick", "--figure", str(figure)])
    assert abs(result["recovered"] - result["rates"]) < 60, result
    assert figure.stat().st_size > 10_000


@pytest.mark.julia
def test_a_damper_calms_a_ride(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    figure = tmp_path / "figure.png"
    module = load("rough_road", monkeypatch)
    result = module.main(["--quick", "--figure", str(figure)])
    shaking, slopes, dampers = (result[k] for k in ("shaking", "slopes", "dampers"))
    assert shaking[0] > shaking[-1]
    # the slopes along the curve add up to its differences (Simpson's rule)
    for i in (4, 5):
        step = dampers[i + 1] - dampers[i]
        ends = slopes[i - 1 : i + 2]
        got = (ends[0] + 4 * ends[1] + ends[2]) / 6 * 2 * step
        assert abs(got - (shaking[i + 1] - shaking[i - 1])) < 0.02 * abs(got), (got, shaking)
    assert figure.stat().st_size > 10_000


@pytest.mark.parametrize(("name", "tolerance"), RATES.items())
def test_rates_are_recovered(name: str, tolerance: float, monkeypatch: pytest.MonkeyPatch) -> None:
    module = load(name, monkeypatch)
    torch.testing.assert_close(module.main(), module.TRUE, rtol=tolerance, atol=0.0)


@pytest.mark.parametrize("name", REACHED)
def test_gallery(name: str, engine: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = load(name, monkeypatch)
    figure = tmp_path / "figure.png"
    result = module.main(["--quick", "--engine", engine, "--figure", str(figure)])
    assert REACHED[name](result), result
    assert figure.stat().st_size > 10_000
