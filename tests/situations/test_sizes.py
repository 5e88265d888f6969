"""Pictures of any size go through one graph, and are explained as by a graph of their own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxlrp import convert
from fxlrp.capture import symbols


class Net(nn.Module):
    """A convolution, what `between` does, and a head; pooled to one place, or to three by three."""

    def __init__(self, between: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.between, places = between, 3 if between == "pooled" else 1
        self.a, self.norm = nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6)
        self.b, self.pool = nn.Conv2d(6, 6, 3), nn.AdaptiveAvgPool2d(places)
        self.head = nn.Linear(6 * places**2, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.a(x)).relu()
        if self.between == "upsampled":
            h = h + F.interpolate(F.max_pool2d(h, 2), size=h.shape[-2:], mode="bilinear")
        if self.between == "branch" and x.shape[2] > 20:
            h = F.max_pool2d(h, 2)
        for _ in range(4 if self.between == "padded" else 0):  # "same" padding, with a stride of 2
            short = [max((-(-size // 2) - 1) * 2 + 3 - size, 0) for size in h.shape[-2:]]
            h = F.pad(h, (short[1] // 2, short[1] - short[1] // 2, short[0] // 2, short[0] - short[0] // 2))
            h = F.conv2d(h, self.b.weight, stride=2)
        return self.head(self.pool(h if self.between == "padded" else self.b(h)).flatten(1))


SIZES = [(2, 16, 16), (1, 22, 22), (2, 18, 30), (3, 31, 17)]


@pytest.mark.parametrize("rules", ["abslrp-hybrid", "abslrp", "epsilon-plus-flat", "epsilon-gamma-box"])
@pytest.mark.parametrize("between", ["pooled", "upsampled", "branch", "padded"])
def test_every_size_is_explained_as_by_a_graph_of_its_own(between: str, rules: str) -> None:
    model = Net(between).double().eval()
    explainer = convert(model, rules=rules)
    plans = []
    for batch, height, width in SIZES:
        x = torch.randn(batch, 3, height, width, dtype=torch.float64)
        a, alone = explainer(x, target=1), convert(model, rules=rules)(x, target=1)
        torch.testing.assert_close(a.output, model(x))
        torch.testing.assert_close(a.relevance, alone.relevance)
        plans.append(explainer.latest)
    one_for_all = plans[1] is plans[2] is plans[3]
    assert one_for_all == (between in ("pooled", "upsampled"))


@pytest.mark.parametrize("longest", [symbols.LONGEST, pytest.param(1000, marks=pytest.mark.whole)])
def test_sizes_that_become_long_expressions_are_fixed(longest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With four such layers torch would manage yet; with twenty it takes an hour."""
    monkeypatch.setattr(symbols, "LONGEST", longest)
    explainer = convert(Net("padded").eval())
    plans = []
    for size in (16, 22, 28):
        explainer(torch.randn(2, 3, size, size))
        plans.append(explainer.latest)
    assert (plans[1] is plans[2]) == (longest == 1000)
