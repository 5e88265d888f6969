"""convert(…, shifts=4): the mean of the maps of moved pictures, each moved back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import randomize
from torch import Tensor, nn
from torch.nn.functional import pad

from fxlrp import FxlrpError, convert
from fxlrp.shifts import moves_within


class Patches(nn.Module):
    """A picture in patches of 4 × 4 pixels, and numbers beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.cut, self.mix, self.beside = nn.Conv2d(2, 6, 4, stride=4), nn.Linear(6, 6), nn.Linear(3, 6)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor, numbers: Tensor) -> Tensor:
        tokens = self.cut(x).flatten(2).mT
        tokens = tokens + (self.mix(tokens).softmax(1) * self.beside(numbers)[:, None]).relu()
        return self.head(tokens.mean(1))


def moved(x: Tensor, down: int, right: int) -> Tensor:
    """By padding with the edge and cutting out, as a reference."""
    by = max(abs(down), abs(right), 1)
    n, m = x.shape[-2:]
    wide = pad(x.flatten(0, -4) if x.ndim > 4 else x, (by,) * 4, mode="replicate")
    return wide[..., by - down : by - down + n, by - right : by - right + m].reshape(x.shape)


def reference(model: nn.Module, x: Tensor, numbers: Tensor, count: int, **question: Any) -> tuple[Tensor, Tensor]:
    """Shift by shift, sample by sample, with relevance put back pixel by pixel."""
    explainer, n, m = convert(model), *x.shape[-2:]
    question = {"target": explainer(x, numbers).target, **question}
    pictures, others = [], []
    for i in range(len(x)):
        asked = question["target"][i : i + 1] if isinstance(question["target"], Tensor) else question["target"]
        total, covered, beside = 0.0, torch.zeros(n, m, dtype=x.dtype), 0.0
        for down, right in moves_within(8, count):
            r, s = explainer(moved(x[i : i + 1], down, right), numbers[i : i + 1], target=asked).relevance
            put = torch.zeros_like(r)
            for row in range(n):
                for column in range(m):
                    if 0 <= row + down < n and 0 <= column + right < m:
                        put[..., row, column] = r[..., row + down, column + right]
                        covered[row, column] += 1
            total, beside = total + put, beside + s
        pictures.append(total / covered)
        others.append(beside / count)
    return torch.cat(pictures), torch.cat(others)


@pytest.mark.parametrize("target", [None, 3, torch.tensor([1, 4, 0]), [2, 0], torch.tensor([[1, 2], [0, 3], [4, 1]])])
@pytest.mark.parametrize("count", [2, 4])
def test_the_mean_of_moved_pictures(target: Any, count: int) -> None:
    model = randomize(Patches())
    x, numbers = torch.randn(3, 2, 16, 12, dtype=torch.float64), torch.randn(3, 3, dtype=torch.float64)
    a = convert(model, shifts=count)(x, numbers, target=target)
    torch.testing.assert_close(a.output, model(x, numbers))
    question = {} if target is None else {"target": target}
    for got, wanted in zip(a.relevance, reference(model, x, numbers, count, **question), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-12)


def test_a_call_that_is_one_sample_and_an_input_that_samples_share() -> None:
    model = randomize(Patches())
    x, numbers = torch.randn(3, 2, 16, 12, dtype=torch.float64), torch.randn(1, 3, dtype=torch.float64)
    one = convert(model, batch=None, shifts=3)(x[:1], numbers, target=1).relevance
    for got, wanted in zip(one, reference(model, x[:1], numbers, 3, target=1), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-12)
    alone = convert(model, shifts=3)
    shared = convert(model, batch={"x": 0, "numbers": None}, shifts=3)(x, numbers, target=1).relevance
    each = [alone(x[i : i + 1], numbers, target=1).relevance for i in range(3)]
    torch.testing.assert_close(shared[0], torch.cat([r for r, _ in each]), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(shared[1], torch.stack([s for _, s in each]).sum(0), rtol=1e-9, atol=1e-12)


def test_moves_are_spread_over_a_square_around_none() -> None:
    moves = moves_within(16, 64)
    assert moves[0] == (0, 0)
    assert all(-8 <= by < 8 for move in moves for by in move)
    quarters = [
        sum((y < 0, x < 0) == quarter for y, x in moves) for quarter in [(a, b) for a in (0, 1) for b in (0, 1)]
    ]
    assert all(12 <= n <= 20 for n in quarters)


def test_what_can_not_be_moved_is_said() -> None:
    with pytest.raises(FxlrpError, match="pictures"):
        convert(nn.Linear(3, 2).eval(), shifts=4)(torch.randn(2, 3))
    for shifts in (0, 2.5, True):
        with pytest.raises(FxlrpError, match="shifts"):
            convert(nn.Linear(3, 2).eval(), shifts=shifts)
    model, x = randomize(Patches()), torch.randn(2, 2, 8, 8, dtype=torch.float64)
    with pytest.raises(FxlrpError, match="without shifts"):
        convert(model, (x, x[:, 0, 0, :3]), shifts=4).joint()
