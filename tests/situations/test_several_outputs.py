"""A target may be a score of several outputs: all of them are explained together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxlrp import FxlrpError, convert

BOOKS = ("abslrp", "abslrp-hybrid", "epsilon", "gradient-input")
A, B, C = torch.randn(3, 3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Twins(nn.Module):
    """One network for every input; or, as `joined`, all of what it returns beside each other."""

    def __init__(self, joined: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
        self.joined = joined

    def forward(self, *xs: Tensor) -> Any:
        out = [self.net(x) for x in xs]
        return torch.cat(out, 1) if self.joined else tuple(out)


SCORES: dict[str, tuple[tuple[Tensor, ...], Callable[..., Tensor]]] = {
    "siamese": ((A, B), F.cosine_similarity),
    "distance": ((A, B), lambda a, b: -(a - b).norm(dim=1)),
    "triplet": ((A, B, C), lambda a, b, c: (a - b).pow(2).sum(1) - (a - c).pow(2).sum(1)),
}


@pytest.mark.parametrize("rules", BOOKS)
@pytest.mark.parametrize("name", list(SCORES))
def test_a_score_of_several_outputs(name: str, rules: str) -> None:
    xs, score = SCORES[name]
    model, joined = Twins().double().eval(), Twins(joined=True).double().eval()
    explainer = convert(model, rules=rules)
    a = explainer(*xs, target=lambda out: score(*out))
    assert len(a.relevance) == len(xs)
    assert all(r.flatten(1).any() for r in a.relevance)
    expected = convert(joined, rules=rules)(*xs, target=lambda out: score(*out.split(4, 1)))
    torch.testing.assert_close(a.relevance, expected.relevance)
    torch.testing.assert_close(a.output, tuple(y.detach() for y in model(*xs)))
    alone = explainer(*(x[1:2] for x in xs), target=lambda out: score(*out))
    torch.testing.assert_close([r[0] for r in alone.relevance], [r[1] for r in a.relevance])
    if rules == "gradient-input":
        leaves = [x.clone().requires_grad_() for x in xs]
        grads = torch.autograd.grad(score(*model(*leaves)).sum(), leaves)
        torch.testing.assert_close(list(a.relevance), [x * g for x, g in zip(xs, grads, strict=True)])


def test_what_the_score_depends_on_is_explained() -> None:
    model = Twins().double().eval()
    explainer, second = convert(model), convert(model, output=1)
    found, expected = (e(A, B, target=lambda out: out[1][:, 2]) for e in (explainer, second))
    torch.testing.assert_close(found.relevance, expected.relevance)
    assert list(found.named) == ["1"]
    first = explainer(A, B, target=lambda out: out[0][:, 2])
    assert list(first.named) == ["0"]
    report = explainer.report(A, B, target=lambda out: F.cosine_similarity(*out))
    assert report.edges


class Shapes(nn.Module):
    """A map beside a score of each picture, and their mean over the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(2, 3, 3), nn.Linear(3, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.conv(x).relu()
        score = self.head(y.mean((2, 3))).squeeze(1)
        return {"map": y, "score": score, "loss": score.mean()}


def test_outputs_of_any_shape() -> None:
    model, x = Shapes().double().eval(), torch.randn(2, 2, 5, 5, dtype=torch.float64)

    def score(out: dict[str, Tensor]) -> Tensor:
        return out["map"][:, 1, 2, 2] * out["score"]

    explainer = convert(model, rules="gradient-input")
    leaf = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(score(model(leaf)).sum(), leaf)
    torch.testing.assert_close(explainer(x, target=score).relevance, x * grad)
    with pytest.raises(FxlrpError, match="no axis of samples in common"):
        explainer(x, target=lambda out: out["score"] + out["loss"])
    with pytest.raises(FxlrpError, match="depends on no output"):
        explainer(x, target=lambda out: out["score"].detach().exp())
