"""Handwritten digits told apart by a layer that is a fixed point (needs scikit-learn).

python examples/equilibrium_digits.py [--engine julia] [--quick]
"""

import matplotlib.pyplot as plt
import torch
from _example import arguments, save
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from pysciml import nn as pn

WIDTH = 48


class Cell(nn.Module):
    """``z -> tanh(W z + U x)``, W of norm 1 at most, so that there is one fixed point."""

    def __init__(self):
        super().__init__()
        self.inner = spectral_norm(nn.Linear(WIDTH, WIDTH, bias=False))
        self.outer = nn.Linear(64, WIDTH)

    def forward(self, z, x):
        return torch.tanh(0.9 * self.inner(z) + self.outer(x))


def data():
    digits = load_digits()
    x = torch.tensor(digits.data / 16.0, dtype=torch.float32)
    y = torch.tensor(digits.target)
    order = torch.randperm(len(x))
    return x[order[:1297]], y[order[:1297]], x[order[1297:]], y[order[1297:]]


def main(argv=None):
    args = arguments(__doc__, argv)
    torch.manual_seed(0)
    epochs = 6 if args.quick else 30
    x, y, unseen_x, unseen_y = data()
    layer = pn.DeepEquilibrium(Cell(), WIDTH, tol=1e-4, engine=args.engine)
    model = nn.Sequential(layer, nn.Linear(WIDTH, 10))
    optimiser = torch.optim.Adam(model.parameters(), lr=0.005)
    right, iterations = [], []
    for _ in range(epochs):
        model.train()
        for rows in torch.randperm(len(x)).split(100):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
            optimiser.step()
        model.eval()
        with torch.no_grad():
            right.append((model(unseen_x).argmax(1) == unseen_y).float().mean().item())
        iterations.append(layer.iterations)

    # the same fixed points as the rest of dz/dt = f(z, x) - z, by the ODE solver
    flow = pn.DeepEquilibrium(layer.f, WIDTH, solver="ode", tol=1e-4, engine=args.engine)
    with torch.no_grad():
        z, rest = layer(unseen_x[:20]), flow(unseen_x[:20])
        said = model(unseen_x).argmax(1)
    gap = float((z - rest).abs().max())
    print(f"right: {right[-1]:.1%} of {len(unseen_x)} unseen digits; gap to the rest {gap:.1e}")

    figure = plt.figure(figsize=(12, 3.6))
    curve = figure.add_axes((0.06, 0.15, 0.26, 0.75))
    curve.plot(range(1, epochs + 1), right)
    curve.set(xlabel="epoch", title="share of unseen digits told right")
    count = figure.add_axes((0.38, 0.15, 0.22, 0.75))
    count.plot(range(1, epochs + 1), iterations, color="tab:orange")
    count.set(xlabel="epoch", title="iterations to the fixed point", ylim=(0, None))
    wrong = (said != unseen_y).nonzero()[:, 0].tolist()
    shown = wrong[:6] + list(range(12 - len(wrong[:6])))
    for k, i in enumerate(shown):
        ax = figure.add_axes((0.64 + 0.058 * (k % 6), 0.52 - 0.42 * (k // 6), 0.052, 0.36))
        ax.imshow(unseen_x[i].reshape(8, 8).numpy(), cmap="gray_r")
        color = "tab:green" if said[i] == unseen_y[i] else "tab:red"
        ax.set_title(f"{said[i]}", color=color)
        ax.axis("off")
    save(figure, args, "equilibrium_digits.png")
    return {"right": right[-1], "gap": gap}


if __name__ == "__main__":
    main()
