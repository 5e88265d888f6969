"""Finds the node where relevance ends, and why, for a map that is zero although the score is not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import Tensor, fx

from fxlrp.nodes import outputs_of
from fxlrp.ops import of_kind
from fxlrp.reports.mass import Mass
from fxlrp.reports.report import NodeReport, Report

if TYPE_CHECKING:
    from fxlrp.graph.plan import Plan

NO_DERIVATIVE = "whose derivative is zero here"
NAMES = {str(op).removeprefix("aten.") for op in of_kind("step")}


@dataclass(frozen=True)
class Ended:
    """Relevance that reached no input.

    samples: the samples whose map is zero; `node` and `why` are about the first of them.
    node: where most of the relevance ended.
    why: the reason, in words.
    place: the input, or the module that was asked for, whose map is zero, if others are not.
    """

    samples: tuple[int, ...]
    node: NodeReport
    why: str
    place: str = ""

    def __str__(self) -> str:
        place = f"{self.node.op} ({self.node.source or self.node.module or self.node.name})"
        which = ", ".join(map(str, self.samples[:8])) + (", …" if len(self.samples) > 8 else "")
        at = f" at {self.place}" if self.place else ""
        return f"The map of sample {which} is zero{at}, though its score is not: relevance ends at {place}, {self.why}."


def find_end(report: Report, samples: Sequence[int]) -> Ended | None:
    """The node where relevance ended, by a weighed report; None if there was no relevance to begin with."""
    ends = [n for n in report.nodes if _size(n.arrives) and not _size(n.leaves)]
    return _ended(max(ends, key=lambda n: _size(n.arrives)), samples) if ends else None


def find_end_to(
    report: Report, samples: Sequence[int], plan: Plan, values: Mapping[fx.Node, object], place: int
) -> Ended | None:
    """The node where relevance ended on its way to one of several inputs; None if a derivative or what comes from the
    input is zero there, so that the score does not depend on it.  values: those of the graph's nodes."""
    outputs, (name, starts) = outputs_of(plan.graph), list(plan.readouts.items())[place]
    within = {outputs[at] for at in starts}
    ends: dict[str, bool] = {}
    for node in plan.graph.graph.nodes:
        if sources := within.intersection(node.all_input_nodes):
            within.add(node)
            passed = any(_size(report.edges.get((node.name, n.name))) for n in sources)
            ends[node.name] = not passed and any(isinstance(v := values.get(n), Tensor) and v.any() for n in sources)
    rows = [n for n in report.nodes if _size(n.arrives) and ends.get(n.name)]
    ended = _ended(max(rows, key=lambda n: _size(n.arrives)), samples) if rows else None
    if ended is None or ended.why == NO_DERIVATIVE:
        return None
    return replace(ended, place=name if isinstance(name, str) else plan.capture.parameters[name])


def _ended(node: NodeReport, samples: Sequence[int]) -> Ended:
    if node.op in NAMES and node.kind != "rule":
        why = "which goes in steps, so that its derivative is zero"
    elif node.kind != "structural":
        why = f"whose rule {node.rule} gives none of it to what carries it on: it went to constants, as biases are"
    else:
        why = NO_DERIVATIVE
    return Ended(tuple(dict.fromkeys(samples)), node, why)


def _size(mass: Mass | None) -> float:
    return mass.size if mass else 0.0
