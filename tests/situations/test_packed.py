"""Packed sequences are explained as each would be alone, without padding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence, pad_packed_sequence

from fxlrp import convert

BOOKS = ("abslrp", "abslrp-hybrid", "epsilon", "gradient-input")
X = torch.randn(2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
LENGTHS = torch.tensor([2, 4])
LAYERS: dict[str, tuple[type, dict[str, Any]]] = {
    "lstm": (nn.LSTM, {}),
    "lstm both ways": (nn.LSTM, {"bidirectional": True, "num_layers": 2}),
    "lstm projected": (nn.LSTM, {"proj_size": 3, "bidirectional": True}),
    "gru both ways": (nn.GRU, {"bidirectional": True, "num_layers": 2}),
    "rnn": (nn.RNN, {"bias": False}),
    "rnn relu": (nn.RNN, {"nonlinearity": "relu", "batch_first": False}),
}


class Plain(nn.Module):
    """Sequences that are not padded, read at their last state and the mean of all."""

    def __init__(self, name: str, enforce_sorted: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        kind, kwargs = LAYERS[name]
        self.layer = kind(4, 6, **{"batch_first": True, **kwargs})
        width = (kwargs.get("proj_size") or 6) * (2 if self.layer.bidirectional else 1)
        self.head, self.enforce_sorted = nn.Linear(2 * width, 3), enforce_sorted

    def forward(self, x: Tensor) -> Tensor:
        out, state = self.layer(x if self.layer.batch_first else x.transpose(0, 1))
        return self.read(out, state, x.shape[1])

    def read(self, out: Tensor, state: Any, lengths: Any) -> Tensor:
        state = state[0] if isinstance(state, tuple) else state
        last = state[-2:].transpose(0, 1).flatten(1) if self.layer.bidirectional else state[-1]
        mean = out.sum(1 if self.layer.batch_first else 0) / torch.as_tensor(lengths).reshape(-1, 1)
        return self.head(torch.cat([last, mean], 1))


class Packed(Plain):
    def forward(self, x: Tensor, lengths: Any) -> Tensor:
        first = self.layer.batch_first
        x = x if first else x.transpose(0, 1)
        packed = pack_padded_sequence(x, lengths, batch_first=first, enforce_sorted=self.enforce_sorted)
        out, state = self.layer(packed)
        return self.read(pad_packed_sequence(out, batch_first=first)[0], state, lengths)


def pair(name: str, **kwargs: Any) -> tuple[nn.Module, nn.Module]:
    return Packed(name, **kwargs).double().eval(), Plain(name).double().eval()


@pytest.mark.parametrize(
    ("name", "rules"),
    [*(("lstm", rules) for rules in BOOKS), *((name, rules) for name in list(LAYERS)[1:] for rules in BOOKS[::3])],
)
def test_rows_are_what_they_are_without_padding(name: str, rules: str) -> None:
    packed, plain = pair(name)
    a = convert(packed, rules=rules)(X, LENGTHS, target=1)
    torch.testing.assert_close(a.output, packed(X, LENGTHS).detach())
    alone = convert(plain, rules=rules)
    for x, n, r in zip(X, LENGTHS, a.relevance, strict=True):
        torch.testing.assert_close(r[:n], alone(x[None, :n], target=1).relevance[0])
        assert r[:n].any()
        assert not r[n:].any()


def test_lengths_in_a_list_or_in_order() -> None:
    packed, _ = pair("lstm")
    expected = convert(packed)(X, LENGTHS, target=1).relevance
    torch.testing.assert_close(convert(packed)(X, LENGTHS.tolist(), target=1).relevance, expected)
    torch.testing.assert_close(convert(packed)(X, lengths=LENGTHS.tolist(), target=1).relevance, expected)
    order = LENGTHS.argsort(descending=True)
    in_order = convert(pair("lstm", enforce_sorted=True)[0])(X[order], LENGTHS[order], target=1)
    torch.testing.assert_close(in_order.relevance, expected[order])


def test_ids_are_looked_up_before_or_behind() -> None:
    class Words(Packed):
        def __init__(self, behind: bool) -> None:
            super().__init__("lstm")
            self.words, self.behind = nn.Embedding(20, 4), behind

        def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
            if not self.behind:
                return super().forward(self.words(ids), lengths)
            packed = pack_padded_sequence(ids, lengths, batch_first=True, enforce_sorted=False)
            out, state = self.layer(packed._replace(data=self.words(packed.data)))
            return self.read(pad_packed_sequence(out, batch_first=True)[0], state, lengths)

    ids = torch.tensor([[3, 7, 0, 0], [1, 5, 19, 4]])
    before, behind = (convert(Words(b).double().eval())(ids, LENGTHS, target=1).relevance for b in (False, True))
    torch.testing.assert_close(before, behind)
    assert torch.equal(before != 0, torch.arange(4) < LENGTHS[:, None])


class Longest(Packed):
    """The maximum sees the zeros that shorter rows are padded with, up to the longest of the batch."""

    def read(self, out: Tensor, state: Any, lengths: Any) -> Tensor:
        return self.head(torch.cat([out, out], 2).amax(1) - 1)


def test_padding_that_depends_on_the_batch() -> None:
    model = Longest("rnn").double().eval()
    explainer = convert(model, rules="gradient-input")
    for x, lengths in ((X, LENGTHS), (X[:1], LENGTHS[:1])):  # each as it is answered among the others
        a = explainer(x, lengths, target=1, contrast=None)
        leaf = x.clone().requires_grad_()
        (grad,) = torch.autograd.grad(model(leaf, lengths)[:, 1].sum(), leaf)
        torch.testing.assert_close(a.relevance, x * grad)
        torch.testing.assert_close(a.output, model(x, lengths).detach())


@pytest.mark.every(2)
@pytest.mark.parametrize("rules", BOOKS)
def test_sequences_in_a_list(rules: str) -> None:
    class Listed(Packed):
        def forward(self, xs: list[Tensor]) -> Tensor:  # type: ignore[override]
            lengths = torch.tensor([len(x) for x in xs])
            return super().forward(nn.utils.rnn.pad_sequence(xs, batch_first=True), lengths)

    model = Listed("rnn").double().eval()
    short, long = X[0, :2], X[1]
    a = convert(model, rules=rules)([short, long], target=1)
    for x, r in zip((short, long), a.relevance, strict=True):
        alone = convert(model, rules=rules)([x], target=1).relevance
        torch.testing.assert_close(r, alone[0] if isinstance(alone, tuple) else alone)


@pytest.mark.every(2)
@pytest.mark.parametrize("rules", BOOKS)
@pytest.mark.parametrize("ordered", [True, False], ids=["ordered", "any order"])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_packed_sequences_with_their_first_states(kind: type, ordered: bool, rules: str) -> None:
    """States count sequences, which packed entries do not: the call is one sample, and each row is explained."""

    class Continued(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layer, self.head = kind(4, 5), nn.Linear(5, 3)

        def forward(self, xs: Any, state: Tensor) -> Tensor:
            _, last = self.layer(xs, state if kind is nn.GRU else (state, state))
            return self.head((last if kind is nn.GRU else last[0])[-1])

    model = Continued().double().eval()
    xs = [X[1, :n] for n in ((4, 3, 2) if ordered else (2, 4, 3))]
    states = torch.randn(1, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    packed = pack_sequence(xs, enforce_sorted=ordered)
    a = convert(model, rules=rules)(packed, states, target=1)
    torch.testing.assert_close(a.output, model(packed, states).detach())
    of_data, of_states = a.relevance
    alone = convert(model, rules=rules)
    place = {step: i for i, step in enumerate(steps_of(packed))}
    for i, x in enumerate(xs):
        r, s = alone(x[:, None], states[:, i : i + 1], target=1).relevance
        torch.testing.assert_close(of_states[:, i], s[:, 0])
        torch.testing.assert_close(torch.stack([of_data[place[t, i]] for t in range(len(x))]), r[:, 0])


def steps_of(packed: Any) -> list[tuple[int, int]]:
    """The step and the sequence of each entry of packed data."""
    order = range(int(packed.batch_sizes[0])) if packed.sorted_indices is None else packed.sorted_indices.tolist()
    return [(t, order[i]) for t, n in enumerate(packed.batch_sizes.tolist()) for i in range(n)]
