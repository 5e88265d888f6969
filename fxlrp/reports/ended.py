"""Finds the node where relevance ends, and why, for a map that is zero although the score is not."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fxlrp.errors import NoRelevance
from fxlrp.ops import of_kind
from fxlrp.reports.report import NodeReport, Report

if TYPE_CHECKING:
    from fxlrp.attribution import Attribution

NAMES = {str(op).removeprefix("aten.") for op in of_kind("step")}


@dataclass(frozen=True)
class Ended:
    """Relevance that reached no input.

    samples: the samples whose map is zero; `node` and `why` are about the first of them.
    node: where most of the relevance ended.
    why: the reason, in words.
    """

    samples: tuple[int, ...]
    node: NodeReport
    why: str

    def __str__(self) -> str:
        place = f"{self.node.op} ({self.node.source or self.node.module or self.node.name})"
        which = ", ".join(map(str, self.samples[:8])) + (", …" if len(self.samples) > 8 else "")
        return f"The map of sample {which} is zero, though its score is not: relevance ends at {place}, {self.why}."


def zero_maps(
    relevance: Sequence[Tensor], axes: Sequence[int | None], batch: int, columns: int
) -> list[tuple[int, int]]:
    """The (sample, column) pairs whose relevance is zero at all inputs.

    axes: the sample axis of each input; inputs that samples share must be zero too.  columns: the number of classes
    with a map each.
    """
    pairs = list(zip(relevance, axes, strict=True))
    if not batch or (batch > 1 and any(bool(r.any()) for r, axis in pairs if axis is None)):
        return []

    def row(r: Tensor, axis: int | None) -> Tensor:
        if axis:
            r = r.movedim((axis, axis + 1), (0, 1)) if columns > 1 else r.movedim(axis, 0)
        return r.reshape(batch, columns, -1)

    rows = [row(r, axis) for r, axis in pairs if axis is not None or batch == 1]
    if not rows or any(not r.numel() for r in rows):
        return []
    dead = torch.stack([~r.any(2) for r in rows]).all(0)
    return [(i, k) for i, k in dead.nonzero().tolist()] if bool(dead.any()) else []


def find_end(report: Report, samples: Sequence[int]) -> Ended | None:
    """The node where relevance ended, by a weighed report; None if there was no relevance to begin with."""
    ends = [n for n in report.nodes if n.arrives is not None and n.arrives.size and not (n.leaves and n.leaves.size)]
    if not ends:
        return None
    node = max(ends, key=lambda n: n.arrives.size if n.arrives else 0)
    if node.op in NAMES and node.kind != "rule":
        why = "which goes in steps, so that its derivative is zero"
    elif node.kind == "rule":
        why = f"whose rule {node.rule} gives none of it to what carries it on: it went to constants, as biases are"
    else:
        why = "whose derivative is zero here"
    return Ended(tuple(dict.fromkeys(samples)), node, why)


def not_finite(a: Attribution) -> str | None:
    """The sentence that says why a map has NaN or infinite entries; None if it has none."""
    if all(bool(r.isfinite().all()) for r in a.each):
        return None
    broken = [name for name, x in zip(a.named, a.inputs, strict=True) if not bool(x.isfinite().all())]
    if broken:
        why = f"nor is input {', '.join(broken)}; put a number where one is missing"
    elif not bool(a.logits.isfinite().all()):
        why = "nor is the model's own output; look for what it divides by zero, or for weights that are NaN"
    else:
        why = "though input and output are; trace=True says at which node it begins"
    return f"The map is not finite, {why}."


def warn(message: object) -> None:
    """Warns that a map says nothing, at the line that requested it."""
    warnings.warn(NoRelevance(str(message)), stacklevel=2)
