"""torch.autocast inside of a model's forward: its output is the model's own, its relevance that of float32."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fxlrp
from fxlrp import convert


class Casts(nn.Module):
    """Part of the forward pass under autocast, a part of that without again, and writes within."""

    def __init__(self, on: bool, dtype: torch.dtype = torch.bfloat16) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.norm = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.mix, self.head = nn.Linear(6, 8), nn.Linear(8, 4)
        self.on, self.dtype = on, dtype

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, dtype=self.dtype, enabled=self.on):
            x = self.norm(self.stem(x)).relu_()
            x += 0.1
            with torch.autocast(x.device.type, enabled=False):
                x = x.float().mean((2, 3))
            x = nn.functional.gelu(self.mix(x))
        return self.head(x.float())


@pytest.mark.parametrize(
    ("rules", "dtype"), [*((r, torch.bfloat16) for r in fxlrp.rulebooks()), ("abslrp-hybrid", torch.float16)]
)
def test_autocast_inside(rules: str, dtype: torch.dtype) -> None:
    model, plain = Casts(True, dtype).eval(), Casts(False).eval()
    explainer = convert(model, torch.randn(2, 3, 6, 6), rules=rules)
    x = torch.randn(3, 3, 6, 6)
    a, b = explainer(x, target=1), convert(plain, rules=rules)(x, target=1)
    assert torch.equal(a.output, model(x).detach()), "the model's own, to the bit"
    assert explainer.report().mode.endswith("any size")
    assert a.relevance.dtype is torch.float32
    torch.testing.assert_close(a.relevance, b.relevance, rtol=1e-3, atol=1e-5 * float(b.relevance.abs().max()))
