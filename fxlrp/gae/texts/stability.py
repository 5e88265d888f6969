"""Does a map stay under noise, and change with the weights?  What a map is on changed copies of a model."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fxlrp.errors import FxlrpError

DRAWS, RADIUS = 3, 0.2


def embedding_of(model: nn.Module, inputs: Mapping[str, Tensor]) -> nn.Embedding:
    """Return the table in which a model looks up its `input_ids`, of several the first it asks.

    Raises FxlrpError for a model that has none.
    """
    ids = inputs["input_ids"]
    tables: list[Any] = []

    def note(table: nn.Module, args: tuple, out: Tensor) -> None:
        if args and isinstance(args[0], Tensor) and args[0].shape == ids.shape and bool((args[0] == ids).all()):
            tables.append(table)

    hooks = [m.register_forward_hook(note) for m in model.modules() if isinstance(m, nn.Embedding)]
    try:
        with torch.no_grad():
            model(**inputs)
    finally:
        for hook in hooks:
            hook.remove()
    if not tables:
        raise FxlrpError("The model has no table of word embeddings.")
    return tables[0]


class Shadow:
    """A copy of a model whose weights can be changed and put back.  inputs: of any call."""

    def __init__(self, model: nn.Module, seed: int, inputs: Mapping[str, Tensor]) -> None:
        self.origin, self.seed = model, seed
        self.model = copy.deepcopy(model)
        table = embedding_of(self.model, inputs)
        self.table = nn.Parameter(table.weight.detach().clone())  # no longer what the output may share
        table.weight = self.table

    def noisy(self) -> Iterator[None]:
        """Add noise to the word embeddings, other noise each time.

        Uniform noise of up to 0.2 deviations of the table is drawn by the seed, the same wherever a token stands.
        """
        clean = self.table.detach().clone()
        sigma = float(clean.float().std())
        try:
            for draw in range(DRAWS):
                generator = torch.Generator().manual_seed(self.seed * DRAWS + draw)
                noise = torch.rand(clean.shape, generator=generator) * 2 - 1
                with torch.no_grad():
                    self.table.copy_(clean + RADIUS * sigma * noise.to(clean))
                yield
        finally:
            with torch.no_grad():
                self.table.copy_(clean)

    @contextmanager
    def randomized(self) -> Iterator[None]:
        """Draw all matrices anew, normal with the mean and deviation of each: what was learned is gone, the size of
        numbers is kept (Adebayo et al. 2018, 1810.03292)."""
        generator = torch.Generator().manual_seed(self.seed)
        try:
            with torch.no_grad():
                for p in self.model.parameters():
                    if p.ndim > 1 and p.is_floating_point():
                        spread, mean = p.float().std(), p.float().mean()
                        p.copy_((torch.randn(p.shape, generator=generator).to(p.device) * spread + mean).to(p))
            yield
        finally:
            weights = self.origin.named_parameters(remove_duplicate=False)
            with torch.no_grad():
                for (_, p), (_, clean) in zip(
                    self.model.named_parameters(remove_duplicate=False), weights, strict=True
                ):
                    p.copy_(clean)


def change(heat: Tensor, others: list[Tensor]) -> float | None:
    """Return the largest change of a map [T] relative to its length (Yeh et al. 2019, 1901.09392); None of zeros."""
    size = float(heat.norm())
    return max(float((other - heat).norm()) for other in others) / size if size else None


def correlation(a: Tensor, b: Tensor) -> float | None:
    """Return Spearman's correlation of two maps [N], equal values at their mean rank; None where one is constant."""
    ranks = [_ranks(x.double()) for x in (a, b)]
    x, y = (r - r.mean() for r in ranks)
    size = float(x.norm() * y.norm())
    value = float((x * y).sum()) / size if size else math.nan
    return value if math.isfinite(value) else None


def _ranks(x: Tensor) -> Tensor:
    return ((x[:, None] > x).sum(1) + (x[:, None] >= x).sum(1)).double() / 2
