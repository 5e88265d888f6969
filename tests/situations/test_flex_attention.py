"""flex_attention is explained as the attention it computes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxlrp import convert, rulebooks

flex = pytest.importorskip("torch.nn.attention.flex_attention")
pytestmark = pytest.mark.filterwarnings("ignore")
X = torch.randn(3, 5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Attending(nn.Module):
    """One layer of attention, by flex_attention or `plain`."""

    def __init__(self, kind: str, plain: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        width = 8 if kind == "grouped" else 16
        self.q, self.k, self.v, self.head = nn.Linear(8, 16), nn.Linear(8, width), nn.Linear(8, width), nn.Linear(16, 4)
        self.bias = nn.Parameter(torch.randn(4, 10))
        self.kind, self.plain = kind, plain

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (-1, 4)).transpose(1, 2) for f in (self.q, self.k, self.v))
        out = self.by_hand(q, k, v) if self.plain else self.by_flex(q, k, v)
        return self.head(out.transpose(1, 2).flatten(2)[:, -1])

    def by_flex(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        mods = {
            "biased": lambda score, b, h, i, j: score + self.bias[h, i - j + 5],
            "capped": lambda score, b, h, i, j: 2 * torch.tanh(score / 2),
        }
        masks = {"causal": lambda b, h, i, j: i >= j, "before": lambda b, h, i, j: i > j}  # the first row sees nothing
        mask = masks.get(self.kind)
        block = mask and flex.create_block_mask(mask, None, None, 5, 5, device="cpu")
        return flex.flex_attention(
            q, k, v, score_mod=mods.get(self.kind), block_mask=block, enable_gqa=self.kind == "grouped"
        )

    def by_hand(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        at = torch.arange(5)
        if self.kind == "grouped":
            k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
        if self.kind == "capped":
            return (2 * torch.tanh(q @ k.mT / 2 / 2)).softmax(-1) @ v
        masks = {
            "biased": lambda: self.bias[:, at[:, None] - at + 5],
            "causal": lambda: at[:, None] >= at,
            "before": lambda: at[:, None] > at,
        }
        return F.scaled_dot_product_attention(q, k, v, attn_mask=masks.get(self.kind, lambda: None)())


def check(kind: str, rules: str, off: float = 1e-8) -> None:
    model, plain = (Attending(kind, by_hand).double().eval() for by_hand in (False, True))
    explainer = convert(model, rules=rules)
    a = explainer(X, target=1)
    with torch.no_grad():
        torch.testing.assert_close(a.output, model(X))
    assert a.relevance.isfinite().all()
    assert a.relevance.any()
    if not rules.startswith("abslrp-20"):  # which go by reshapes, too
        b = convert(plain, rules=rules)(X, target=1)
        torch.testing.assert_close(a.relevance, b.relevance, rtol=0, atol=off * float(b.relevance.abs().max()))
    one = explainer(X[1:2], target=1).relevance
    torch.testing.assert_close(one, a.relevance[1:2], rtol=0, atol=1e-8 * float(a.relevance.abs().max()))


@pytest.mark.parametrize("kind", ["all", "biased", "capped", "causal", "before", "grouped"])
def test_as_attention(kind: str) -> None:
    check(kind, "gradient-input")


@pytest.mark.every(2)
@pytest.mark.parametrize("rules", sorted(rulebooks()))
def test_by_every_rulebook(rules: str) -> None:
    check("causal", rules, off=1e-3)  # stabilisers of 1e-6 stand before a scale here, and behind it there
