"""Devices of Julia's: JLArrays, in the memory of the CPU, and CUDA, where there is a GPU."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from devices import load

from pysciml.engines.julia import device


@dataclass(frozen=True)
class Place:
    """A kind of arrays in Julia, and where the tensors are that are solved on it."""

    name: str
    main: Any  # Julia's Main, with PySciML, PythonCall and the package of the arrays

    @property
    def torch(self) -> torch.device:
        return torch.device("cuda" if self.name == "cuda" else "cpu")

    @property
    def arrays(self) -> Any:
        """Julia's type of arrays."""
        return self.main.seval("CuArray" if self.name == "cuda" else "JLArray")

    def solving(self) -> contextlib.AbstractContextManager[None]:
        """Within it, problems whose tensors are at this place are solved there."""
        return contextlib.nullcontext() if self.name == "cuda" else device.standing_in(self.name)


@pytest.fixture(scope="session", params=["jlarrays", pytest.param("cuda", marks=pytest.mark.gpu)])
def place(request: pytest.FixtureRequest) -> Place:
    """Each device in turn, with scalar indexing forbidden."""
    return Place(request.param, load("CUDA" if request.param == "cuda" else "JLArrays"))
