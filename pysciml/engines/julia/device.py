"""Solving where the user's tensors are: states and parameters stay on the device."""

from __future__ import annotations

from pysciml.kernels.graph import Graph, make


def device_graph(graph: Graph) -> Graph:
    """The graph as it is emitted for a device: matrices as Julia lays them out."""
    outputs = tuple(make("permute", o, perm=(1, 0)) if o.ndim == 2 else o for o in graph.outputs)
    return Graph(graph.inputs, outputs, graph.name)
