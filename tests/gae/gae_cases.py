"""A tiny classifier, pictures for it, and a method."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Tiny(nn.Module):
    """Two convolutions and a linear layer on 16 × 16 pictures, five classes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3, 2, 1), nn.Conv2d(6, 8, 3, 2, 1)
        self.act1, self.act2 = nn.ReLU(), nn.ReLU()
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act2(self.second(self.act1(self.first(x)))).mean((2, 3)))


@torch.no_grad()
def tiny() -> nn.Module:
    """Untrained, its last layer scaled so that it does not give all pictures one class, and scores are above 0."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = Tiny().double().eval()
    model.head.weight *= 20
    model.head.bias += 4 - model(torch.stack([p[0] for p in pictures()])).mean(0)
    return model


def pictures(count: int = 12, side: int = 16) -> list[tuple[Tensor, int, Tensor]]:
    """x, label and mask."""
    generator = torch.Generator().manual_seed(3)
    out = []
    for i in range(count):
        mask = torch.zeros(side, side, dtype=torch.bool)
        mask[i % 8 : i % 8 + 6, 4:12] = True
        out.append((torch.randn(3, side, side, generator=generator, dtype=torch.float64), i % 5, mask))
    return out


class Remembering:
    """A setting that keeps its hash, to know whether it was changed since."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.before = hash(self)

    def __hash__(self) -> int:
        return hash(self.text)


def input_x_gradient(model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    x = x.requires_grad_()
    return torch.autograd.grad(model(x).gather(1, target[:, None]).sum(), x)[0] * x.detach()
