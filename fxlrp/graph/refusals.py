"""Says why a captured graph can't be explained, and what to do."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from fxlrp.capture.calls import finite
from fxlrp.errors import OWN_GENERATOR, FxlrpError
from fxlrp.graph.analyse import draws
from fxlrp.graph.facts import Facts
from fxlrp.reports.report import Report, row_of


def nothing_explained(facts: Facts) -> FxlrpError:
    """The error that says why no input carries relevance to the output."""
    captured = facts.captured
    infinite = [n for n, t in zip(captured.parameters, captured.inputs, strict=True) if not finite(t)]
    if infinite:
        return FxlrpError(
            f"No input can be explained: {', '.join(infinite)} holds infinite values, as masks do, which get no "
            "relevance; pass finite ones."
        )
    if node := facts.stops_at():
        row = row_of(node)
        return FxlrpError(
            f"No input gets relevance by {facts.rulebook.name}: its rule for {row.op} ({row.source or row.name}) "
            "passes none on, and there is no way around; choose another rulebook."
        )
    return FxlrpError(
        "No input carries relevance to the output: the graph from input to output is not differentiable; "
        "pass a float input, or token ids that the model looks up in an embedding."
    )


def check_reads(facts: Facts, read: Sequence[str]) -> None:
    """Raises FxlrpError for a requested readout that gets no relevance."""
    readable = {i if isinstance(i, str) else facts.captured.parameters[i] for i in facts.readouts}
    if missing := [name for name in read if name not in readable]:
        raise FxlrpError(
            f"read={missing[0]!r} has no relevance: nothing explained depends on it by numbers, or what else is read "
            "comes between."
        )


def refuse_generic(report: Report) -> None:
    """Raises FxlrpError if a node has no rule of its own."""
    if report.counts["generic"]:
        names = "; ".join(f"{r.name} ({r.op}) at {r.source}" for r in report.nodes if r.kind == "generic")
        raise FxlrpError(
            f"{report.counts['generic']} node(s) have no rule in {report.rulebook!r}: {names}. "
            "Register one with @fxlrp.rule(op), or convert without strict=True."
        )


def refuse_generators(gm: fx.GraphModule) -> None:
    """Raises FxlrpError if a node draws from the model's own generator, whose state each run of the graph advances."""
    for node in gm.graph.nodes:
        if draws(node) and node.kwargs.get("generator") is not None:
            row = row_of(node)
            raise FxlrpError(f"{row.op} at {row.source} {OWN_GENERATOR}")
