"""Recurrent cells called in a loop: torch composes them of ops that write over their arguments."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fxlrp
from fxlrp import convert

X = torch.randn(2, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
PAIRS = [(nn.LSTMCell, nn.LSTM), (nn.GRUCell, nn.GRU), (nn.RNNCell, nn.RNN)]
BY_OP = ("abslrp", "abslrp-2024-04", "abslrp-2024-12")
"""Rulebooks that keep the mass of each op as a whole: a layer is one for all steps, a cell one for each."""


class Loop(nn.Module):
    def __init__(self, cell: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.cell, self.head = cell, head

    def forward(self, x: Tensor) -> Tensor:
        h = state = x.new_zeros(x.shape[0], 5)
        for t in range(x.shape[1]):
            if isinstance(self.cell, nn.LSTMCell):
                h, state = self.cell(x[:, t], (h, state))
            else:
                h = self.cell(x[:, t], h)
        return self.head(h)


class Layer(nn.Module):
    def __init__(self, layer: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.layer, self.head = layer, head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x)[0][:, -1])


def looped(cell: type, layer: type) -> tuple[nn.Module, nn.Module]:
    """The same function by a cell and by a layer."""
    a, b, head = cell(3, 5).double(), layer(3, 5, batch_first=True).double(), nn.Linear(5, 4).double()
    for name, p in a.named_parameters():
        getattr(b, f"{name}_l0").data = p.data
    return Loop(a, head).eval(), Layer(b, head).eval()


@pytest.mark.parametrize(
    ("cell", "layer", "rules"),
    [
        *((*PAIRS[0], rules) for rules in fxlrp.rulebooks()),
        *((*pair, rules) for pair in PAIRS[1:] for rules in ("abslrp", "abslrp-hybrid", "epsilon-plus-flat")),
    ],
)
def test_a_cell_in_a_loop_is_the_layer(cell: type, layer: type, rules: str) -> None:
    loop, whole = looped(cell, layer)
    explainer = convert(loop, X, rules=rules)
    a = explainer(X)
    torch.testing.assert_close(a.output, loop(X).detach())
    assert a.relevance.isfinite().all()
    assert a.relevance.flatten(1).any(1).all()
    assert "2024" in rules or not explainer.report().counts["generic"]  # the published code has no rule for most ops
    torch.testing.assert_close(torch.cat([explainer(x[None]).relevance for x in X]), a.relevance)
    if rules not in BY_OP:
        torch.testing.assert_close(a.relevance, convert(whole, rules=rules)(X).relevance, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("cell", "layer"), PAIRS)
def test_gradients_of_a_cell_are_autograds(cell: type, layer: type) -> None:
    loop, _ = looped(cell, layer)
    x = X.clone().requires_grad_()
    (grad,) = torch.autograd.grad(loop(x).max(1).values.sum(), x)
    torch.testing.assert_close(convert(loop, rules="gradient-input")(X, contrast=None).relevance, x.detach() * grad)
