"""Outputs that are probabilities are explained by the logits they are made of: no map is zero for a low probability."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

import fxlrp
from fxlrp import convert

X = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def body(classes: int, bias: float) -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, classes)).double().eval()
    with torch.no_grad():
        net[2].bias += bias
    return net


HEADS = {
    "sigmoid": nn.Sigmoid(),
    "log sigmoid": nn.LogSigmoid(),
    "softmax": nn.Softmax(1),
    "log softmax": nn.LogSoftmax(-1),
    "by hand": type("ByHand", (nn.Module,), {"forward": lambda self, x: 1 / (1 + torch.exp(-x))})(),
}


@pytest.mark.parametrize("rules", list(fxlrp.rulebooks()))
@pytest.mark.parametrize(("head", "classes"), [("sigmoid", 1), ("sigmoid", 3), ("softmax", 3)])
@pytest.mark.parametrize("bias", [-3.0, 3.0])
def test_probabilities_are_explained_by_logits(head: str, classes: int, bias: float, rules: str) -> None:
    net = body(classes, bias)
    a, b = convert(nn.Sequential(net, HEADS[head]).eval(), rules=rules), convert(net, rules=rules)
    for target in (None, 0):
        found, expected = a(X, target=target, contrast=None), b(X, target=target, contrast=None)
        torch.testing.assert_close(found.relevance, expected.relevance)
        assert found.relevance.any(1).all(), "no map is zero"
        torch.testing.assert_close(found.output, HEADS[head](net(X)).detach())
        torch.testing.assert_close(found.logits, net(X).detach())


@pytest.mark.parametrize("head", list(HEADS))
def test_every_head_is_seen_through(head: str) -> None:
    net = body(3, -1.0)
    a, b = convert(nn.Sequential(net, HEADS[head]).eval()), convert(net)
    against_others = "default" if "softmax" in head else None
    torch.testing.assert_close(a(X, target=1).relevance, b(X, target=1, contrast=against_others).relevance)
    by_score = a(X, target=lambda out: out[:, 2])
    logits = net(X).detach().requires_grad_()
    (v,) = torch.autograd.grad(HEADS[head](logits)[:, 2].sum(), logits)
    torch.testing.assert_close(by_score.relevance, b(X, target=v).relevance)


@pytest.mark.parametrize("head", ["sigmoid", "log sigmoid", "said by its config"])
@pytest.mark.parametrize("rules", list(fxlrp.rulebooks()))
def test_a_label_that_excludes_no_other_is_explained_as_if_it_were_the_only_one(rules: str, head: str) -> None:
    net = body(3, -1.0)
    model = nn.Sequential(net, HEADS[head]).eval() if head in HEADS else net
    if head not in HEADS:
        model.config = SimpleNamespace(problem_type="multi_label_classification")
    explainer = convert(model, rules=rules)
    for k in range(3):
        alone = body(3, -1.0)
        alone[2].weight, alone[2].bias = (nn.Parameter(p[k : k + 1]) for p in (net[2].weight, net[2].bias))
        expected = convert(alone, rules=rules)(X).relevance
        found = explainer(X, target=k)
        torch.testing.assert_close(found.relevance, expected)
        assert found.contrast is None
        torch.testing.assert_close(explainer.joint(X, target=k)(X, torch.full((len(X),), k))[1], expected)
        said = explainer(X, target=k, contrast="others")
        torch.testing.assert_close(said.relevance, convert(net, rules=rules)(X, target=k, contrast="others").relevance)


def test_masks_of_pixels_too() -> None:
    class Segments(nn.Module):
        def __init__(self, sigmoid: bool) -> None:
            super().__init__()
            torch.manual_seed(1)
            self.conv, self.sigmoid = nn.Conv2d(3, 2, 3, padding=1), sigmoid

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x) - 2
            return x.sigmoid() if self.sigmoid else x

    x = torch.randn(2, 3, 6, 6)
    a = convert(Segments(True).eval(), rules="abslrp-hybrid")(x, target=lambda out: out[:, 0, 2, 2].logit())
    b = convert(Segments(False).eval(), rules="abslrp-hybrid")(x, target=lambda out: out[:, 0, 2, 2])
    torch.testing.assert_close(a.relevance, b.relevance)
