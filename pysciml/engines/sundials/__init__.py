"""The embedded engine: SUNDIALS through scikit-sundae."""

from pysciml.engines.sundials.engine import SundialsEngine

__all__ = ["SundialsEngine"]
