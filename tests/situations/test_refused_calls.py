"""A call that the model itself refuses is an error of ours that says so, at the first call and at any later one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from fxlrp import FxlrpError, convert
from fxlrp.capture.refusals import why_untraced
from fxlrp.engine.seeds import Question


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(10, 6), nn.Linear(6, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.embed(ids).mean(1))


class Views(Words):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.view(x.shape[0], -1))


class Packed(Words):
    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, lengths, batch_first=True)
        return self.head(torch.stack([row.mean(0) for row in nn.utils.rnn.unpack_sequence(packed)]))


class Asserts(Words):
    def forward(self, x: Tensor) -> Tensor:
        if x.abs().max() > 10:
            raise ValueError("these are no normed pictures")
        return self.head(x.relu())


def numbers(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).double()


IDS, X = torch.tensor([[1, 2], [3, 4], [5, 6]]), numbers(2, 3, 6)
CALLS: dict[str, tuple[type[Words], tuple, list[tuple]]] = {
    "ids": (Words, (IDS,), [(IDS + 8,), (IDS[:1] + 9,), (IDS[:, :1] + 9,), (-IDS,)]),
    "strides": (Views, (numbers(2, 2, 3),), [(numbers(3, 2, 2).mT.transpose(0, 2).mT,), (numbers(2, 3, 2).mT,)]),
    "lengths": (Packed, (X, torch.tensor([3, 2])), [(X, torch.tensor([2, 3])), (X, torch.tensor([3, 0]))]),
    "values": (Asserts, (numbers(2, 6),), [(numbers(2, 6) * 100,), (numbers(1, 6) * 100,)]),
}


# a graph is not as strict about strides as the model, once there is one
@pytest.mark.parametrize(
    ("name", "first"), [(name, first) for name in CALLS for first in (True, False) if first or name != "strides"]
)
def test_what_the_model_refuses(name: str, first: bool) -> None:
    kind, call, bad = CALLS[name]
    torch.manual_seed(0)
    model = kind().double().eval()
    explainer = convert(model, rules="epsilon")
    if not first:
        explainer(*call)
    before = torch.get_rng_state()
    for wrong in bad:
        with pytest.raises(Exception, match=r".") as own:
            model(*wrong)
        with pytest.raises(FxlrpError, match="itself refuses") as ours:
            explainer(*wrong)
        assert str(own.value).splitlines()[0] in str(ours.value)
        assert ours.value.__cause__ is not None
    assert torch.equal(torch.get_rng_state(), before)
    a = explainer(*call)  # and nothing is left of it
    torch.testing.assert_close(a.output, model(*call).detach())
    torch.testing.assert_close(a.each, convert(model, rules="epsilon")(*call).each)


@pytest.mark.parametrize("how", ["ask", "report", "at", "trace"])
def test_in_whatever_way_it_is_asked(how: str) -> None:
    explainer: Any = convert(Words().double().eval(), IDS)
    ways: dict[str, Any] = {
        "ask": lambda: explainer.ask([Question(1, None, None)], IDS + 8),
        "report": lambda: explainer.report(IDS + 8),
        "at": lambda: explainer(IDS + 8, at=["embed"]),
        "trace": lambda: explainer(IDS + 8, trace=True),
    }
    with pytest.raises(FxlrpError, match="itself refuses"):
        ways[how]()


class Spectrum(Words):
    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.fft(self.head(x))


SENSELESS: dict[str, tuple[str, Any]] = {
    "a class by name": ("is no number of a class", lambda m: convert(m)(X[:, 0], target="cat")),
    "classes by name": ("is no number of a class", lambda m: convert(m)(X[:, 0], target=["cat", "dog"])),
    "a word for a number": ("gamma='much' .* is no number", lambda m: convert(m, rules="gamma:gamma=much")),
    "a word for a seed": ("a whole number", lambda m: convert(m, seed="a")),
    "tensors without values": ("no values to explain", lambda m: convert(m)(X[:, 0].to("meta"))),
    "a complex score": ("returns real numbers", lambda m: convert(m)(X[:, 0])),
}


@pytest.mark.parametrize("name", SENSELESS)
def test_what_makes_no_sense(name: str) -> None:
    said, ask = SENSELESS[name]
    model = Spectrum() if "complex" in name else nn.Linear(6, 3)
    with pytest.raises(FxlrpError, match=said):
        ask(model.double().eval())


def test_the_way_out_of_a_complex_score() -> None:
    class Sizes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = Spectrum()

        def forward(self, x: Tensor) -> Tensor:
            return self.model(x).abs()

    assert convert(Sizes().double().eval(), rules="epsilon")(X[:, 0]).relevance.any(1).all()


def test_the_line_named_is_one_of_the_users() -> None:
    """Not of a function that torch makes from a string while it traces."""
    scope: dict[str, Any] = {"torch": torch}
    exec("made = lambda x: torch.functional.einsum('of nothing', x)", scope)
    with pytest.raises(RuntimeError) as raised:
        scope["made"](X)
    assert 'test_refused_calls.py", line' in why_untraced(raised.value)


class Threes(Words):
    """Takes three samples or more, in a nested tensor, which torch can't trace."""

    def forward(self, x: Tensor) -> Tensor:
        if len(x) < 3:
            raise ValueError("fewer than three")
        return self.head(torch.nested.as_nested_tensor(list(x)).to_padded_tensor(0.0).sum(1))


