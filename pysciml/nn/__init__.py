"""Continuous models as torch modules.

Each takes any algorithm, engine and sensitivity algorithm of :func:`pysciml.solve`, and works where
a torch module does: in ``nn.Sequential``, with ``state_dict``, ``torch.save``, ``deepcopy``,
optimisers and DataLoader batches.
"""

from pysciml.nn.base import ContinuousModule
from pysciml.nn.equilibrium import DeepEquilibrium
from pysciml.nn.ffjord import FFJORD
from pysciml.nn.graph import GraphConv, GraphNeuralODE, normalised_adjacency
from pysciml.nn.hybrid import HybridODE, Transition
from pysciml.nn.latent_ode import LatentODE
from pysciml.nn.mechanics import HamiltonianNN, LagrangianNN, StableNeuralFlow
from pysciml.nn.neural_cde import NeuralCDE
from pysciml.nn.neural_dde import NeuralDDE
from pysciml.nn.neural_jump_sde import NeuralJumpSDE
from pysciml.nn.neural_ode import AugmentedNeuralODE, NeuralODE, ODEBlock, SecondOrderNeuralODE
from pysciml.nn.neural_sde import NeuralSDE
from pysciml.nn.paths import (
    CubicPath,
    LinearPath,
    hermite_coefficients,
    linear_coefficients,
    natural_cubic_coefficients,
)
from pysciml.nn.regularise import (
    ErrorEstimate,
    JacobianFrobenius,
    Kinetic,
    RandomEndTime,
    StiffnessEstimate,
)
from pysciml.nn.shooting import MultipleShooting

__all__ = [
    "FFJORD",
    "AugmentedNeuralODE",
    "ContinuousModule",
    "CubicPath",
    "DeepEquilibrium",
    "ErrorEstimate",
    "GraphConv",
    "GraphNeuralODE",
    "HamiltonianNN",
    "HybridODE",
    "JacobianFrobenius",
    "Kinetic",
    "LagrangianNN",
    "LatentODE",
    "LinearPath",
    "MultipleShooting",
    "NeuralCDE",
    "NeuralDDE",
    "NeuralJumpSDE",
    "NeuralODE",
    "NeuralSDE",
    "ODEBlock",
    "RandomEndTime",
    "SecondOrderNeuralODE",
    "StableNeuralFlow",
    "StiffnessEstimate",
    "Transition",
    "hermite_coefficients",
    "linear_coefficients",
    "natural_cubic_coefficients",
    "normalised_adjacency",
]
