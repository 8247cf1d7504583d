"""A neural CDE tells clockwise from anticlockwise spirals, seen at irregular times with gaps.

python examples/cde_classification.py [--engine julia] [--quick]
"""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import torch
from _example import arguments, save
from torch import Tensor, nn

from pysciml.nn import NeuralCDE, hermite_coefficients


def spirals(count: int, t: Tensor) -> tuple[Tensor, Tensor]:
    """Series (count, m, 3) of time and position, a third missing, and which way they turn."""
    label = (torch.arange(count) % 2).double()
    angle = 6.283 * torch.rand(count, 1) + (2 * label[:, None] - 1) * 4.0 * t
    radius = 1.0 / (1.0 + 0.5 * t)
    place = torch.stack([radius * torch.cos(angle), radius * torch.sin(angle)], -1)
    place = place + 0.05 * torch.randn_like(place)
    place = torch.where(torch.rand_like(place) < 2 / 3, place, torch.nan)
    time = t[None, :, None].expand(count, -1, 1)
    return torch.cat([time, place], -1), label


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Returns the share of new series told apart."""
    args = arguments(__doc__, argv)
    torch.manual_seed(0)
    t = torch.cat([torch.zeros(1), torch.rand(28).sort().values, torch.ones(1)]).double() * 2.0
    count, epochs = (64, 6) if args.quick else (256, 15)
    x, label = spirals(count, t)
    # made once, before training: what a DataLoader serves
    data = torch.utils.data.TensorDataset(hermite_coefficients(x, t), label)
    loader = torch.utils.data.DataLoader(data, batch_size=32, shuffle=True, drop_last=True)

    field = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 8 * 3), nn.Tanh())
    model = NeuralCDE(
        field, channels=3, hidden=8, readout=nn.Linear(8, 1), engine=args.engine, reltol=1e-3,
        abstol=1e-3,
    ).double()  # fmt: skip
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    for epoch in range(epochs):
        total = 0.0
        for coeffs, target in loader:
            optimiser.zero_grad()
            loss = nn.functional.binary_cross_entropy_with_logits(model(coeffs, t)[:, 0], target)
            loss.backward()
            optimiser.step()
            total += float(loss.detach()) / len(loader)
        print(f"epoch {epoch + 1:3d}  loss {total:.3f}")

    x, label = spirals(256, t)
    watch = torch.linspace(0.0, 2.0, 41, dtype=torch.float64)
    with torch.no_grad():
        score = model(hermite_coefficients(x, t), t, saveat=watch)[..., 0]
    right = float(((score[-1] > 0) == (label > 0)).double().mean())
    print(f"{100 * right:.1f} % of new series are told apart")

    figure, (left, middle, after) = plt.subplots(1, 3, figsize=(12.5, 3.8))
    for i, color in ((0, "C0"), (1, "C3")):
        seen = ~torch.isnan(x[i, :, 1:]).any(-1)
        name = "anticlockwise" if label[i] else "clockwise"
        left.plot(x[i, seen, 1], x[i, seen, 2], f"{color}.-", lw=0.6, label=name)
    left.set(title="two series: what is seen of them", aspect="equal")
    left.legend()
    for i in range(40):
        color = "C3" if label[i] else "C0"
        middle.plot(watch, torch.sigmoid(score[:, i]), color, lw=0.6)
    middle.set(xlabel="t", title="probability of anticlockwise, as data come in")
    share = ((score > 0) == (label > 0)).double().mean(1)
    after.plot(watch, 100 * share)
    after.set(xlabel="t", ylabel="% right", title="accuracy as data come in")
    save(figure, args, "cde_classification.png")
    return {"right": right}


if __name__ == "__main__":
    main()
