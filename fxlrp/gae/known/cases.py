"""A case: a network whose right answer is known, what a method is asked about it, and how the answer is scored."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fxlrp.errors import FxlrpError
from fxlrp.gae.metric import Views

Row = dict[str, Any]


@dataclass(frozen=True)
class Known:
    """A network, the inputs that a method explains, and score(relevance of all of them) → a row for each sample.

    facts: what is true of the network whatever explains it, such as its accuracy.
    """

    model: nn.Module
    views: Views
    score: Callable[[Tensor], list[Row]]
    facts: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """A network that is known, of a suite; build() makes it, which trains it where it is trained."""

    suite: str
    name: str
    build: Callable[[], Known]


def generator(*key: object) -> torch.Generator:
    """Random numbers that depend on the key alone."""
    drawn = hashlib.sha256(":".join(map(str, key)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(drawn[:7], "big"))


def views(x: Tensor, target: Tensor, truth: Tensor, stage: str = "x") -> Views:
    """The inputs that a method is asked about, with names that no others have."""
    return Views(x, target, [f"{i}:{stage}" for i in range(len(x))], truth)


def misplaced(relevance: Tensor, right: Tensor) -> Tensor:
    """How much of all relevance is not where it should be, 0 … 1 per sample: ½ Σ |R/Σ|R| − T/Σ|T||; of no map, 1."""
    r, t = relevance.flatten(1), right.flatten(1)
    total = r.abs().sum(1, keepdim=True)
    share = r / torch.where(total > 0, total, 1)
    gap = (share - t / t.abs().sum(1, keepdim=True)).abs().sum(1) / 2
    return torch.where(total[:, 0] > 0, gap, torch.ones_like(gap))


def right(model: nn.Module, x: Tensor, target: Tensor, *answers: Tensor, tolerance: float = 0.05) -> Known:
    """A network [n, …] → scores [n, K] whose right attributions of x for the classes target [n] are known.

    answers: each like x; a method is right about a sample if at most `tolerance` of its relevance is misplaced against
    one of them.  The first is the ground truth.

    Raises FxlrpError for answers that are not like x, or not a number, or nothing at all of a sample.
    """
    if not answers or any(a.shape != x.shape for a in answers) or target.shape != x.shape[:1]:
        shapes = ", ".join(str(list(t.shape)) for t in (x, target, *answers))
        raise FxlrpError(f"x, target and each answer should be [n, …], [n] and [n, …] like x; they are {shapes}.")
    for i, parts in enumerate(zip(*answers, strict=True)):
        if not all(part.isfinite().all() and part.any() for part in parts):
            raise FxlrpError(f"The answer about sample {i} is no number, or 0 everywhere; it should have relevance.")

    def score(relevance: Tensor) -> list[Row]:
        errors = torch.stack([misplaced(relevance, a.to(relevance)) for a in answers]).amin(0).tolist()
        return [{"sample": i, "passed": float(e <= tolerance), "misplaced": e} for i, e in enumerate(errors)]

    return Known(model, views(x, target, answers[0]), score)


def joined(parts: Sequence[Views]) -> Views:
    """Several sets of inputs of one shape as one."""
    truths = [p.truth for p in parts if p.truth is not None]
    keys = [key for p in parts for key in p.keys]
    return Views(torch.cat([p.x for p in parts]), torch.cat([p.target for p in parts]), keys, torch.cat(truths))
