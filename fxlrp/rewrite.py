"""Rewrite: every active node of a captured graph → its relevance-aware counterpart, by a rulebook."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from fxlrp.analyse import Samples, carriers, differentiable, find_active, find_infinite, find_nonnegative, find_readouts
from fxlrp.capture import Capture
from fxlrp.errors import FxlrpError
from fxlrp.report import NodeReport, Report, describe, op_name
from fxlrp.rules.generic import generic
from fxlrp.rules.propagate import WHOLE, Placement, Site
from fxlrp.rules.registry import Absolute, Entry, Rule, Rulebook, Structural


def readout(x: Tensor) -> Tensor:
    """The same values, at which relevance is read: the leaf that the relevance pass ends at."""
    return x.detach().requires_grad_()


@dataclass
class Plan:
    """A rewritten graph, ready to run: inputs → (*outputs, *readouts), and what each of these is."""

    graph: fx.GraphModule
    capture: Capture
    readouts: dict[int, list[int]]  # input tensor → places of its readouts among the graph's outputs
    logits: int  # place of the explained output
    report: Report
    mixes: str | None  # the node whose samples could not be told apart, if any


def rewrite(captured: Capture, rulebook: Rulebook, *, strict: bool = False) -> Plan:
    """Give every active node of `captured` its rule.

    Raises FxlrpError if nothing carries relevance from an input to the output, or, when `strict`, if a node is generic.
    """
    gm = captured.graph
    for graph_pass in rulebook.passes:
        graph_pass(gm)
    gm.graph.eliminate_dead_code()
    gm.recompile()
    outputs = list(gm.graph.output_node().args[0])
    inputs = find_readouts(gm)
    logits = _explained_output(captured, outputs)
    active = find_active(gm, [n for ns in inputs.values() for n in ns], outputs[logits], _flows_by(rulebook))
    inputs = {i: kept for i, ns in inputs.items() if (kept := [n for n in ns if n in active])}
    if not inputs:
        raise FxlrpError(
            "No input carries relevance to the output: the graph from input to output is not differentiable; "
            "pass a float input, or token ids that the model looks up in an embedding."
        )
    starts = {n for ns in inputs.values() for n in ns}
    samples = Samples(gm, captured.inputs, inputs, active)
    nonnegative, infinite = find_nonnegative(gm), find_infinite(gm, active)
    rows: list[NodeReport] = []
    mixes: str | None = None
    for node in list(gm.graph.nodes):
        if node.op in ("placeholder", "output", "get_attr"):
            continue
        if node not in active or (node in starts):
            rows.append(describe(node, "inactive", ""))
            continue
        entry = _entry(node, active, rulebook)
        if isinstance(entry, Structural):
            rows.append(describe(node, "structural", ""))
            continue
        rows.append(describe(node, "rule" if entry else "generic", entry.name if entry else "generic"))
        unplaced = _install(node, entry, active, nonnegative, infinite, samples, rulebook)
        mixes = mixes or unplaced
    report = Report(rows, rulebook.name)
    if strict and report.counts["generic"]:
        names = "; ".join(f"{r.name} ({r.op}) at {r.source}" for r in report.nodes if r.kind == "generic")
        raise FxlrpError(
            f"{report.counts['generic']} node(s) have no rule in {rulebook.name!r}: {names}. "
            "Register one with @fxlrp.rule(op), or convert without strict=True."
        )
    places = _add_readouts(gm, outputs, inputs)
    gm.recompile()
    return Plan(gm, captured, places, logits, report, mixes)


def _leaves(node: fx.Node) -> list:
    return pytree.tree_leaves((node.args, node.kwargs))


def _active_positions(node: fx.Node, active: set[fx.Node]) -> tuple[int, ...]:
    carrying = set(carriers(node)) & active
    return tuple(i for i, leaf in enumerate(_leaves(node)) if isinstance(leaf, fx.Node) and leaf in carrying)


def _flows_by(rulebook: Rulebook) -> Callable[[fx.Node, set[fx.Node]], list[fx.Node]]:
    """Which of a node's inputs its rule gives relevance to."""

    def flows(node: fx.Node, reached: set[fx.Node]) -> list[fx.Node]:
        positions = _active_positions(node, reached)
        entry = rulebook.lookup(node.target, positions)
        shares = entry.shares if isinstance(entry, Rule) and entry.shares is not None else positions
        return [leaf for i, leaf in enumerate(_leaves(node)) if i in positions and i in shares]

    return flows


def _entry(node: fx.Node, active: set[fx.Node], rulebook: Rulebook) -> Entry | None:
    return rulebook.lookup(node.target, _active_positions(node, active))


def _install(
    node: fx.Node,
    entry: Rule | Absolute | None,
    active: set[fx.Node],
    nonnegative: set[fx.Node],
    infinite: set[fx.Node],
    samples: Samples,
    book: Rulebook,
) -> str | None:
    """Put a Site in the node's place; the node's name if its samples can't be told apart."""
    leaves = _leaves(node)
    positions = _active_positions(node, active)
    rule = entry if isinstance(entry, Rule) else None
    shares = positions if rule is None or rule.shares is None else rule.shares
    op = node.target
    if not isinstance(node.meta.get("val"), Tensor):
        row = describe(node, "generic", "")
        raise FxlrpError(
            f"{row.op} at {row.source} returns several tensors and has no rule; register one for it with @fxlrp.rule."
        )
    where = samples.of(node)
    pointwise = torch.Tag.pointwise in getattr(op, "tags", ())
    batches = [where, *(where if pointwise else samples.of(leaves[i]) for i in shares)]
    unplaced = None if all(b is not None for b in batches) else node.name
    output, *inputs = (b or WHOLE for b in batches)
    placement = Placement(output, tuple(inputs), node in infinite or any(leaves[i] in infinite for i in shares))
    fn = rule.fn if rule else generic(op, shares)
    extras = (("nonneg", leaves[shares[0]] in nonnegative),) if rule and rule.wants("nonneg") else ()
    plain = op_name(node).split(".")[0]
    name = rule.name if rule else plain if entry else f"generic_{plain}"
    node.target = Site(
        op,
        fn,
        name,
        book.name,
        book.normalise,
        shares,
        frozenset(positions),
        placement,
        extras,
    )
    return unplaced


def _explained_output(captured: Capture, outputs: list) -> int:
    """The place of the logits among the output tensors: the one named so, else the first float one."""
    for i, name in enumerate(captured.output_names):
        if "logits" in name:
            return i
    for i, node in enumerate(outputs):
        if isinstance(node, fx.Node) and differentiable(node):
            return i
    raise FxlrpError("The model returns no float tensor that could be explained.")


def _add_readouts(gm: fx.GraphModule, outputs: list, inputs: dict[int, list[fx.Node]]) -> dict[int, list[int]]:
    """Return the readouts beside the model's outputs, each made the leaf of the relevance pass."""
    places: dict[int, list[int]] = {}
    for i, nodes in inputs.items():
        places[i] = []
        for node in nodes:
            with gm.graph.inserting_after(node):
                leaf = gm.graph.call_function(readout)
            leaf.meta = dict(node.meta)
            node.replace_all_uses_with(leaf)
            leaf.args = (node,)
            outputs = [leaf if o is node else o for o in outputs]
            places[i].append(len(outputs))
            outputs = [*outputs, leaf]
    gm.graph.output_node().args = (tuple(outputs),)
    return places
