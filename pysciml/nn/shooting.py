"""Multiple shooting of a module: its loss on a long record, cut into short pieces."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from pysciml import fit
from pysciml.errors import InputError
from pysciml.nn.base import ContinuousModule
from pysciml.nn.field import check_field, require_tensor
from pysciml.nn.times import check_times
from pysciml.problems import ODEProblem

__all__ = ["MultipleShooting"]


class MultipleShooting(nn.Module):
    """The loss of ``model`` on a record, by :class:`pysciml.fit.MultipleShooting`.

    Its parameters are the model's and the segments' initial states, for one optimiser.

    Parameters
    ----------
    model : ContinuousModule
        Its vector field, algorithm, engine and options are used; its ``tspan`` is not. One
        without ``regularise`` and ``per_sample``.
    t : tensor (m,); data : tensor (m, ...)
    options
        ``intervals``, ``continuity``, ``observe``, ``starts``, ``loss``: see
        :class:`pysciml.fit.MultipleShooting`.
    """

    def __init__(self, model: ContinuousModule, t: Tensor, data: Tensor, **options: Any) -> None:
        super().__init__()
        if not isinstance(model, ContinuousModule):
            raise InputError(
                f"MultipleShooting takes a module of pysciml.nn, got a {type(model).__name__}; for "
                "a problem use pysciml.fit.MultipleShooting."
            )
        check_field(model.vector_field)
        if model.regularise or model.per_sample:
            raise InputError(
                "MultipleShooting solves all segments together and has no penalty, but the model "
                "was made with regularise or per_sample; leave these out there."
            )
        self.model = model
        check_times(t, "t")
        require_tensor(data, "data", f"({len(t)}, ...)")
        starts = options.get("starts")
        like = data[0] if starts is None else starts[0]
        prob = ODEProblem(model._field, like.detach(), (float(t[0]), float(t[-1])))
        self.shooting = fit.MultipleShooting(
            prob, t, data, alg=model.alg, engine=model.engine, **model.options, **options
        )

    @property
    def continuity(self) -> float:
        """The weight of the gaps between segments; raise it during training."""
        return self.shooting.continuity

    @continuity.setter
    def continuity(self, value: float) -> None:
        self.shooting.continuity = float(value)

    @property
    def starts(self) -> Tensor:
        """The segments' initial states, (segments, *state)."""
        return self.shooting.starts

    def predict(self) -> tuple[Tensor, Tensor]:
        """States at the data's times (m, *state), and gaps between segments."""
        return self.shooting.predict()

    def forward(self) -> Tensor:
        """The loss, gaps included, 0-d."""
        check_field(self.model.vector_field)
        return self.shooting()
