"""Neural ODEs on graphs, in plain torch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pysciml.errors import InputError
from pysciml.nn.field import require_tensor
from pysciml.nn.neural_ode import NeuralODE
from pysciml.options import require_count

__all__ = ["GraphConv", "GraphNeuralODE", "normalised_adjacency"]


def normalised_adjacency(edge_index: Tensor, nodes: int, self_loops: bool = True) -> Tensor:
    """``D^(-1/2) A D^(-1/2)`` of an undirected graph, (nodes, nodes).

    Parameters
    ----------
    edge_index : integer tensor (2, edges)
        Each edge once or in both directions; repeated edges count once.
    nodes : int
    self_loops : bool
        Whether each node is its own neighbour too.

    Raises
    ------
    InputError
        For indices that are none of the graph's nodes.

    Source: Kipf and Welling, "Semi-supervised classification with graph convolutional networks",
    ICLR 2017.
    """
    if not isinstance(edge_index, Tensor) or edge_index.ndim != 2 or len(edge_index) != 2:
        given = tuple(edge_index.shape) if isinstance(edge_index, Tensor) else type(edge_index)
        raise InputError(f"edge_index is {given}; give an integer tensor (2, edges).")
    require_count("nodes", nodes)
    if (
        edge_index.is_floating_point()
        or edge_index.numel()
        and not bool(((edge_index >= 0) & (edge_index < nodes)).all())
    ):
        raise InputError(f"edge_index must hold node numbers from 0 to {nodes - 1}.")
    adjacency = torch.zeros(nodes, nodes, device=edge_index.device)
    adjacency[edge_index[0], edge_index[1]] = 1.0
    adjacency = torch.maximum(adjacency, adjacency.T)
    if self_loops:
        adjacency.fill_diagonal_(1.0)
    degree = adjacency.sum(1)
    scale = torch.where(degree > 0, degree.clamp(min=1.0).rsqrt(), 0.0)
    return scale[:, None] * adjacency * scale[None, :]


def _require_adjacency(adjacency: Any) -> None:
    require_tensor(adjacency, "adjacency", "(nodes, nodes), e.g. of normalised_adjacency", 0)
    if adjacency.ndim != 2 or adjacency.shape[0] != adjacency.shape[1]:
        raise InputError(f"adjacency has shape {tuple(adjacency.shape)}; give (nodes, nodes).")


class GraphConv(nn.Module):
    """``A x W + b`` with the normalised adjacency ``A``: (..., nodes, in) to (..., nodes, out).

    Parameters
    ----------
    in_features, out_features : int
    adjacency : tensor (nodes, nodes)
        E.g. of :func:`normalised_adjacency`; a buffer, moved and cast with the module.
    """

    adjacency: Tensor

    def __init__(
        self, in_features: int, out_features: int, adjacency: Tensor, bias: bool = True
    ) -> None:
        super().__init__()
        for name, size in (("in_features", in_features), ("out_features", out_features)):
            require_count(name, size)
        _require_adjacency(adjacency)
        self.linear = nn.Linear(in_features, out_features, bias=bias)
        self.register_buffer("adjacency", adjacency.to(self.linear.weight.dtype))

    def forward(self, x: Tensor) -> Tensor:
        require_tensor(x, "x", f"(..., {len(self.adjacency)}, features)", 0)
        if x.ndim < 2 or x.shape[-2] != len(self.adjacency):
            raise InputError(
                f"The features have shape {tuple(x.shape)}, but the graph has "
                f"{len(self.adjacency)} nodes; give (..., nodes, features)."
            )
        return self.adjacency @ self.linear(x)


class GraphNeuralODE(NeuralODE):
    """A neural ODE on the features of a graph's nodes, (..., nodes, features).

    ``vector_field`` is any module on such features, e.g. ``nn.Sequential(GraphConv(...), nn.Tanh(),
    GraphConv(...))``; where it is None, that of two layers with ``hidden`` features is made.

    Parameters
    ----------
    adjacency : tensor (nodes, nodes)
        The normalised adjacency.
    features, hidden : int
        Used where ``vector_field`` is None.

    Other parameters as :class:`ContinuousModule`. Source: Poli et al., "Graph neural ordinary
    differential equations", 2019.
    """

    def __init__(
        self,
        adjacency: Tensor,
        vector_field: nn.Module | None = None,
        tspan: Any = (0.0, 1.0),
        alg: Any = None,
        *,
        features: int | None = None,
        hidden: int = 32,
        **options: Any,
    ) -> None:
        _require_adjacency(adjacency)
        if vector_field is None:
            if features is None:
                raise InputError("Give vector_field, or features for one to be made.")
            require_count("hidden", hidden)
            vector_field = nn.Sequential(
                GraphConv(features, hidden, adjacency),
                nn.Tanh(),
                GraphConv(hidden, features, adjacency),
            )
        super().__init__(vector_field, tspan, alg, **options)
        self.nodes = len(adjacency)

    def forward(self, u0: Tensor, saveat: Any = None) -> Tensor:
        """From features (..., nodes, features) to those at ``t1``, or at ``saveat`` in front."""
        require_tensor(u0, "u0", f"(..., {self.nodes}, features)", 0)
        if u0.ndim < 2 or u0.shape[-2] != self.nodes:
            raise InputError(
                f"The features have shape {tuple(u0.shape)}, but the graph has {self.nodes} nodes; "
                "give (..., nodes, features)."
            )
        return super().forward(u0, saveat)
