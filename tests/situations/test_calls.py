"""Calls of all kinds: keywords that are ours and the model's, copies of an explainer, captum's way, odd outputs."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxlrp import FxlrpError, Question, convert, rulebooks

X, Y = torch.randn(2, 2, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Own(nn.Module):
    """Its forward has an argument by the name of one of ours."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(6, 4).double()

    def forward(self, x: Tensor, target: Tensor | None = None) -> Tensor:
        return self.linear(x) if target is None else self.linear(x) * target


def test_a_keyword_of_the_model_by_the_name_of_ours() -> None:
    explainer = convert(Own().eval(), rules="gradient-input")
    with pytest.raises(FxlrpError, match=r"'target'.*explainer.ask"):
        explainer(X, target=torch.tensor(2.0))
    by_place = explainer(X, torch.tensor(2.0).double(), target=1)
    asked = explainer.ask([Question(target=1)], X, target=torch.tensor(2.0).double())[0]
    torch.testing.assert_close(asked.named["0"], by_place.named["0"])
    torch.testing.assert_close(explainer(X).output * 2, by_place.output)


def through_pickle(thing: Any) -> Any:
    return pickle.loads(pickle.dumps(thing))


@pytest.mark.parametrize("rules", [*rulebooks(), "gamma:gamma=0.1"])
@pytest.mark.parametrize("other", [copy.deepcopy, through_pickle])
def test_a_copy_of_an_explainer(other: Any, rules: str) -> None:
    explainer = convert(nn.Linear(6, 4).double().eval(), rules=rules)
    fresh, expected = other(explainer), explainer(X, target=1).relevance
    for e in (fresh, other(explainer)):
        assert e.rulebook.name == explainer.rulebook.name
        if rules == "abslrp":
            torch.testing.assert_close(e(X, target=1).relevance, expected)


def test_a_rulebook_of_ones_own_is_not_pickled() -> None:
    explainer = convert(nn.Linear(6, 4).eval(), rules=rulebooks()["abslrp"].extend(name="mine"))
    assert copy.deepcopy(explainer).rulebook is explainer.rulebook
    with pytest.raises(FxlrpError, match="mine"):
        pickle.dumps(explainer)


def test_captum_gets_each_input_its_own() -> None:
    pytest.importorskip("captum")
    from fxlrp.adapters.captum import FxLRP

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 4).double()

        def forward(self, factor: Tensor, x: Tensor, y: Tensor) -> Tensor:
            return self.linear((x + y * 2) * factor)

    model, mask = Masked().eval(), torch.ones(2, 6, dtype=torch.bool)
    adapter = FxLRP(model, rules="gradient-input")
    with pytest.raises(FxlrpError, match="Input 0"):
        adapter.attribute((mask, X, Y), target=1)
    ones = torch.ones(2, 6).double()
    found = adapter.attribute((ones, X, Y), target=1, contrast=None)
    for r, x, factor in zip(found[1:], (X, Y), (1, 2), strict=True):
        torch.testing.assert_close(r, x * model.linear.weight[1].detach() * factor)


class Shaped(nn.Module):
    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.linear, self.shape = nn.Linear(6, 4), shape

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)[:, 0] if self.shape == () else self.linear(x).reshape(-1, *self.shape)


@pytest.mark.parametrize("shape", [(), (2, 2), (1, 2, 2)])
def test_outputs_that_are_no_row_of_classes(shape: tuple[int, ...], tmp_path: Any) -> None:
    explainer = convert(Shaped(shape).eval(), X.float())
    for ask in (explainer.joint, lambda: explainer.export(tmp_path / "e.pt2")):
        with pytest.raises(FxlrpError, match="no row of classes"):
            ask()
    how = {} if shape == () else {"position": 0} if len(shape) == 2 else {"position": (0, 0)}
    compiled = convert(Shaped(shape).eval()).compile(backend="eager")
    assert compiled(X.float(), **how).relevance.shape == X.shape
