"""A map that is zero although the score is not says where relevance ended, and why."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fxlrp
from fxlrp import convert

X = torch.randn(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self, q: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.q = nn.Linear(6, 10).double(), nn.Linear(10, 4).double(), q

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.q(self.a(x)))


@pytest.mark.parametrize("target", [None, 1, [0, 1], lambda out: out[:, 2]])
def test_steps_have_no_gradient(target: object) -> None:
    explainer = convert(Net(torch.round).eval(), rules="gradient-input")
    with pytest.warns(fxlrp.NoRelevance, match=r"sample 0, 1, 2, 3, 4 .*ends at round.*test_zero_maps\.py.*in steps"):
        a = explainer(X, target=target)
    assert not a.relevance.any()
    assert a.ended.samples == (0, 1, 2, 3, 4)
    assert a.ended.node.op == "round.default"
    with pytest.warns(fxlrp.NoRelevance):
        (b,) = explainer.ask([fxlrp.explainer.Question(target)], X)
    assert b.ended.node == a.ended.node or b.ended.node.name == a.ended.node.name


def test_only_some_of_a_batch() -> None:
    """A ReLU that is shut for one sample."""
    model = Net(torch.relu).eval()
    x = X.clone()
    with torch.no_grad():
        model.a.bias -= 0
        x[3] = -torch.linalg.pinv(model.a.weight) @ (10 * torch.ones(10).double())
        model.a.bias -= model.a(x[3:4])[0].clamp(min=0) + 0.1
    assert not torch.relu(model.a(x[3])).any()
    for rules in ("abslrp", "epsilon", "gradient-input"):
        with pytest.warns(fxlrp.NoRelevance, match=r"sample .*3.* zero"):
            a = convert(model, rules=rules)(x, target=1, contrast=None)
        assert 3 in a.ended.samples
        assert list(a.ended.samples) == (~a.relevance.any(1)).nonzero()[:, 0].tolist()
        assert "relu" in a.ended.node.op or "linear" in a.ended.node.op


@pytest.mark.parametrize("rules", list(fxlrp.rulebooks()))
def test_nothing_is_said_where_nothing_is_wrong(rules: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", fxlrp.NoRelevance)
        a = convert(Net(nn.functional.gelu).eval(), rules=rules)(X, target=[1, 2])
        assert a.ended is None
        b = convert(Net(lambda y: 0 * y).eval(), rules=rules)(X, target=lambda out: 0 * out[:, 1])
        assert b.ended is None, "there was no score to explain"


def test_a_compiled_explainer_says_it_too() -> None:
    explainer = convert(Net(torch.round).eval(), rules="gradient-input").compile(backend="eager")
    with pytest.warns(fxlrp.NoRelevance, match="round"):
        assert explainer(X, target=1).ended is not None


@pytest.mark.parametrize("rules", ["abslrp-hybrid", "abslrp", "gradient-input"])
@pytest.mark.parametrize("where", ["input", "weight"])
def test_a_map_that_is_not_finite_says_what_else_is_not(where: str, rules: str) -> None:
    model, x = Net(torch.relu).eval(), X.clone()
    with torch.no_grad():
        (x[1, :1] if where == "input" else model.b.weight[0]).fill_(torch.nan)
    explainer = convert(model, X, rules=rules)
    with pytest.warns(fxlrp.NoRelevance, match="not finite, nor is input 0" if where == "input" else "own output"):
        a = explainer(x, target=0)
    assert a.relevance[0].isfinite().all() == (where == "input")


def test_an_input_that_is_infinite_is_named() -> None:
    x = X.clone()
    x[:, 0] = torch.inf
    with pytest.raises(fxlrp.FxlrpError, match="x holds infinite values, as masks do"):
        convert(Net(torch.relu).eval())(x)


def test_where_a_rulebook_passes_none_on_is_named() -> None:
    model = Net(lambda y: y.softmax(-1)).eval()
    with pytest.raises(fxlrp.FxlrpError, match=r"by cp-lrp: its rule for softmax\.int \(.*test_zero_maps\.py"):
        convert(model, rules="cp-lrp")(X)
    assert convert(model, rules="attnlrp")(X).relevance.any()


class Two(nn.Module):
    """A sum of what two inputs become."""

    def __init__(self, first: Callable[[Tensor], Tensor], second: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.head = nn.Linear(6, 10).double(), nn.Linear(6, 10).double(), nn.Linear(10, 4).double()
        self.first, self.second = first, second

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.head(self.first(self.a(x)) + self.second(self.b(y)))


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize(
    ("rules", "second", "why"),
    [
        ("gradient-input", torch.round, r"ends at round.*in steps"),
        ("abslrp", lambda y: -y.exp(), r"ends at add.*gives none"),
        ("epsilon", lambda y: y.exp().relu() - 100, None),
        ("gradient-input", lambda y: (y - 100).relu(), None),
        ("epsilon", lambda y: (y - 100).relu(), None),
    ],
)
def test_one_input_of_several(rules: str, second: Callable[[Tensor], Tensor], why: str | None, swapped: bool) -> None:
    """Its map is zero although the score depends on it: that is said unless nothing depends on it."""

    model = (Two(second, torch.exp) if swapped else Two(torch.exp, second)).eval()
    x = X[:, [3, 1, 2, 0, 4, 5]]
    explainer = convert(model, rules=rules)
    for batch in (5, 1):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", fxlrp.NoRelevance)
            a = explainer(X[:batch], x[:batch], target=1, contrast=None)
        said = [str(w.message) for w in caught if issubclass(w.category, fxlrp.NoRelevance)]
        assert bool(said) == (why is not None) == (a.ended is not None)
        for message in said:
            assert f"is zero at {'x' if swapped else 'y'}" in message
            assert re.search(why, message)


def test_an_input_of_zeros_has_a_map_of_zeros() -> None:
    """A first state, for one, where a bias takes what arrives."""
    cell, state = nn.LSTMCell(6, 10).double(), torch.zeros(5, 10).double()
    with warnings.catch_warnings():
        warnings.simplefilter("error", fxlrp.NoRelevance)
        convert(cell.eval(), rules="gradient-input")(X, (state, state))


def test_one_row_among_others() -> None:
    """Of a call that is one sample, each row of the output has a map of its own."""

    class Rows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.head = nn.Linear(6, 3).double()

        def forward(self, xs: list[Tensor]) -> Tensor:
            rows = [self.head(x.round() if len(x) == 3 else x).mean(0) for x in xs]
            return torch.stack(rows)

    xs = [X[:2], X[:3], X[1:5]]
    with pytest.warns(fxlrp.NoRelevance, match=r"The map of sample 1 is zero, though.*relevance ends at round") as told:
        a = convert(Rows().eval(), rules="gradient-input")(xs, target=1)
    assert len(told) == 1
    assert a.ended.samples == (1,)
    assert [bool(r.any()) for r in a.relevance] == [True, False, True]
