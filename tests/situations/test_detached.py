"""What stops training stops no relevance, however it is written: x.detach(), x.data, torch.no_grad()."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fxlrp import convert

X = torch.randn(3, 6, generator=torch.Generator().manual_seed(0)).double()


def without_grad(x: Tensor) -> Tensor:
    with torch.no_grad():
        return x * 1


STOPS: dict[str, Callable[[Tensor], Tensor]] = {
    "detach": lambda x: x.detach(),
    "data": lambda x: x.data,
    "no_grad": without_grad,
}


class Net(nn.Module):
    def __init__(self, stop: Callable[[Tensor], Tensor], how: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.head, self.stop, self.how = nn.Linear(6, 8), nn.Linear(8, 3), stop, how

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "input":
            x = self.stop(x)
        y = self.first(x).relu()
        if self.how == "middle":
            y = self.stop(y)
        if self.how == "written":
            y = y.clone()
            self.stop(y)[:, :2] = 1
        if self.how == "rounded":
            y = y + self.stop(y.round() - y)
        if self.how == "weight":
            return nn.functional.linear(y, self.stop(self.head.weight), self.head.bias)
        return self.head(y)


@pytest.mark.parametrize("rules", ["abslrp-hybrid", "epsilon", "gradient-input"])
@pytest.mark.parametrize("how", ["input", "middle", "written", "rounded", "weight"])
@pytest.mark.parametrize("name", ["data", "no_grad"])
def test_as_detached(name: str, how: str, rules: str) -> None:
    if (name, how) == ("no_grad", "written"):
        pytest.skip("a copy is written to")
    model, other = Net(STOPS[name], how).double().eval(), Net(STOPS["detach"], how).double().eval()
    explainer = convert(model, rules=rules)
    a, b = explainer(X, target=1), convert(other, rules=rules)(X, target=1)
    assert "any size" in explainer.report().mode
    torch.testing.assert_close(a.output, model(X).detach())
    torch.testing.assert_close(a.relevance, b.relevance, rtol=1e-9, atol=1e-12)
    assert a.relevance.any()
