"""Entries picked by a mask that the model keeps or makes: how many they are is known only when it runs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fxlrp import convert

BOOKS = ("abslrp", "abslrp-hybrid", "epsilon", "gradient-input")
KEPT = torch.tensor([False, True, True, False, True, True])
PLACES = torch.tensor([1, 2, 4, 5])
Pick = Callable[["Picking", Tensor], Tensor]

PICKS: dict[str, Pick] = {
    "mask": lambda m, y: y[..., m.kept],
    "made": lambda m, y: y[..., torch.arange(6) % 3 != 0],
    "select": lambda m, y: y.masked_select(m.kept).view(-1, 4),
    "nonzero": lambda m, y: y.index_select(-1, m.kept.nonzero()[:, 0]),
    "where": lambda m, y: y[:, torch.where(m.kept)[0]],
}
THEN: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda v: v.softmax(-1) * v,
    "sums": lambda v: v.cumsum(-1),
    "norm": lambda v: nn.functional.layer_norm(v, (4,)),
    "sorted": lambda v: v.sort(-1).values,
    "attention": lambda v: ((v[:, None] * v[..., None]).softmax(-1) @ v[..., None])[..., 0],
}


class Picking(nn.Module):
    def __init__(self, pick: Pick, then: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.pick, self.then = pick, then
        self.first, self.head = nn.Linear(6, 6), nn.Linear(4, 3)
        self.register_buffer("kept", KEPT)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.then(self.pick(self, self.first(x))))


X = torch.randn(3, 6, generator=torch.Generator().manual_seed(1)).double()


@pytest.mark.parametrize("rules", BOOKS)
@pytest.mark.parametrize(
    ("pick", "then"), [*((p, "softmax") for p in PICKS), *(("mask", t) for t in THEN if t != "softmax")]
)
def test_as_by_their_places(pick: str, then: str, rules: str) -> None:
    model = Picking(PICKS[pick], THEN[then]).double().eval()
    written = Picking(lambda m, y: y.index_select(-1, PLACES), THEN[then]).double().eval()
    explainer, expected = convert(model, rules=rules), convert(written, rules=rules)(X)
    a = explainer(X)
    torch.testing.assert_close(a.output, model(X).detach())
    torch.testing.assert_close(a.relevance, expected.relevance, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(explainer(X[1:2]).relevance, a.relevance[1:2], rtol=1e-9, atol=1e-12)
    kept_little = convert(model, rules=rules, checkpoint=True)(X)
    torch.testing.assert_close(kept_little.relevance, a.relevance, rtol=1e-9, atol=1e-12)


def test_a_sequence_as_long_as_a_mask_says() -> None:
    class Steps(Picking):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.pick(self, self.first(x))[..., None].expand(-1, -1, 4))

    model = Steps(PICKS["mask"], THEN["softmax"]).double().eval()
    a = convert(model, rules="gradient-input")(X, position=1, target=2, contrast=None)
    x = X.clone().requires_grad_()
    (g,) = torch.autograd.grad(model(x)[:, 1, 2].sum(), x)
    torch.testing.assert_close(a.relevance, x.detach() * g)
