"""Rounding, quantising and straight-through estimators pass relevance on."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fxlrp
from fxlrp import convert

BOOKS = ["abslrp", "abslrp-hybrid", "epsilon", "zplus", "attnlrp", "gradient-input"]
X = torch.randn(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Two layers with a function between them."""

    def __init__(self, q: Callable[[Tensor], Tensor], bias: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.q = nn.Linear(6, 10, bias).double(), nn.Linear(10, 4, bias).double(), q

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.q(self.a(x)))


def rounded(steps: float, round: Callable[[Tensor], Tensor] = torch.round) -> Callable[[Tensor], Tensor]:
    return lambda y: round(y * steps) / steps


def without_gradient(q: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def estimate(y: Tensor) -> Tensor:
        with torch.no_grad():
            error = q(y) - y
        return y + error

    return estimate


def straight_through(q: Callable[[Tensor], Tensor]) -> dict[str, Callable[[Tensor], Tensor]]:
    """The ways in which these are written."""
    return {
        "of the error": lambda y: y + (q(y) - y).detach(),
        "the other way": lambda y: (q(y) - y).detach() + y,
        "less the error": lambda y: y - (y - q(y)).detach(),
        "parts": lambda y: q(y).detach() + y - y.detach(),
        "hard less soft": lambda y: q(y) - y.detach() + y,
        "no_grad": without_gradient(q),
    }


STEPS = {
    "round": torch.round,
    "floor": torch.floor,
    "ceil": torch.ceil,
    "trunc": torch.trunc,
    "floor_divide": lambda y: torch.div(y, 1, rounding_mode="floor"),
}
FINE = 2.0**14


@pytest.mark.parametrize("rules", BOOKS)
@pytest.mark.parametrize("step", [*STEPS, *straight_through(torch.round)])
def test_fine_steps_are_as_none(step: str, rules: str) -> None:
    if rules == "gradient-input" and step in STEPS:
        pytest.skip("its gradient is zero, and so is the map")
    q = rounded(FINE, STEPS[step]) if step in STEPS else straight_through(rounded(FINE))[step]
    model, plain = Net(q).eval(), Net(nn.Identity()).eval()
    a, b = convert(model, rules=rules)(X, target=1), convert(plain, rules=rules)(X, target=1)
    torch.testing.assert_close(a.output, model(X).detach())
    torch.testing.assert_close(a.relevance, b.relevance, rtol=0, atol=2e-3 * float(b.relevance.abs().max()))


@pytest.mark.parametrize("step", [*straight_through(torch.round), "round", "sign"])
def test_coarse_steps_lose_nothing(step: str) -> None:
    q = {"round": rounded(4), "sign": torch.sign, **straight_through(rounded(4))}[step]
    a = convert(Net(q, bias=False).eval(), rules="epsilon:epsilon=1e-12")(X, target=2, contrast=None)
    torch.testing.assert_close(a.relevance.sum(1), a.logits[:, 2], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("step", list(straight_through(torch.round)))
@pytest.mark.parametrize("coarse", [torch.sign, torch.round])
def test_gradient_is_autograds(step: str, coarse: Callable[[Tensor], Tensor]) -> None:
    model, x = Net(straight_through(coarse)[step]).eval(), X.clone().requires_grad_()
    (g,) = torch.autograd.grad(model(x)[:, 1].sum(), x)
    a = convert(model, rules="gradient-input")(X, target=1, contrast=None)
    torch.testing.assert_close(a.relevance, X * g)


@pytest.mark.parametrize("rules", BOOKS)
def test_choices_and_codebooks(rules: str) -> None:
    """Gumbel-softmax of the hard kind and a vector-quantised code, with the choice in the place of chance."""
    codes = torch.randn(7, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def hard(y: Tensor) -> Tensor:
        soft = y.softmax(-1)
        chosen = torch.zeros_like(soft).scatter_(-1, soft.argmax(-1, keepdim=True), 1.0)
        return chosen - soft.detach() + soft

    def quantised(y: Tensor) -> Tensor:
        code = codes[torch.cdist(y, codes).argmin(-1)]
        return y + (code - y).detach()

    for q in (hard, quantised):
        model, x = Net(q).eval(), X.clone().requires_grad_()
        a = convert(model, rules=rules)(X, target=1, contrast=None)
        torch.testing.assert_close(a.output, model(X).detach())
        if rules == "gradient-input":
            (g,) = torch.autograd.grad(model(x)[:, 1].sum(), x)
            torch.testing.assert_close(a.relevance, X * g)
        if q is quantised and rules == "epsilon":
            none = convert(Net(q, bias=False).eval(), rules=rules)(X, target=1, contrast=None)
            torch.testing.assert_close(none.relevance.sum(1), none.logits[:, 1], rtol=1e-3, atol=1e-4)


def test_fake_quantised() -> None:
    q = lambda y: torch.fake_quantize_per_tensor_affine(y, 1e-4, 0, -(2**17), 2**17)  # noqa: E731
    for rules in BOOKS:
        a = convert(Net(q).float().eval(), rules=rules)(X.float(), target=1)
        b = convert(Net(nn.Identity()).float().eval(), rules=rules)(X.float(), target=1)
        torch.testing.assert_close(a.relevance, b.relevance, rtol=0, atol=2e-3 * float(b.relevance.abs().max()))


def test_a_detach_alone_stops_nothing() -> None:
    for rules in fxlrp.rulebooks():
        a = convert(Net(lambda y: y.detach()).eval(), rules=rules)(X, target=1)
        torch.testing.assert_close(a.relevance, convert(Net(lambda y: y).eval(), rules=rules)(X, target=1).relevance)
