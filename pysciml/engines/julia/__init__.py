"""The julia engine: DifferentialEquations.jl through juliacall. Importing starts nothing."""

from pysciml.engines.julia.engine import JuliaEngine
from pysciml.engines.julia.startup import is_set_up

__all__ = ["JuliaEngine", "is_set_up"]
