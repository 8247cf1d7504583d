"""The example scripts do what they say."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

FOLDER = Path(__file__).resolve().parents[1] / "examples"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_script_is_tested() -> None:
    assert {p.stem for p in FOLDER.glob("*.py")} == {"lotka_volterra_fit", "stiff_rates"}


@pytest.mark.parametrize(
    ("name", "tolerance"), [("lotka_volterra_fit", 0.05), ("stiff_rates", 1e-4)]
)
def test_rates_are_recovered(name: str, tolerance: float) -> None:
    module = load(name)
    torch.testing.assert_close(module.main(), module.TRUE, rtol=tolerance, atol=0.0)
