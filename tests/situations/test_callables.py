"""Callable targets: a score of each sample, one number about all of them, and what fits no sample alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fxlrp import FxlrpError, convert
from tests.conftest import randomize

BOOKS = ("abslrp", "abslrp-hybrid", "epsilon", "gradient-input")
X, Y = torch.randn(2, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def net() -> nn.Module:
    torch.manual_seed(0)
    return randomize(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)))


class Prototypes(nn.Module):
    """Distances of queries to the means of what all of them share."""

    def __init__(self) -> None:
        super().__init__()
        self.net = net()

    def forward(self, support: Tensor, queries: Tensor) -> Tensor:
        means = self.net(support).view(3, 2, 4).mean(1)
        return -((self.net(queries)[:, None] - means) ** 2).sum(2)


@pytest.mark.parametrize("rules", BOOKS)
def test_one_number_of_a_batch(rules: str) -> None:
    explainer = convert(net(), rules=rules)
    a, alone = explainer(X, target=lambda out: out[1, 2]), explainer(X[1:2], target=lambda out: out[0, 2])
    torch.testing.assert_close(a.relevance[1:2], alone.relevance)
    assert not a.relevance[[0, *range(2, 6)]].any()


@pytest.mark.parametrize("rules", BOOKS)
def test_one_number_where_samples_share_an_input(rules: str) -> None:
    model = Prototypes().eval()
    a = convert(model, rules=rules)(X, Y[:4], target=lambda out: out[1, 2])
    alone = convert(model, rules=rules)(X, Y[1:2], target=lambda out: out[0, 2])
    torch.testing.assert_close(a.relevance[0], alone.relevance[0])
    torch.testing.assert_close(a.relevance[1][1:2], alone.relevance[1])


def test_scores_that_depend_on_other_samples_are_refused() -> None:
    explainer = convert(net(), rules="gradient-input")

    def beside(out: Tensor) -> Tensor:
        return out[:, 1] - out[:, 1].mean()

    with pytest.raises(FxlrpError, match=r"depends on other samples.*\[0\]"):
        explainer(X, target=beside)
    leaf = X.clone().requires_grad_()
    (grad,) = torch.autograd.grad(beside(net()(leaf))[0], leaf)
    torch.testing.assert_close(explainer(X, target=lambda out: beside(out)[0]).relevance, X * grad)


class Exit(nn.Module):
    """Leaves early when one sample of the batch is sure."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.early, self.late = nn.Linear(6, 3), nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))

    def forward(self, x: Tensor) -> Tensor:
        early = self.early(x)
        return early if early.softmax(-1).max() > 0.6 else self.late(x)


@pytest.mark.parametrize("rules", BOOKS)
def test_a_branch_that_the_batch_decides(rules: str) -> None:
    model = randomize(Exit())
    sure = model.early(X).softmax(-1).amax(-1) > 0.6
    assert sure.any()
    assert not sure.all()
    a = convert(model, rules=rules)(X, target=1)
    torch.testing.assert_close(a.relevance, convert(model.early, rules=rules)(X, target=1).relevance)
    torch.testing.assert_close(a.output, model(X).detach())


def test_the_target_that_was_found_is_taken() -> None:
    scores = nn.Sequential(nn.Linear(6, 1), nn.Flatten(0)).double().eval()
    explainer = convert(scores)
    a = explainer(X)
    torch.testing.assert_close(explainer(X, target=a.target).relevance, a.relevance)
    with pytest.raises(FxlrpError, match="shape"):
        explainer(X, target=torch.ones(6, dtype=torch.long))
