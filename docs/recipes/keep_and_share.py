"""# Explain on a cluster, look on a laptop

An attribution is saved whole (no pickle), and read again where there is no model.
"""

import torch
from torch import nn

import fxlrp

torch.manual_seed(0)
net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)).eval()
a = fxlrp.explain(net, torch.rand(2, 3, 24, 24), labels=["cat", "dog", "owl"], at=["0"])
a.save("out/recipes/two.safetensors")

b = fxlrp.load("out/recipes/two.safetensors")
print(b)
assert torch.equal(a.relevance, b.relevance)
b.save("out/recipes/two.csv")  # numbers for other programs
b.save("out/recipes/two.html", index=1)
