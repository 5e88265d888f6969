"""# A table of features

A network learns y = x₀ · x₁ + x₂ of eight features; the bars say which count for a sample.
"""

import torch
from torch import nn

import fxlrp

torch.manual_seed(0)
x = torch.randn(512, 8)
y = (x[:, 0] * x[:, 1] + x[:, 2])[:, None]
net = nn.Sequential(nn.Linear(8, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 1))
optimizer = torch.optim.Adam(net.parameters(), 1e-2)
for _ in range(300):
    optimizer.zero_grad()
    loss = (net(x) - y).square().mean()
    loss.backward()
    optimizer.step()

names = [f"x{i}" for i in range(8)]
a = fxlrp.explain(net.eval(), x[:64])
share = a.relevance.abs().sum(0) / a.relevance.abs().sum()
print({name: f"{part:.0%}" for name, part in zip(names, share.tolist(), strict=True)})
assert share[:3].sum() > 0.7  # the three that count
a.to_html("out/recipes/tabular.html", features=names)
a.plot(features=names).savefig("out/recipes/tabular.png")
