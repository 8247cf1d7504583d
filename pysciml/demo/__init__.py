"""A worked example on real data: ``python -m pysciml demo``."""

from pysciml.demo.hare_lynx import Demo, Errors, Fitted, run
from pysciml.demo.models import LotkaVolterra, UniversalLotkaVolterra
from pysciml.demo.record import Record, hudson_bay

__all__ = [
    "Demo",
    "Errors",
    "Fitted",
    "LotkaVolterra",
    "Record",
    "UniversalLotkaVolterra",
    "hudson_bay",
    "run",
]
