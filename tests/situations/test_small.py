"""Small things that a call or a network may have: empty batches, axes squeezed out, ops that are rare."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxlrp import convert

BOOKS = ("abslrp", "abslrp-hybrid", "epsilon", "gradient-input")
X = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
Body = Callable[[nn.Module, Tensor], Tensor]


class Net(nn.Module):
    def __init__(self, f: Body) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.f = f
        self.linear, self.conv, self.head = nn.Linear(6, 8), nn.Conv1d(2, 3, 2), nn.Linear(8, 4)
        self.adaptive = nn.AdaptiveLogSoftmaxWithLoss(8, 12, [4, 8])
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.f(self, x)


# what is explained, and the same in other words
PAIRS: dict[str, tuple[Body, Body]] = {
    "rrelu": (lambda m, x: m.head(F.rrelu(m.linear(x))), lambda m, x: m.head(F.leaky_relu(m.linear(x), 11 / 48))),
    "heaviside": (
        lambda m, x: m.head((y := m.linear(x)) * torch.heaviside(y, torch.zeros(1).double())),
        lambda m, x: m.head(m.linear(x).relu()),
    ),
    "quantile": (
        lambda m, x: m.head(m.linear(x).quantile(2 / 7, 1, keepdim=True).expand(-1, 8)),
        lambda m, x: m.head(m.linear(x).kthvalue(3, 1, keepdim=True)[0].expand(-1, 8)),
    ),
}


@pytest.mark.parametrize("rules", BOOKS)
@pytest.mark.parametrize("name", list(PAIRS))
def test_rare_ops(name: str, rules: str) -> None:
    found, expected = (convert(Net(f).eval(), rules=rules)(X, target=1) for f in PAIRS[name])
    torch.testing.assert_close(found.output, expected.output)
    torch.testing.assert_close(found.relevance, expected.relevance, atol=1e-4, rtol=1e-4)  # by ε once more
    assert found.relevance.any()


CLASSES = torch.tensor([1, 3, 0])
WEIGHTS = torch.tensor([0.2, 0.5, 0.3, 1.0]).double()
LOSSES: dict[str, tuple[Body, Body]] = {
    "cross entropy": (
        lambda m, x: F.cross_entropy(m.head(m.linear(x)), CLASSES, reduction="none"),
        lambda m, x: -m.head(m.linear(x)).log_softmax(1).gather(1, CLASSES[:, None])[:, 0],
    ),
    "with weights": (
        lambda m, x: F.cross_entropy(m.head(m.linear(x)), CLASSES, WEIGHTS, reduction="none"),
        lambda m, x: -(m.head(m.linear(x)).log_softmax(1) * WEIGHTS).gather(1, CLASSES[:, None])[:, 0],
    ),
    "of maps": (
        lambda m, x: F.nll_loss(
            m.head(m.linear(x)).log_softmax(1)[..., None, None], CLASSES.view(-1, 1, 1), reduction="none"
        )[:, 0, 0],
        lambda m, x: -m.head(m.linear(x)).log_softmax(1).gather(1, CLASSES[:, None])[:, 0],
    ),
}


@pytest.mark.parametrize("rules", BOOKS)
@pytest.mark.parametrize("name", list(LOSSES))
def test_a_loss_is_explained_as_it_is_written_out(name: str, rules: str) -> None:
    found, expected = (convert(Net(f).eval(), rules=rules)(X) for f in LOSSES[name])
    torch.testing.assert_close(found.output, expected.output)
    torch.testing.assert_close(found.relevance, expected.relevance, rtol=1e-5, atol=1e-5)  # by ε once more or less
    assert found.relevance.any(1).all()


@pytest.mark.parametrize("rules", BOOKS)
def test_a_quantile_between_two_values(rules: str) -> None:
    a = convert(Net(lambda m, x: m.head(m.linear(x).quantile(0.3, 1, keepdim=True) * m.linear(x))).eval(), rules=rules)(
        X
    )
    assert a.relevance.isfinite().all()
    assert a.relevance.any(1).all()


@pytest.mark.filterwarnings("ignore::fxlrp.NoRelevance")
@pytest.mark.parametrize("rules", BOOKS)
def test_adaptive_softmax(rules: str) -> None:
    """Its clusters are layers without a bias, and may be without rows."""
    model = Net(lambda m, x: m.adaptive.log_prob(m.linear(x))).eval()
    a = convert(model, rules=rules)(X, target=9, contrast=None)
    torch.testing.assert_close(a.output, model(X).detach())
    assert a.relevance.isfinite().all()
    assert rules == "abslrp" or a.relevance.any(1).all()  # which gives nothing to summands that are all below zero
    if rules == "gradient-input":
        leaf = X.clone().requires_grad_()
        (grad,) = torch.autograd.grad(model(leaf)[:, 9].sum(), leaf)
        torch.testing.assert_close(a.relevance, X * grad)


@pytest.mark.parametrize("rules", BOOKS)
@pytest.mark.parametrize("first", ["empty", "full"])
def test_an_empty_batch(first: str, rules: str) -> None:
    def f(m: nn.Module, x: Tensor) -> Tensor:
        return m.conv(m.linear(x).relu().unflatten(1, (2, 4))).flatten(1)

    explainer = convert(Net(f).eval(), rules=rules)
    full = explainer(X) if first == "full" else None
    for target in (None, 1, [1, 2], lambda out: out[:, 0]):
        a = explainer(X[:0], target=target)
        assert a.relevance.shape == ((0, 2, 6) if isinstance(target, list) else (0, 6))
        assert a.output.shape == (0, 9)
    if full is not None:
        torch.testing.assert_close(explainer(X).relevance, full.relevance)


@pytest.mark.parametrize("rules", BOOKS)
def test_an_axis_of_one_is_squeezed_out(rules: str) -> None:
    """Of one sample too; whatever came before."""
    scores = convert(Net(lambda m, x: m.head(m.linear(x))[:, :1].squeeze()).eval(), rules=rules)
    logits = convert(Net(lambda m, x: m.head(m.linear(x).relu()).squeeze()).eval(), rules=rules)
    several, one = scores(X), scores(X[:1])
    torch.testing.assert_close(one.relevance[0], several.relevance[0])
    assert one.output.shape == ()
    torch.testing.assert_close(scores(X[:1], target=lambda out: out).relevance, scores(X[:1], target=0).relevance)
    for x in (X[:1], X, X[:1]):
        a = logits(x, target=2)
        torch.testing.assert_close(a.relevance[0], logits(X, target=2).relevance[0])
    total = convert(Net(lambda m, x: m.head(m.linear(x)).sum()).eval(), rules=rules)
    assert total(X, target=lambda out: out).relevance.shape == X.shape


@pytest.mark.parametrize("rules", BOOKS)
def test_what_an_op_consists_of_may_depend_on_values(rules: str) -> None:
    """Then it is explained as a whole: CTC's loss, whose lengths are in a tensor."""

    class Speech(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.linear = nn.Linear(4, 5).double()

        def forward(self, x: Tensor, texts: Tensor, lengths: Tensor) -> Tensor:
            scores, whole = self.linear(x).log_softmax(-1).transpose(0, 1), torch.full_like(lengths, x.shape[1])
            return -F.ctc_loss(scores, texts, whole, lengths, reduction="none")

    model, x, texts = Speech().eval(), torch.randn(2, 7, 4).double(), torch.tensor([[1, 2, 3], [2, 2, 4]])
    lengths = torch.tensor([3, 2])
    explainer = convert(model, rules=rules)
    a = explainer(x, texts, lengths)
    torch.testing.assert_close(a.output, model(x, texts, lengths).detach())
    assert a.relevance.isfinite().all()
    assert a.relevance.flatten(1).any(1).all()
    torch.testing.assert_close(explainer(x[1:], texts[1:], lengths[1:]).relevance, a.relevance[1:])
    if rules == "gradient-input":
        x.requires_grad_()
        (grad,) = torch.autograd.grad(model(x, texts, lengths).sum(), x)
        torch.testing.assert_close(a.relevance, (x * grad).detach())
