"""A forward that takes derivatives is refused with a way out, which works."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fxlrp import FxlrpError, convert

X = torch.randn(2, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Force(nn.Module):
    def __init__(self, way: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.energy = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1)).double()
        self.way = way

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "func":
            return torch.func.vmap(torch.func.grad(lambda v: self.energy(v).sum()))(x)
        if self.way == "beside":
            return x + torch.func.grad(lambda v: self.energy(v).sum())(x)
        with torch.enable_grad():
            x = x if x.requires_grad else x.requires_grad_(True)
            return torch.autograd.grad(self.energy(x).sum(), x, create_graph=True)[0]


@pytest.mark.parametrize(
    ("way", "said"), [("func", "torch.func"), ("beside", "torch.func"), ("autograd", "torch.autograd.grad")]
)
def test_derivatives_inside(way: str, said: str) -> None:
    model = Force(way).eval()
    with pytest.raises(FxlrpError, match=said):
        convert(model)(X)
    assert convert(model.energy)(X).relevance.any(1).all()
