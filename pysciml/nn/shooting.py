"""Multiple shooting of a module: its loss on a long record, cut into short pieces."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pysciml import fit
from pysciml.errors import InputError
from pysciml.nn.base import ContinuousModule
from pysciml.nn.field import Integrals, check_field, require_tensor
from pysciml.nn.record import Recorded, last_of
from pysciml.nn.regularise import integrals_in, with_integrals
from pysciml.nn.times import check_times
from pysciml.problems import ODEProblem

__all__ = ["MultipleShooting"]


class MultipleShooting(Recorded):
    """The loss of ``model`` on a record, by :class:`pysciml.fit.MultipleShooting`.

    Its parameters are the model's and the segments' initial states, for one optimiser.

    Parameters
    ----------
    model : ContinuousModule
        Its vector field, algorithm, engine and options are used; its ``tspan`` is not. One
        without ``per_sample``. Its ``Kinetic`` and ``JacobianFrobenius`` make the ``penalty``, in
        training: integrals over the whole record, segment by segment.
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
        if model.per_sample:
            raise InputError(
                "MultipleShooting solves all segments together, but the model was made with "
                "per_sample; leave it out there."
            )
        self._weighted, self._kinds = integrals_in(model.regularise)
        for r in model.regularise:
            if r not in self._weighted:
                raise InputError(
                    f"The model was made with {type(r).__name__}, but segments are solved together "
                    "and end where the data are; give Kinetic() or JacobianFrobenius()."
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

        field = Integrals(model._field, self._kinds, tuple(like.shape))
        self._beside = self.shooting._beside(field)

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
        last = last_of(self)
        last.penalty = None
        if not (self.training and self._kinds):
            return self.shooting()
        # one vector for all segments: each has the right mean
        noise = torch.randn_like(self.starts[0]) if "jacobian" in self._kinds else ()
        states, gaps, integrals = self.shooting._predict_beside(
            self._beside, ((), noise), len(self._kinds)
        )
        last.penalty = with_integrals(None, self._weighted, integrals.sum(0, keepdim=True))
        return self.shooting._value(states, gaps)
