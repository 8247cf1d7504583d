"""Recipes for fitting differential equations to data: multiple shooting, two-stage optimisation."""

from pysciml.fit.optimise import FitResult, two_stage
from pysciml.fit.shooting import MultipleShooting

__all__ = ["FitResult", "MultipleShooting", "two_stage"]
