"""Models written in Julia, held against the same models in torch."""

from __future__ import annotations

import pytest
import torch

import pysciml as ps

LOTKA = """
function (du, u, p, t)
    du[1] = p[1] * u[1] - p[2] * u[1] * u[2]
    du[2] = -p[3] * u[2] + p[4] * u[1] * u[2] + 0.1 * sin(t)
end
"""
TIGHT = {"abstol": 1e-10, "reltol": 1e-10, "saveat": [1.0, 2.0]}


def lotka(u, p, t):
    return torch.stack(
        [p[0] * u[0] - p[1] * u[0] * u[1], -p[2] * u[1] + p[3] * u[0] * u[1] + 0.1 * torch.sin(t)]
    )


def inputs(grad: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    u0 = torch.tensor([1.0, 1.2], dtype=torch.float64, requires_grad=grad)
    p = torch.tensor([1.5, 1.0, 3.0, 0.8], dtype=torch.float64, requires_grad=grad)
    return u0, p


@pytest.mark.julia
@pytest.mark.parametrize("alg", [ps.Tsit5(), ps.Rodas5P()], ids=str)
@pytest.mark.parametrize("sensealg", [None, ps.GaussAdjoint(), ps.ForwardSensitivity()], ids=str)
def test_solution_and_gradient_are_those_of_the_torch_model(alg, sensealg) -> None:
    found = []
    for f in (ps.julia_function(LOTKA), lotka):
        u0, p = inputs()
        prob = ps.ODEProblem(f, u0, (0.0, 2.0), p)
        sol = ps.solve(prob, alg, engine="julia", sensealg=sensealg, **TIGHT)
        found.append((sol.u, *torch.autograd.grad((sol.u**2).sum(), [u0, p])))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-8)


@pytest.mark.julia
def test_pytrees_come_as_vectors() -> None:
    f = ps.julia_function("(du, u, p, t) -> (du .= -p[1] .* u; du[3] += p[2]; nothing)")
    u0 = {"a": torch.ones(2, dtype=torch.float64), "b": torch.ones(1, 1, dtype=torch.float64)}
    k = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    prob = ps.ODEProblem(f, u0, (0.0, 1.0), {"k": k, "source": 2.0})
    sol = ps.solve(prob, ps.Tsit5(), engine="julia", saveat=[1.0], abstol=1e-10, reltol=1e-10)
    torch.testing.assert_close(sol.u["a"][-1], torch.exp(-k) * u0["a"], rtol=1e-8, atol=0.0)
    end = (torch.exp(-k) + 4.0 * (1 - torch.exp(-k))).reshape(1, 1)
    torch.testing.assert_close(sol.u["b"][-1], end, rtol=1e-8, atol=0.0)


@pytest.mark.julia
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "function (du, u, p, t)\n    du[1] = u[7]\nend",
            r"BoundsError.*\(line 2 of the julia_function: du\[1\] = u\[7\]\)",
        ),
        ("(du, u, p, t) -> missing_name(u)", "missing_name.*line 1 of the julia_function"),
        ("(du, u, p, t) -> (", "incomplete|Expected|premature"),
        ("(u, p, t) -> -u", "called with four arguments"),
        ("3.5", "its value is of type Float64"),
    ],
)
def test_errors_come_with_julias_message_and_the_users_line(text, message) -> None:
    prob = ps.ODEProblem(ps.julia_function(text), inputs(False)[0], (0.0, 2.0))
    with pytest.raises(ps.EngineError, match=r"(?s)" + message):
        ps.solve(prob, ps.Tsit5(), engine="julia", **TIGHT)


def test_other_engines_and_calls_are_refused() -> None:
    f = ps.julia_function(LOTKA)
    u0, p = inputs(False)
    with pytest.raises(ps.EngineError, match="julia_function runs in Julia.*engine='sundials'"):
        ps.solve(ps.ODEProblem(f, u0, (0.0, 1.0), p), engine="sundials")
    with pytest.raises(ps.EngineError, match="engine='julia'"):
        f(u0, p, 0.0)
    with pytest.raises(ps.InputError, match="give Julia source text"):
        ps.julia_function(" ")
    with pytest.raises(ps.InputError, match="right-hand side alone"):
        ps.solve(
            ps.ODEProblem(lotka, u0, (0.0, 1.0), p, callback=ps.DiscreteCallback(f, ps.terminate)),
            engine="sundials",
        )
