"""Other libraries' ways to call us leave the user's model as it was."""

from __future__ import annotations

import gc
import io
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fxlrp import FxlrpError, convert
from fxlrp.adapters import quantus
from fxlrp.rules.registry import find_rulebook


class Scaled(nn.Module):
    """A layer that a call can't do without knowing an attribute of the model itself."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 8), nn.ReLU())
        self.head = nn.Linear(8, 3)
        self.power = 1

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x) ** self.power)


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return Scaled().double().eval()


X = torch.linspace(-1, 1, 12, dtype=torch.float64).view(2, 6)


def by_quantus(model: nn.Module) -> Tensor:
    return torch.from_numpy(quantus.explain(model, X.numpy(), np.array([1, 2]), rules="epsilon"))


def by_captum(model: nn.Module) -> Tensor:
    pytest.importorskip("captum", reason="captum is not installed (extra `eval`)")
    from fxlrp.adapters.captum import FxLRP

    return FxLRP(model, rules="epsilon").attribute(X, target=torch.tensor([1, 2]))


def everything_in(model: nn.Module) -> list[Any]:
    """Every attribute of every module, the contents of its dicts beside it."""
    return [
        (name, k, value, dict(value) if isinstance(value, dict) else None)
        for name, module in model.named_modules()
        for k, value in vars(module).items()
    ]


@pytest.mark.parametrize("explain", [by_quantus, by_captum])
def test_nothing_is_written_into_the_model(explain: Callable[[nn.Module], Tensor], model: nn.Module) -> None:
    before, saved = everything_in(model), io.BytesIO()
    first = explain(model)
    after = everything_in(model)
    assert [(n, k) for n, k, *_ in after] == [(n, k) for n, k, *_ in before]
    assert all(a is b and c == d for (*_, a, c), (*_, b, d) in zip(before, after, strict=True))
    assert all(p.grad is None for p in model.parameters())
    torch.save(model, saved)
    saved.seek(0)
    torch.testing.assert_close(explain(torch.load(saved, weights_only=False)), first, rtol=0, atol=0)


CHANGES: dict[str, Callable[[Any], Any]] = {
    "a weight in place": lambda m: m.head.weight.data.mul_(3),
    "a weight": lambda m: setattr(m.head, "weight", nn.Parameter(m.head.weight * 2)),
    "all weights": lambda m: m.load_state_dict({k: v * 2 for k, v in m.state_dict().items()}, assign=True),
    "a layer": lambda m: setattr(m, "head", nn.Linear(8, 3).double()),
    "an attribute": lambda m: setattr(m, "power", 2),
    "a new attribute": lambda m: setattr(m, "forward", lambda x: m.head(x[:, :2].repeat(1, 4))),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_quantus_does_to_a_model_is_seen(change: str, model: nn.Module) -> None:
    before = by_quantus(model)
    with torch.no_grad():
        CHANGES[change](model)
    expected = convert(model, rules="epsilon")(X, target=torch.tensor([1, 2])).relevance
    assert not torch.allclose(before, expected)
    torch.testing.assert_close(by_quantus(model), expected, rtol=0, atol=0)


def test_quantus_captures_a_model_once_and_lets_it_go(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr(quantus, "convert", lambda *a, **k: made.append(weakref.ref(e := convert(*a, **k))) or e)
    other = Scaled().double().eval()
    for net in (model, other, model, other):
        by_quantus(net)
    assert len(made) == 2
    gone = [weakref.ref(other), weakref.ref(other.head.weight), made[1]]
    del other, net
    gc.collect()
    assert [ref() for ref in gone] == [None] * 3
    assert made[0]() is not None


def test_a_rulebook_is_taken_by_name_and_as_it_is(model: nn.Module) -> None:
    book = find_rulebook("epsilon")
    for _ in range(2):
        found = quantus.explain(model, X.numpy(), np.array([1, 2]), rules=book)
        assert np.array_equal(found, by_quantus(model).numpy())


def test_a_model_in_training_mode_is_refused_and_left_there(model: nn.Module) -> None:
    with pytest.raises(FxlrpError, match="training mode"):
        by_quantus(model.train())
    assert model.training
