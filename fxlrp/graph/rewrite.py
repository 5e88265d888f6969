"""Rewrites every active node of a captured graph into one whose backward pass follows its rule in a rulebook."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, fx

from fxlrp import acceleration
from fxlrp.capture.model import Capture
from fxlrp.capture.precision import look_up_before_cast, stored, widen, widened
from fxlrp.capture.symbols import free_symbols
from fxlrp.emit import emit
from fxlrp.engine.replaced import ByDerivative, ByRule, ByScaledDerivative, Item, constant, readout
from fxlrp.errors import FxlrpError
from fxlrp.graph.analyse import can_carry, draws
from fxlrp.graph.facts import Facts
from fxlrp.graph.lookups import Positions
from fxlrp.graph.outputs import Output, put_together
from fxlrp.graph.plan import Plan
from fxlrp.graph.reads import Place, find_left_out, mark_reads
from fxlrp.graph.refusals import check_reads, nothing_explained, refuse_generators, refuse_generic
from fxlrp.nodes import args_of, leaves, outputs_of, target_of
from fxlrp.ops import about, carriers, is_pointwise
from fxlrp.patterns.complex_numbers import write_apart
from fxlrp.patterns.opaque import explain_opaque
from fxlrp.patterns.sparse import refuse_sparse
from fxlrp.patterns.unbatched import batch_convolutions
from fxlrp.reports.report import NodeReport, Report, op_name, row_of
from fxlrp.rules.normalise import NONE
from fxlrp.rules.per_sample import WHOLE, Placement
from fxlrp.rules.registry import ABSOLUTE, Derivative, Rule, Rulebook, ScaledDerivative, Structural
from fxlrp.rules.weighted import ones_for

aten = torch.ops.aten


def rewrite(
    captured: Capture,
    rulebook: Rulebook,
    *,
    strict: bool = False,
    output: Output = None,
    read: Sequence[str] = (),
) -> Plan:
    """Gives every active node of `captured` its rule.

    output: the name or index of the output tensor to explain, or the indices of several; by default the one named
    logits, or the first.
    read: the inputs, modules or nodes to read relevance at; by default all inputs.

    Converts a graph in half precision, that of `captured` itself, to float32: see `fxlrp.capture.precision`.

    Raises FxlrpError if no input carries relevance to the output, or, when `strict`, if a node is generic.
    """
    gm = captured.graph
    _to_float32(captured)
    if isinstance(output, tuple):
        put_together(gm, output)
    marked = mark_reads(gm, captured.parameters, read)
    refuse_generators(gm)
    facts = _run_passes(captured, rulebook, output, marked)
    if not facts.readouts:
        raise nothing_explained(facts)
    left_out = {} if read else find_left_out(captured, list(facts.readouts), facts.explained.end, rulebook.name)
    rows, separable, any_length = _replace_ops(gm, facts, rulebook)
    check_reads(facts, read)
    random = any(map(draws, gm.graph.nodes))
    mode = captured.mode.value + ("; for one draw of its random numbers (seed=…)" if random else "")
    report = Report(rows, rulebook.name, mode, left_out)
    if strict:
        refuse_generic(report)
    _cut_constants(gm, facts.active)
    places, positions = _add_readouts(gm, facts.explained.outputs, facts.readouts, facts.active)
    look_up_before_cast(gm)
    gm.recompile()
    return Plan(
        gm,
        captured,
        places,
        positions,
        logits=facts.explained.logits,
        explained=facts.explained.place,
        head=facts.explained.head,
        together=output if isinstance(output, tuple) else (),
        report=report,
        random=random,
        active=frozenset(n.name for n in facts.active),
        samples_separable=separable,
        any_length=any_length and captured.any_length,  # decomposing ops (a loop over steps) may have fixed a length
        samples={n.name: axis for n in facts.active if (axis := facts.samples.of(n)) is not None},
    )


def _to_float32(captured: Capture) -> None:
    """Converts a capture in half precision, which notes the types that it had."""
    narrow = [[t.dtype for t in captured.inputs], [n.meta["val"].dtype for n in outputs_of(captured.graph)]]
    if widen(captured.graph, captured.inputs):
        captured.narrow, captured.inputs = narrow, widened(captured.inputs)


def _run_passes(captured: Capture, rulebook: Rulebook, output: Output, marked: Mapping[fx.Node, str]) -> Facts:
    """Canonicalizes the graph by the rulebook's passes, and gives each op one output; returns the facts about it."""
    gm = captured.graph
    facts: Facts | None = None
    for graph_pass in (explain_opaque, write_apart, batch_convolutions, *rulebook.passes, _split_outputs):
        if facts is None:  # the graph is new or has changed
            facts = Facts(captured, rulebook, output, marked)
            refuse_sparse(gm, facts.active)
        if graph_pass(gm, facts):
            facts = None
    removed = gm.graph.eliminate_dead_code()
    return Facts(captured, rulebook, output, marked) if facts is None or removed else facts


