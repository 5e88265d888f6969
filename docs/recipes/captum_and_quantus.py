"""# With captum and Quantus

`fxlrp.adapters` offers any rulebook as a captum attribution and as a Quantus explanation function.
"""

import torch
from torch import nn

import fxlrp
from fxlrp.adapters.captum import FxLRP

torch.manual_seed(0)
net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 5)).eval()
x = torch.rand(2, 3, 16, 16)

method = FxLRP(net, rules="epsilon-plus")
maps = method.attribute(x, target=3)
assert maps.shape == x.shape
torch.testing.assert_close(maps, fxlrp.convert(net, rules="epsilon-plus")(x, target=3).relevance)
fxlrp.explain(net, x, target=3, rules="epsilon-plus").save("out/recipes/captum.png")
