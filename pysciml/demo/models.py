"""Two models of hare and lynx, both of the logarithms ``v = (log x, log y)`` of the populations.

Logarithms keep populations positive, whatever a network says, and make an error of a tenth
weigh the same in a good year as in a poor one.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["LotkaVolterra", "UniversalLotkaVolterra"]


class LotkaVolterra(nn.Module):
    """``x' = a x - b x y``, ``y' = d x y - c y``; rates a year, populations in thousands.

    Parameters
    ----------
    centre : tensor (2,)
        Logarithms of typical populations: the rates start with the equilibrium there, and with
        the period of about nine years that a = c = 0.7 gives.
    """

    def __init__(self, centre: Tensor) -> None:
        super().__init__()
        rate = torch.log(torch.tensor(0.7, dtype=centre.dtype))
        self.log_growth = nn.Parameter(rate.clone())  # a
        self.log_death = nn.Parameter(rate.clone())  # c
        self.log_loss = nn.Parameter(rate - centre[1])  # b
        self.log_gain = nn.Parameter(rate - centre[0])  # d

    def rates(self) -> dict[str, float]:
        """a, b, c, d."""
        logs = (self.log_growth, self.log_loss, self.log_death, self.log_gain)
        return dict(zip("abcd", (float(x.detach().exp()) for x in logs), strict=True))

    def interaction(self, v: Tensor) -> Tensor:
        """Hares lost to lynx, ``b x y``: thousands a year, (...) for ``v`` of (..., 2)."""
        return torch.exp(self.log_loss + v[..., 0] + v[..., 1])

    def penalty(self) -> Tensor:
        """Nothing is penalised."""
        return torch.zeros((), dtype=self.log_loss.dtype)

    def forward(self, v: Tensor) -> Tensor:
        """``dv/dt``, like ``v`` (2,)."""
        hare = self.log_growth.exp() - torch.exp(self.log_loss + v[1])
        lynx = torch.exp(self.log_gain + v[0]) - self.log_death.exp()
        return torch.stack([hare, lynx])


class UniversalLotkaVolterra(nn.Module):
    """``x' = a x - N(x, y)``, ``y' = e N(x, y) - c y``, the interaction N a neural network.

    The network gives ``log N`` from the logarithms of the populations: two hidden layers of tanh,
    beside a linear layer from input to output. The linear layer alone is a power law
    ``N = k x^alpha y^beta``, of which the product term is the one with exponents 1 and 1, where
    training starts; nothing holds it there.

    Parameters
    ----------
    centre, scale : tensors (2,)
        Mean and standard deviation of the data's logarithms.
    width : int
        Units of a hidden layer.
    """

    centre: Tensor
    scale: Tensor

    def __init__(self, centre: Tensor, scale: Tensor, width: int = 8) -> None:
        super().__init__()
        dtype = centre.dtype
        self.register_buffer("centre", centre)
        self.register_buffer("scale", scale)
        last = nn.Linear(width, 1, dtype=dtype)
        self.hidden = nn.Sequential(
            nn.Linear(2, width, dtype=dtype),
            nn.Tanh(),
            nn.Linear(width, width, dtype=dtype),
            nn.Tanh(),
            last,
        )
        self.linear = nn.Linear(2, 1, dtype=dtype)
        rate = torch.log(torch.tensor(0.7, dtype=dtype))
        self.log_growth = nn.Parameter(rate.clone())  # a
        self.log_death = nn.Parameter(rate.clone())  # c
        self.log_gain = nn.Parameter(centre[1] - centre[0])  # e
        with torch.no_grad():
            last.weight.mul_(0.1)
            last.bias.zero_()
            self.linear.weight.copy_(scale[None])
            self.linear.bias.copy_((rate + centre[0])[None])

    def rates(self) -> dict[str, float]:
        """a, c and e: growth of hares, death of lynx, lynx gained for each hare lost."""
        logs = (self.log_growth, self.log_death, self.log_gain)
        return dict(zip("ace", (float(x.detach().exp()) for x in logs), strict=True))

    def log_interaction(self, v: Tensor) -> Tensor:
        z = (v - self.centre) / self.scale
        return (self.hidden(z) + self.linear(z))[..., 0]

    def interaction(self, v: Tensor) -> Tensor:
        """Hares lost to lynx, N: thousands a year, (...) for ``v`` of (..., 2)."""
        return self.log_interaction(v).exp()

    def penalty(self) -> Tensor:
        """Sum of squares of the hidden layers' weights: at 0 the interaction is a power law."""
        return torch.stack(
            [p.square().sum() for p in self.hidden.parameters() if p.ndim == 2]
        ).sum()

    def forward(self, v: Tensor) -> Tensor:
        """``dv/dt``, like ``v`` (2,)."""
        n = self.log_interaction(v)
        hare = self.log_growth.exp() - torch.exp(n - v[0])
        lynx = torch.exp(self.log_gain + n - v[1]) - self.log_death.exp()
        return torch.stack([hare, lynx])