def _replace_ops(gm: fx.GraphModule, facts: Facts, rulebook: Rulebook) -> tuple[list[NodeReport], bool, bool]:
    """Replaces every active node's op by the op with its rule.

    Returns a report row per node, whether all nodes keep samples apart, and whether the nodes' sample axes hold for
    sequences of any length.
    """
    starts = {n for ns in facts.readouts.values() for n in ns}
    rows: list[NodeReport] = []
    separable, any_length = facts.samples.known, True
    of_mean = rulebook.lookup(aten.mean.dim, (0,))
    for node in list(gm.graph.nodes):
        if node.op in ("placeholder", "output", "get_attr") or stored(node) is not node:
            continue
        entry = rulebook.lookup(node.target, facts.positions(node))
        if entry is of_mean:
            _pool_as_mean(node)
        if node not in facts.active or node in starts:
            rows.append(row_of(node, "inactive", ""))
        elif isinstance(entry, Structural):
            rows.append(row_of(node, "structural", ""))
        elif isinstance(entry, Derivative | ScaledDerivative):
            rows.append(row_of(node, "generic" if entry is rulebook.unknown else "rule", entry.name))
            separable &= not _merges(node, facts)
            if isinstance(entry, Derivative):
                node.target = ByDerivative(target_of(node), entry, rulebook.name)
            else:
                node.target = ByScaledDerivative(target_of(node), entry, facts.positions(node), rulebook.name)
        else:
            if entry and entry.argnums:
                _numbers_as_tensors(node, entry.argnums)
            rows.append(row_of(node, "rule" if entry else "generic", entry.name if entry else "generic"))
            separable &= _replace_by_rule(node, entry, facts, rulebook)
            any_length &= rulebook.normalise is NONE or not _tied_to_length(node, facts)
    return rows, separable, any_length


def _pool_as_mean(node: fx.Node) -> None:
    """Replaces global average pooling by a mean: with channels last, torch overwrites the result's strides, which
    Inductor (torch 2.11) compiles wrongly."""
    if str(node.target).startswith("aten.adaptive_avg_pool"):
        x, sizes = args_of(node)
        if set(sizes) == {1}:
            node.target, node.args = aten.mean.dim, (x, [-1 - i for i in range(len(sizes))], True)


def _numbers_as_tensors(node: fx.Node, argnums: tuple[int, ...]) -> None:
    """Turns numbers among an op's arguments into tensors where the rule gives them relevance."""
    like = node.meta["val"]
    for i in argnums:
        if i < len(node.args) and isinstance(node.args[i], int | float):
            with node.graph.inserting_before(node):
                number = emit(
                    node.graph, node, aten.full.default, [], node.args[i], dtype=like.dtype, device=like.device
                )
            node.update_arg(i, number)


def _replace_by_rule(node: fx.Node, entry: Rule | None, facts: Facts, book: Rulebook) -> bool:
    """Replaces the node's op by one with a rule; returns False if its samples can't be told apart."""
    op, operands = target_of(node), leaves(node)
    positions = facts.positions(node)
    rule = entry or ABSOLUTE
    argnums = positions if rule.argnums is None else rule.argnums
    if not isinstance(node.meta.get("val"), Tensor):
        row = row_of(node)
        raise FxlrpError(f"{row.op} at {row.source} returns several tensors and has no rule for that.")
    node_samples = facts.samples.of(node)
    batches = [node_samples, *(node_samples if is_pointwise(op) else facts.samples.of(operands[i]) for i in argnums)]
    output, *inputs = (b or WHOLE for b in batches)
    masked = about(op).kind == "softmax" or any(n in facts.infinite for n in (node, *(operands[i] for i in argnums)))
    plain = op_name(node).split(".")[0]
    replaced = ByRule(
        op,
        rule,
        f"generic_{plain}" if entry is None else plain if entry is ABSOLUTE else rule.name,
        book.name,
        book.normalise,
        argnums,
        Placement(output, tuple(inputs), masked),
    )
    node.target = acceleration.with_kernel(replaced, tuple(operands[i] in facts.nonnegative for i in argnums))
    if book.normalise is NONE:  # without normalisation, the sample axes do not matter
        return not _merges(node, facts)
    # a tensor that all samples share gets the relevance of all of them in one sum
    return None not in batches and len({b == WHOLE for b in batches}) == 1


