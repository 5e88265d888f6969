"""# A module of your own

`fxlrp.convert` takes any module in eval mode; the explainer is called as the module is.
"""

import torch
from torch import nn

import fxlrp


class Gated(nn.Module):
    """Nothing that any library knows."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.head = nn.Linear(6, 16), nn.Linear(6, 16), nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.left(x).tanh() * self.right(x).sigmoid())


torch.manual_seed(0)
explainer = fxlrp.convert(Gated().eval())
a = explainer(torch.randn(4, 6), target=2)
print(a.relevance.shape)
print(explainer.report())  # which rule each op has
a.plot(features=["height", "width", "depth", "weight", "age", "price"]).savefig("out/recipes/own_module.png")
