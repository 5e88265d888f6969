"""Recurrent layers in all their forms: every one is its steps, whose derivative is the layer's own."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from fxlrp import convert
from fxlrp.patterns import recurrent

LAYERS: dict[str, tuple[type, dict[str, Any]]] = {
    "lstm": (nn.LSTM, {}),
    "lstm projected": (nn.LSTM, {"proj_size": 3}),
    "gru": (nn.GRU, {}),
    "rnn": (nn.RNN, {}),
    "rnn relu": (nn.RNN, {"nonlinearity": "relu"}),
}


class Reader(nn.Module):
    """Logits of all that a layer returns, of sequences that are packed if their `lengths` are given."""

    def __init__(self, kind: str, **options: Any) -> None:
        super().__init__()
        layer, own = LAYERS[kind]
        self.layer = layer(4, 6, num_layers=2, batch_first=True, **own, **options)
        self.head = nn.LazyLinear(3)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        if lengths is None:
            out, states = self.layer(x)
        else:
            out, states = self.layer(pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False))
            out, _ = pad_packed_sequence(out, batch_first=True)
        states = states if isinstance(states, tuple) else (states,)
        return self.head(torch.cat([out.mean(1), *(s.transpose(0, 1).flatten(1) for s in states)], 1))


@pytest.mark.every(5)
@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize(("bias", "both", "packed"), list(itertools.product((True, False), repeat=3)))
def test_steps_have_the_derivative_of_the_layer(kind: str, bias: bool, both: bool, packed: bool) -> None:
    torch.manual_seed(0)
    lengths = [torch.tensor([2, 5, 3])] if packed else []
    model = Reader(kind, bias=bias, bidirectional=both).double().eval()
    x = torch.randn(3, 5, 4, dtype=torch.float64, requires_grad=True)
    model(x, *lengths)[:, 1].sum().backward()
    assert x.grad is not None
    a = convert(model, rules="gradient-input")(x.detach(), *lengths, target=1, contrast=None)
    torch.testing.assert_close(a.relevance, x.detach() * x.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn"])
def test_one_step_is_traced_however_many_there_are(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, x = Reader(kind, bidirectional=True).double().eval(), torch.randn(2, 12, 4, dtype=torch.float64)
    model(x)
    traced: list[object] = []
    make_fx = recurrent.make_fx
    monkeypatch.setattr(recurrent, "make_fx", lambda *a, **k: traced.append(a) or make_fx(*a, **k))
    assert convert(model, x, rules="epsilon")(x, target=0).relevance[:, 0].any()
    assert len(traced) <= 2  # of 24 steps; torch 2.11 tells the sizes of the first apart