def test_what_cannot_be_traced_is_not_blamed_on_samples_that_nobody_asked_for() -> None:
    model, x = Threes().double().eval(), torch.cat([X, X])
    with pytest.raises(FxlrpError, match="a nested tensor"):
        convert(model)(x)
    with pytest.raises(FxlrpError, match="no sample of this call alone"):
        convert(model, batch=0)(x)


class Written(Words):
    """Writes into its ids, which it refuses the second time; makes a nested tensor, which torch can't trace."""

    def forward(self, ids: Tensor) -> Tensor:
        ids.add_(4)
        return self.head(torch.nested.as_nested_tensor(list(self.embed(ids))).to_padded_tensor(0.0).sum(1))


@pytest.mark.parametrize("batch", ["auto", None])
def test_what_a_model_writes_into_its_inputs_is_not_what_it_is_asked_by_next(batch: Any) -> None:
    with pytest.raises(FxlrpError, match="a nested tensor"):
        convert(Written().double().eval(), batch=batch)(torch.tensor([[1, 2], [0, 1]]))


class Nested(Words):
    """Sequences of different lengths in one nested tensor, made in one of three ways or given."""

    def __init__(self, how: Callable[..., Tensor]) -> None:
        super().__init__()
        self.how = how

    def forward(self, *given: Tensor) -> Tensor:
        return self.head(self.how(*given).to_padded_tensor(0.0).sum(1))


NESTED: dict[str, tuple[Callable[..., Tensor], tuple]] = {
    "of parts": (
        lambda t, n: torch.nested.nested_tensor([t[0][: n[0].item()], t[1][: n[1].item()]], layout=torch.jagged),
        (X, torch.tensor([3, 2])),
    ),
    "of a line": (torch.nested.nested_tensor_from_jagged, (X[0], torch.tensor([0, 2, 3]))),
    "of a list": (lambda *rows: torch.nested.as_nested_tensor(list(rows)), (X[0], X[1, :2])),
    "given": (lambda t: t, (torch.nested.nested_tensor([X[0], X[1, :2]], layout=torch.jagged),)),
}


@pytest.mark.parametrize("name", list(NESTED))
def test_nested_tensors(name: str) -> None:
    how, call = NESTED[name]
    model = Nested(how).double().eval()
    assert model(*call).shape == (2, 3)
    with pytest.raises(FxlrpError, match=r"a nested tensor.*torch can't trace: pad the sequences") as refusal:
        convert(model)(*call)
    assert name == "given" or "test_refused_calls.py" in str(refusal.value)
