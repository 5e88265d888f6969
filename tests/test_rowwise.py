"""Ops tried one by one: a graph is said to keep rows apart only if nudging rows of the whole network agrees."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxlrp.capture.model import capture
from fxlrp.graph.rowwise import is_rowwise
from fxlrp.graph.samples import batch_symbols, plain

W = torch.randn(6, 6)

MIXING: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda x: x - x.mean(0, keepdim=True),
    "cumsum": lambda x: x.cumsum(0),
    "cummax": lambda x: x.cummax(0).values,
    "flip": lambda x: x.flip(0),
    "roll": lambda x: x.roll(1, 0),
    "sort": lambda x: x.sort(0).values,
    "softmax": lambda x: x.softmax(0),
    "log_softmax": lambda x: x.log_softmax(0),
    "gram": lambda x: x @ x.T @ x,
    "first row": lambda x: x + x[:1],
    "other row": lambda x: x[torch.arange(len(x)).flip(0)],
    "statistics": lambda x: F.batch_norm(x, None, None, training=True),
    "group norm": lambda x: F.group_norm(x.T[None], 1)[0].T,
    "attention": lambda x: F.scaled_dot_product_attention(*[x[None, None]] * 3)[0, 0],
    "convolution": lambda x: F.conv1d(x.T[:, None], torch.ones(1, 1, 3), padding=1)[:, 0].T,
    "pooling": lambda x: F.max_pool1d(x.T[None], 3, 1, 1)[0].T,
    "norm of all": lambda x: x / x.norm(),
    "largest of all": lambda x: x / x.amax(),
    "folded": lambda x: x.reshape(-1).cumsum(0).reshape(x.shape),
    "after many": lambda x: F.layer_norm(F.relu(x @ W), (6,)).softmax(1).flip(0),
}
APART: dict[str, Callable[[Tensor], Tensor]] = {
    "products": lambda x: F.relu(x @ W) @ W.T,
    "softmax": lambda x: x.softmax(1),
    "layer norm": lambda x: F.layer_norm(x, (6,)),
    "batch norm": lambda x: F.batch_norm(x, torch.zeros(6), torch.ones(6)),
    "sort": lambda x: x.sort(1).values,
    "flip": lambda x: x.flip(1),
    "columns": lambda x: torch.cat([x[:, 2:], x[:, :2]], 1),
    "rows of its own": lambda x: x - x.mean(1, keepdim=True),
    "attention": lambda x: F.scaled_dot_product_attention(*[x.view(x.shape[0], 1, 3, 2)] * 3).flatten(1),
    "convolution": lambda x: F.max_pool1d(F.conv1d(x[:, None], torch.ones(2, 1, 3), padding=1), 3, 1, 1)[:, 1],
    "other axis": lambda x: x.T.softmax(0).T,
    "outer": lambda x: torch.einsum("bi,ij,bj->bi", x, W, x),
}


class Calling(nn.Module):
    """A function as a module."""

    def __init__(self, f: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.f = f

    def forward(self, x: Tensor) -> Tensor:
        return self.f(x)


def rowwise(f: Callable[[Tensor], Tensor]) -> bool:
    captured = capture(Calling(f).eval(), (torch.randn(2, 6),), {})
    gm = captured.graph
    starts, (end, *_) = gm.graph.find_nodes(op="placeholder"), gm.graph.output_node().args[0]
    symbols = batch_symbols(gm, captured.axes)
    return is_rowwise(gm, starts, end, partial(plain, symbols=symbols))


@pytest.mark.parametrize("name", MIXING)
def test_ops_that_mix_rows(name: str) -> None:
    assert not rowwise(MIXING[name])


@pytest.mark.parametrize("name", APART)
def test_ops_that_keep_them_apart(name: str) -> None:
    assert rowwise(APART[name])
