"""Latent ODEs: irregular series as trajectories of a hidden state, by a variational autoencoder."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from pysciml.engines.base import Stats
from pysciml.errors import InputError
from pysciml.nn.field import require_tensor
from pysciml.nn.neural_ode import NeuralODE
from pysciml.nn.record import last_of
from pysciml.nn.times import check_times
from pysciml.options import positive, require_count

__all__ = ["LatentODE"]


class LatentODE(nn.Module):
    """``z0 ~ q(z0 | data)``, ``dz/dt = f(z)``, ``x(t) ~ decoder(z(t))``.

    Parameters
    ----------
    channels, latent : int
        Entries of an observation, and of the hidden state.
    vector_field : nn.Module, optional
        ``f(z)`` or ``f(z, t)`` on (batch, latent); two layers of ``hidden`` where None.
    decoder : nn.Module, optional
        (..., latent) to (..., channels); two layers of ``hidden`` where None.
    hidden : int
        Width of the layers made here, and of the encoder's GRU.
    noise : float
        Standard deviation of the observations' noise.
    alg, options : as :class:`pysciml.nn.NeuralODE`
        ``regularise`` acts on the hidden state, ``saveat`` and ``tspan`` are not taken.

    The encoder is a GRU that reads the observations backwards in time, each with its mask and the
    gap to the one after it. Source: Chen et al., "Neural ordinary differential equations", NeurIPS
    2018; Rubanova, Chen, Duvenaud, "Latent ODEs for irregularly-sampled time series", NeurIPS 2019.

    Series with different times share one grid: the union of their times, with ``mask`` telling
    what each has.
    """

    def __init__(
        self,
        channels: int,
        latent: int,
        vector_field: nn.Module | None = None,
        decoder: nn.Module | None = None,
        *,
        hidden: int = 32,
        noise: float = 0.1,
        alg: Any = None,
        **options: Any,
    ) -> None:
        super().__init__()
        for name, size in (("channels", channels), ("latent", latent), ("hidden", hidden)):
            require_count(name, size)
        positive("noise", noise)
        for name in ("saveat", "tspan"):
            if options.get(name) is not None:
                raise InputError(
                    f"LatentODE does not take {name!r}: it is solved over the times of each call "
                    "(t, t_out); leave it out."
                )
        self.channels, self.latent, self.noise = channels, latent, float(noise)
        self.encoder = nn.GRU(2 * channels + 1, hidden, batch_first=True)
        self.to_latent = nn.Linear(hidden, 2 * latent)
        if vector_field is None:
            vector_field = _layers(latent, hidden, latent)
        self.ode = NeuralODE(vector_field, alg=alg, **options)
        self.decoder = _layers(latent, hidden, channels) if decoder is None else decoder

    @property
    def stats(self) -> Stats | None:
        """Counts of the last solve (evaluations, steps), None before the first."""
        return self.ode.stats

    @property
    def penalty(self) -> Tensor:
        """The regularisers' weighted sum for the last call in training, 0-d; not in ``elbo``.

        Add it to the loss: ``loss = -model.elbo(t, x)``, ``(loss + model.penalty).backward()``.
        """
        return self.ode.penalty

    def encode(self, t: Tensor, x: Tensor, mask: Tensor | None = None) -> Normal:
        """The distribution of ``z(t[0])``, (batch, latent), from observations (batch, m, c)."""
        mask = self._check(t, x, mask)
        seen = torch.where(mask, x, 0.0)
        gaps = torch.cat([t.diff(), t.new_zeros(1)]).to(x.dtype)
        inputs = torch.cat([seen, mask.to(x.dtype), gaps[None, :, None].expand(len(x), -1, 1)], -1)
        _, last = self.encoder(inputs.flip(1))
        mean, raw = self.to_latent(last[0]).chunk(2, dim=-1)
        return Normal(mean, nn.functional.softplus(raw) + 1e-4)

    def decode(self, z0: Tensor, t0: Any, t: Tensor) -> Tensor:
        """Observations (batch, k, channels) at times ``t`` (k,) from the state at ``t0``."""
        return self.decoder(self._trajectory(z0, float(t0), check_times(t, "t"))).transpose(0, 1)

    def forward(
        self, t: Tensor, x: Tensor, mask: Tensor | None = None, t_out: Tensor | None = None
    ) -> Tensor:
        """Predictions (batch, k, channels) at ``t_out``, or ``t``, from the mean of z0."""
        z0 = self.encode(t, x, mask).mean
        return self.decode(z0, t[0], t if t_out is None else t_out)

    def elbo(
        self, t: Tensor, x: Tensor, mask: Tensor | None = None, *, kl_weight: float = 1.0
    ) -> Tensor:
        """The evidence lower bound, mean over the batch, 0-d: maximise it.

        One sample of z0 for each series; ``kl_weight`` may rise from 0 to 1 during training.
        """
        posterior = self.encode(t, x, mask)
        mask = self._check(t, x, mask)
        z0 = posterior.rsample()
        prediction = self.decode(z0, t[0], t)
        fit = Normal(prediction, self.noise).log_prob(torch.where(mask, x, 0.0))
        fit = torch.where(mask, fit, 0.0).sum((1, 2))
        prior = Normal(torch.zeros_like(z0), torch.ones_like(z0))
        return (fit - kl_weight * kl_divergence(posterior, prior).sum(1)).mean()

    def _trajectory(self, z0: Tensor, t0: float, t: Tensor) -> Tensor:
        if float(t.detach().diff().sum()) < 0 or float(t[0]) < t0:
            raise InputError(
                f"Times must increase from t[0] = {t0:g}, the time of z0; t_out begins at "
                f"{float(t[0]):g}."
            )
        if float(t[-1]) == t0:
            last_of(self.ode).penalty = None
            return z0[None]
        return self.ode._states(z0, t, (t0, float(t[-1])))

    def _check(self, t: Tensor, x: Tensor, mask: Tensor | None) -> Tensor:
        check_times(t, "t")
        require_tensor(x, "x", f"(batch, {len(t)}, {self.channels})", 0)
        if x.ndim != 3 or x.shape[1:] != (len(t), self.channels):
            raise InputError(
                f"x has shape {tuple(x.shape)}; with {len(t)} times give (batch, {len(t)}, "
                f"{self.channels})."
            )
        if mask is None:
            mask = ~torch.isnan(x)
        require_tensor(mask, "mask", f"{tuple(x.shape)}", 0)
        if mask.shape != x.shape or mask.dtype != torch.bool:
            raise InputError(
                f"mask has shape {tuple(mask.shape)} and {mask.dtype}; give a boolean tensor like "
                f"x, {tuple(x.shape)}."
            )
        return mask


def _layers(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh(),
        nn.Linear(hidden, outputs),
    )  # fmt: skip
