"""Where the features of a built network stand in its input: a table, a sequence, or signals of one to three axes.

A signal is read by a convolution of ones whose stride is its side, so that each patch is a feature and its value is the
sum of the patch.  One place of it, drawn for each sample, holds the value and all others hold 0, which is the baseline:
they are null players, and what a feature is due is due to that place.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention


class SumOfTokens(nn.Module):
    """Attention of queries that are 0, hence uniform: [n, T, C] → the sum over tokens [n, C]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(channels, channels, bias=False), nn.Linear(channels, channels, bias=False)
        nn.init.zeros_(self.query.weight)
        nn.init.eye_(self.key.weight)

    def forward(self, x: Tensor) -> Tensor:
        mixed = scaled_dot_product_attention(self.query(x)[:, None], self.key(x)[:, None], x[:, None])[:, 0]
        return mixed.mean(1) * x.shape[1]


class Patches(nn.Module):
    """The sums of the patches of a signal [n, 1, …] as features [n, d]."""

    def __init__(self, axes: int, side: int, features: int) -> None:
        super().__init__()
        conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1]
        self.read, self.features = conv(1, 1, side, side, bias=False), features
        nn.init.ones_(self.read.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.read(x).flatten(1)[:, : self.features]


@dataclass(frozen=True)
class Layout:
    """How many axes a signal has (0: a table, −1: a sequence), and the side of its patches."""

    axes: int
    side: int = 1

    def front(self, d: int) -> nn.Module:
        """What reads d features [n, d] out of an input."""
        if self.axes == 0:
            return nn.Identity()
        return SumOfTokens(d) if self.axes < 0 else Patches(self.axes, self.side, d)

    def grid(self, d: int) -> list[int]:
        """How many patches a signal of d features has along each axis."""
        sides = [math.ceil(d ** (1 / self.axes) - 1e-9)] * (self.axes - 1)
        return [*sides, -(-d // math.prod(sides))]

    def places(self, n: int, d: int, g: torch.Generator) -> tuple[list[int], Tensor]:
        """The shape of a sample, and where in it, flattened, each feature of each of n samples stands [n, d]."""
        if self.axes == 0:
            return [d], torch.arange(d).expand(n, d)
        if self.axes < 0:  # every token has one feature, in its own channel; two tokens are empty
            tokens = d + 2
            order = torch.stack([torch.randperm(tokens, generator=g)[:d] for _ in range(n)])
            return [tokens, d], order * d + torch.arange(d)
        grid = self.grid(d)
        inside = torch.randint(self.side, (n, d, self.axes), generator=g)
        patch = torch.stack(torch.unravel_index(torch.arange(d), grid), -1)
        at = patch * self.side + inside
        shape = [k * self.side for k in grid]
        strides = torch.tensor([math.prod(shape[i + 1 :]) for i in range(self.axes)])
        return [1, *shape], (at * strides).sum(-1)


def put(values: Tensor, shape: list[int], places: Tensor) -> Tensor:
    """Values of features [n, d] at their places, in samples of this shape."""
    empty = torch.zeros(len(values), math.prod(shape), dtype=values.dtype)
    return empty.scatter(1, places, values).view(len(values), *shape)


LAYOUTS = {
    "table": Layout(0),
    "sequence": Layout(-1),
    "1d": Layout(1, 4),
    "2d": Layout(2, 3),
    "3d": Layout(3, 2),
}
