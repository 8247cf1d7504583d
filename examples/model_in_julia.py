"""A model written in Julia, fitted with torch: ``python examples/model_in_julia.py``."""

import torch

import pysciml as ps

pendulum = ps.julia_function("""
function (du, u, p, t)
    du[1] = u[2]
    du[2] = -p[1] * sin(u[1]) - p[2] * u[2]
end
""")
u0, ts = torch.tensor([1.0, 0.0], dtype=torch.float64), torch.linspace(0, 3, 31)


def angles(p: torch.Tensor) -> torch.Tensor:
    prob = ps.ODEProblem(pendulum, u0, (0.0, 3.0), p)
    return ps.solve(prob, ps.Tsit5(), engine="julia", saveat=ts, reltol=1e-8).u[:, 0]


data = angles(torch.tensor([9.81, 0.3], dtype=torch.float64))
p = torch.tensor([8.0, 0.1], dtype=torch.float64, requires_grad=True)
optimiser = torch.optim.Adam([p], lr=0.1)
for _ in range(200):
    optimiser.zero_grad()
    ((angles(p) - data) ** 2).sum().backward()
    optimiser.step()
print(f"gravity over length {p[0].item():.4f}, friction {p[1].item():.4f}")