def _tied_to_length(node: fx.Node, facts: Facts) -> bool:
    """Whether a text's length is folded into a sample axis, so that the axis holds for one length only."""

    def tied(n: fx.Node) -> bool:
        n_samples = facts.samples.of(n)
        if n_samples is None or n_samples[1:] == (1, 1):
            return False
        return bool(free_symbols(n.meta["val"].shape[n_samples.axis]) - facts.samples.symbols)

    return tied(node) or any(tied(n) for n in carriers(node) if n in facts.active)


def _merges(node: fx.Node, facts: Facts) -> bool:
    """Whether an input that all samples share gets relevance from each of them at this node."""
    inputs = [facts.samples.of(n) for n in carriers(node) if n in facts.active]
    return facts.samples.of(node) != WHOLE and WHOLE in inputs


def _split_outputs(gm: fx.GraphModule, facts: Facts) -> bool:
    """Splits an op with several outputs into one op per output used, because rules are for ops with one output."""
    changed = False
    for node in list(gm.graph.nodes):
        if isinstance(node.meta.get("val"), Tensor) or not can_carry(node) or node.op != "call_function":
            continue
        if isinstance(facts.rulebook.lookup(node.target, (0,)), Structural):
            continue
        for item in [u for u in node.users if u.target is operator.getitem]:
            with gm.graph.inserting_before(item):
                single = gm.graph.call_function(Item(node.target, item.args[1]), node.args, node.kwargs)
            single.meta = {**node.meta, "val": item.meta["val"]}
            item.replace_all_uses_with(single)
            gm.graph.erase_node(item)
            changed = True
    return changed


def _cut_constants(gm: fx.GraphModule, active: set[fx.Node]) -> None:
    """Detaches inactive nodes (such as a denominator) from active users, since they may depend on a readout too."""
    for node in list(gm.graph.nodes):
        users = [u for u in node.users if u in active]
        tensor = node.op == "call_function" and isinstance(node.meta.get("val"), Tensor) and can_carry(node)
        if tensor and node not in active and users and stored(node) is node:
            with gm.graph.inserting_after(node):
                cut = gm.graph.call_function(constant, (node,))
            cut.meta = dict(node.meta)
            for user in users:
                user.replace_input_with(node, cut)


def _add_readouts(
    gm: fx.GraphModule, outputs: list, inputs: dict[Place, list[fx.Node]], active: set[fx.Node]
) -> tuple[dict[Place, list[int]], dict[int, int]]:
    """Makes each readout a leaf of the relevance pass and an output of the graph, followed, for looked-up vectors, by
    the positions of their entries.  Returns the output indices of the readouts, and of their positions."""
    placeholders = gm.graph.find_nodes(op="placeholder")

    def position(i: Place, node: fx.Node) -> fx.Node | None:
        if isinstance(i, str) or node is placeholders[i] or node.target is ones_for:
            return None
        return Positions(placeholders[i]).at(node)

    readouts = [(i, n, position(i, n)) for i in inputs for n in inputs[i]]
    places: dict[Place, list[int]] = {i: [] for i in inputs}
    positions: dict[int, int] = {}
    for i, node, stands_for in readouts:
        with gm.graph.inserting_after(node):
            leaf = gm.graph.call_function(readout)
        leaf.meta = dict(node.meta)
        active.add(leaf)
        node.replace_all_uses_with(leaf)
        leaf.args = (node,)
        outputs = [leaf if o is node else o for o in outputs]
        places[i].append(len(outputs))
        outputs = [*outputs, leaf]
        if stands_for is not None:
            positions[len(outputs) - 1] = len(outputs)
            outputs = [*outputs, stands_for]
    gm.graph.output_node().args = (tuple(outputs),)
    return places, positions
