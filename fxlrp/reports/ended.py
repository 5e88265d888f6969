"""Finds the node where relevance ends, and why, for a map that is zero although the score is not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fxlrp.ops import of_kind
from fxlrp.reports.report import NodeReport, Report

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
