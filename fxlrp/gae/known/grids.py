"""GridPG (Rao et al., CVPR 2022, 2205.10435; Böhle et al., CVPR 2021): four pictures of several classes in one.

Of positive relevance for the class of a cell, how much lies in that cell; a map that does not know the class has ¼.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from fxlrp.gae.known import creatures
from fxlrp.gae.known.cases import Case, Known, Row, generator, views
from fxlrp.gae.known.parts import STEPS, classifier
from fxlrp.gae.mosaics import tile

CELLS = 4


def cells(size: int) -> Tensor:
    """Where each of four cells is, bool [4, size, size]."""
    half = size // 2
    masks = torch.zeros(CELLS, size, size, dtype=torch.bool)
    for i in range(CELLS):
        masks[i, i // 2 * half : (i // 2 + 1) * half, i % 2 * half : (i % 2 + 1) * half] = True
    return masks


def measure(relevance: Tensor, cell: Tensor) -> list[Row]:
    """Of relevance [n, C, H, W], the part of what is positive that lies in the cell [n, H, W]; of none, 0."""
    up = relevance.sum(1).relu()
    inside, total = (up * cell).sum((1, 2)), up.sum((1, 2))
    parts = torch.where(total > 0, inside / total, 0)
    return [{"sample": i, "localisation": part} for i, part in enumerate(parts.tolist())]


def build(seed: int, folder: Path | None, steps: int, samples: int) -> Known:
    """Grids of the pictures that the network is surest of, four classes each; each cell is asked about."""
    model, codes = classifier(seed, folder, steps)
    g = generator(seed, "grids")
    scene = creatures.scene(codes, 40 * creatures.CLASSES, g)
    x = creatures.picture(scene)
    with torch.no_grad():
        sure = model(x).softmax(1).gather(1, scene.target[:, None])[:, 0]
    best = [[i for i in sure.argsort(descending=True).tolist() if scene.target[i] == c] for c in range(len(codes))]
    order = [torch.randperm(len(codes), generator=g)[:CELLS].tolist() for _ in range(samples)]
    rows = torch.tensor([[best[c][turn % len(best[c])] for c in four] for turn, four in enumerate(order)])
    grids = tile(x[rows.T])
    where = cells(grids.shape[-1]).repeat(samples, 1, 1)
    asked = views(
        grids.repeat_interleave(CELLS, 0), scene.target[rows].flatten(), where[:, None].expand(-1, 3, -1, -1).float()
    )
    facts = {"least probability of a picture's class": float(sure[rows].min())}
    return Known(model, asked, lambda relevance: measure(relevance, where), facts)


def cases(seed: int, folder: Path | None = None, samples: int = 8, steps: int = STEPS) -> list[Case]:
    """Grids of creatures."""
    return [Case("grids", "grids of creatures", lambda: build(seed, folder, steps, samples))]
