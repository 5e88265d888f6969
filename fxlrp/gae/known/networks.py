"""The modules that built networks are made of where two linear layers are not enough; each is [n, d] → [n, 1]."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Product(nn.Module):
    """Σ c x₂ᵢ x₂ᵢ₊₁ of two pairs."""

    def __init__(self, c: Tensor) -> None:
        super().__init__()
        self.c = nn.Parameter(c)

    def forward(self, z: Tensor) -> Tensor:
        return (self.c * (z[:, 0:4:2] * z[:, 1:4:2])).sum(1, keepdim=True)


class Maximum(nn.Module):
    """max x."""

    def forward(self, z: Tensor) -> Tensor:
        return z.amax(1, keepdim=True)


class MaxOfReLUs(nn.Module):
    """The maximum of four, in two rounds of a + (b − a)⁺."""

    def forward(self, z: Tensor) -> Tensor:
        two = z[:, :2] + (z[:, 2:] - z[:, :2]).relu()
        return two[:, :1] + (two[:, 1:] - two[:, :1]).relu()


class Or(nn.Module):
    """Σ c (s − (s − 1)⁺) of the sums s of groups [k, d]."""

    def __init__(self, groups: Tensor, c: Tensor) -> None:
        super().__init__()
        self.sums = nn.Linear(groups.shape[1], groups.shape[0], bias=False)
        self.c = nn.Linear(len(c), 1, bias=False)
        self.sums.weight, self.c.weight = nn.Parameter(groups.clone()), nn.Parameter(c[None])

    def forward(self, z: Tensor) -> Tensor:
        s = self.sums(z)
        return self.c(s - (s - 1).relu())


class Additive(nn.Module):
    """x₀² + 2 x₁⁺ + 3 (−x₂)⁺ + x₃ + x₄³."""

    def forward(self, z: Tensor) -> Tensor:
        a, b, c, d, e = z.split(1, 1)
        return a * a + 2 * b.relu() + 3 * (-c).relu() + d + e * e * e


class Minimum(nn.Module):
    """Σ w (1 − (1 − x)⁺)."""

    def __init__(self, w: Tensor) -> None:
        super().__init__()
        self.w = nn.Linear(len(w), 1, bias=False)
        self.w.weight = nn.Parameter(w[None])

    def forward(self, z: Tensor) -> Tensor:
        return self.w(1 - (1 - z).relu())


class Saws(nn.Module):
    """Σ w (x + height · saw(x)): a tent 2x⁺ − 4 (x − ½)⁺ of itself, four times, has 8 teeth in 0 … 1."""

    def __init__(self, w: Tensor, height: float) -> None:
        super().__init__()
        self.w, self.height = nn.Linear(len(w), 1, bias=False), height
        self.w.weight = nn.Parameter(w[None])

    def each(self, z: Tensor) -> Tensor:
        saw = z
        for _ in range(4):
            saw = 2 * saw.relu() - 4 * (saw - 0.5).relu()
        return z + self.height * saw

    def forward(self, z: Tensor) -> Tensor:
        return self.w(self.each(z))


class Interacting(nn.Module):
    """Σ low x + (more x − large (1 − bit))⁺ of features x and as many bits behind them."""

    def __init__(self, low: Tensor, more: Tensor, large: float) -> None:
        super().__init__()
        d = len(low)
        self.low, self.more = nn.Linear(d, 1, bias=False), nn.Linear(2 * d, d)
        self.low.weight = nn.Parameter(low[None])
        self.more.weight = nn.Parameter(torch.cat([more.diag(), large * torch.eye(d, dtype=low.dtype)], 1))
        self.more.bias = nn.Parameter(torch.full((d,), -large, dtype=low.dtype))
        self.d = d

    def forward(self, z: Tensor) -> Tensor:
        return self.low(z[:, : self.d]) + self.more(z).relu().sum(1, keepdim=True)
