"""Where relevance ends: a map that is zero although the score is not says at which node, and why."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fxlrp.report import NodeReport, Report
from fxlrp.rules.values import STEPS

NAMES = {str(op).removeprefix("aten.") for op in STEPS}


class NoRelevance(UserWarning):
    """A map is zero although the score is not."""


@dataclass(frozen=True)
class Ended:
    """Relevance that reached no input.

    samples: those whose map is zero; what follows is of the first of them.
    node: where most of it ended.
    why: in words.
    """

    samples: tuple[int, ...]
    node: NodeReport
    why: str

    def __str__(self) -> str:
        at = f"{self.node.op} ({self.node.source or self.node.module or self.node.name})"
        which = ", ".join(map(str, self.samples[:8])) + (", …" if len(self.samples) > 8 else "")
        return f"The map of sample {which} is zero, though its score is not: relevance ends at {at}, {self.why}."


def zero_maps(relevance: Sequence[Tensor], batch: int, columns: int) -> list[tuple[int, int]]:
    """The (sample, column) whose relevance is zero at all inputs; columns: of how many classes there is one each."""
    rows = [r.reshape(batch, columns, -1) for r in relevance if r.ndim and len(r) == batch]
    if not rows or not batch or any(r.shape[2] == 0 for r in rows) or len(rows) < len(relevance):
        return []
    dead = torch.stack([~r.any(2) for r in rows]).all(0)
    return [(i, k) for i, k in dead.nonzero().tolist()] if bool(dead.any()) else []


def find_end(report: Report, samples: Sequence[int]) -> Ended | None:
    """Where it ended, by a report that was weighed; None if there was none to begin with."""
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


def warn(ended: Ended) -> None:
    """Warn of it, at the line that asked for the map."""
    warnings.warn(NoRelevance(str(ended)), stacklevel=2)
