"""Rewrite: every active node of a captured graph → its relevance-aware counterpart, by a rulebook."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx

from fxlrp.analyse import differentiable
from fxlrp.axes import Axes
from fxlrp.capture import Capture, free_symbols, hint
from fxlrp.confine import LOCK, kept
from fxlrp.errors import FxlrpError
from fxlrp.facts import Facts, leaves
from fxlrp.lookups import NOWHERE, Positions
from fxlrp.ops import about, carriers, is_pointwise
from fxlrp.outputs import Output, explained_output
from fxlrp.patterns.complex_numbers import write_apart
from fxlrp.patterns.emit import emit
from fxlrp.patterns.opaque import explain_opaque
from fxlrp.patterns.sparse import refuse_sparse
from fxlrp.precision import look_up_before_cast, no_autocast, stored, widen, widened
from fxlrp.reads import Place, find_left_out, mark_reads
from fxlrp.recent import Recent
from fxlrp.report import NodeReport, Report, describe, op_name
from fxlrp.rules.generic import generic
from fxlrp.rules.normalise import NONE
from fxlrp.rules.propagate import Adjusted, Given, InPlace, Parted, Site
from fxlrp.rules.quantities import WHOLE, Placement
from fxlrp.rules.registry import Absolute, Derivative, Parts, Rule, Rulebook, Structural
from fxlrp.rules.weighted import ones_for
from fxlrp.samples import Probe
from fxlrp.specialize import copied, specialize

aten = torch.ops.aten


def readout(x: Tensor) -> Tensor:
    """The same values, at which relevance is read: the leaf that the relevance pass ends at."""
    return x.detach().requires_grad_()


def at_positions(r: Tensor, positions: Tensor, count: int) -> Tensor:
    """Relevance r of looked-up entries, summed at the `count` input entries they stand for."""
    known = positions.flatten() != NOWHERE
    out = torch.zeros(count, dtype=r.dtype, device=r.device)
    return out.index_add(0, positions.flatten().clamp(min=0), r.flatten() * known)


def constant(x: Tensor) -> Tensor:
    """The same values, through which no relevance flows: an input that its user's rule gives nothing to."""
    return x.detach()


@dataclass
class Plan:
    """A rewritten graph, ready to run: inputs → (*outputs, *readouts), and what each of these is."""

    graph: fx.GraphModule
    capture: Capture
    readouts: dict[Place, list[int]]  # input tensor, or name → places of its readouts among the graph's outputs
    positions: dict[int, int]  # place of a readout of integers → place of the positions its entries stand for
    logits: int  # place of the logits that are explained
    explained: int  # place of the output they become, which is themselves or, through `head`, their softmax or sigmoid
    head: list[fx.Node]
    together: tuple[int, ...]  # places of the outputs that the logits are the entries of, where they are of several
    report: Report
    apart: bool  # whether the samples of a batch can be told apart at every node
    any_length: bool  # whether it holds for sequences of any length
    key: Any = None  # what an explainer keeps it under

    @property
    def scores_shape(self) -> torch.Size:
        """The shape of the explained output, samples first: [batch, classes], or another."""
        return self.axes.rows(self.graph.graph.output_node().args[0][self.logits].meta["val"]).shape

    @property
    def scores_ndim(self) -> int:
        """How many axes that has."""
        return len(self.scores_shape)

    @property
    def axes(self) -> Axes:
        """Where the samples of a call are."""
        return self.capture.axes

    @cached_property
    def causal(self) -> bool:
        """Whether each of a sequence of logits [B, T, K] depends on what is before it alone: on the last entry of the
        sequence the last one does, and no other, and on the first one too."""
        outputs: Any = self.graph.graph.output_node().args[0]
        logits = outputs[self.logits]
        rows = self.axes.rows(logits.meta["val"])
        length = hint(rows.shape[1])
        starts: dict[fx.Node, int] = {}
        for place, ends in self.readouts.items():
            samples = 0 if isinstance(place, str) else self.axes.inputs[place]
            for node in (outputs[at] for at in ends):
                fit = [a for a, n in enumerate(node.meta["val"].shape) if a != samples and hint(n) == length]
                starts |= dict.fromkeys([node] if fit else [], fit[0] if fit else 0)
        probe = Probe(self.graph, self.capture.inputs, starts)
        first, last = (probe.changes(i, {logits}) if starts else None for i in (0, length - 1))
        if first is None or last is None:
            return False
        by_first, by_last = (self.axes.rows(c[logits]).transpose(0, 1).flatten(1).any(1) for c in (first, last))
        return bool(by_first[-1] and by_last[-1] and not by_last[:-1].any())

    @cached_property
    def random(self) -> bool:
        """Whether the graph draws random numbers."""
        return any(draws(n) for n in self.graph.graph.nodes)

    def specialized(self, one_sided: bool) -> fx.GraphModule:
        """The graph, faster; `one_sided`, for questions whose seeds are ≥ 0, as they are without a contrast."""
        return specialize(self.graph, self.logits, one_sided)

    def in_its_types(self) -> AbstractContextManager:
        """A context that the graph runs in: one in float32 in the place of half precision is not cast back to that."""
        return no_autocast(self.capture.inputs) if self.capture.narrow else nullcontext()

    def starts(self, graph: fx.GraphModule) -> list[fx.Node]:
        """The nodes of a graph like this one that the relevance pass ends at."""
        outputs = graph.graph.output_node().args[0]
        return [outputs[at] for several in self.readouts.values() for at in several]


def rewrite(
    captured: Capture,
    rulebook: Rulebook,
    *,
    strict: bool = False,
    output: Output = None,
    read: Sequence[str] = (),
) -> Plan:
    """Give every active node of `captured` its rule.

    output: the name or place of the output tensor to explain, or the places of several; without it, the one named
    logits, or the first.
    read: the inputs, modules or nodes to read relevance at; without any, all inputs.

    A graph in half precision, that of `captured` included, is in float32 from here on: see `fxlrp.precision`.

    Raises FxlrpError if nothing carries relevance from an input to the output, or, when `strict`, if a node is generic.
    """
    gm = captured.graph
    narrow = [[t.dtype for t in captured.inputs], [n.meta["val"].dtype for n in gm.graph.output_node().args[0]]]
    if widen(gm, captured.inputs):
        captured.narrow, captured.inputs = narrow, widened(captured.inputs)
    if isinstance(output, tuple):
        _put_together(gm, output)
    mark_reads(gm, captured.parameters, read)
    _refuse_generators(gm)
    facts: Facts | None = None
    for graph_pass in (explain_opaque, write_apart, *rulebook.passes):
        if facts is None:  # the graph is new, or changed
            facts = Facts(captured, rulebook, output)
            refuse_sparse(gm, facts.active)
        if graph_pass(gm, facts):
            facts = None
    _split_outputs(gm, rulebook)
    gm.graph.eliminate_dead_code()
    gm.recompile()
    outputs, explained, logits, head = explained_output(captured, output)
    facts = Facts(captured, rulebook, output)
    inputs = facts.readouts
    if not inputs:
        raise FxlrpError(
            "No input carries relevance to the output: the graph from input to output is not differentiable; "
            "pass a float input, or token ids that the model looks up in an embedding."
        )
    for node in gm.graph.nodes:
        node.meta["active"] = node in facts.active
    starts = {n for ns in inputs.values() for n in ns}
    rows: list[NodeReport] = []
    apart = facts.samples.known
    any_length = True
    as_mean = rulebook.lookup(aten.mean.dim, (0,))
    for node in list(gm.graph.nodes):
        if node.op in ("placeholder", "output", "get_attr") or stored(node) is not node:
            continue
        entry = rulebook.lookup(node.target, facts.positions(node))
        if entry is as_mean:
            _pool_as_mean(node)
        if node not in facts.active or node in starts:
            rows.append(describe(node, "inactive", ""))
            continue
        if isinstance(entry, Structural):
            rows.append(describe(node, "structural", ""))
            continue
        if isinstance(entry, Derivative | Parts):
            known = entry is not rulebook.unknown
            rows.append(describe(node, "rule" if known else "generic", entry.name))
            apart &= not _merges(node, facts)
            if isinstance(entry, Derivative):
                node.target = Adjusted(node.target, entry.adjust, entry.parameters, rulebook.name)
            else:
                parts = zip(facts.positions(node), entry.parts, strict=bool(entry.parts))
                node.target = Parted(node.target, entry.name, tuple(parts), rulebook.name)
            continue
        if isinstance(entry, Rule) and entry.shares:
            _numbers_as_tensors(node, entry.shares)
        rows.append(describe(node, "rule" if entry else "generic", entry.name if entry else "generic"))
        apart &= _install(node, entry, facts, rulebook)
        any_length &= rulebook.normalise is NONE or not _tied_to_length(node, facts)
    named = {i if isinstance(i, str) else captured.parameters[i] for i in inputs}
    if missing := [name for name in read if name not in named]:
        raise FxlrpError(
            f"read={missing[0]!r} has no relevance: nothing explained depends on it by numbers, or what else is read "
            "comes between."
        )
    left_out = {} if read else find_left_out(gm, captured.parameters, list(inputs), outputs[logits])
    drawn = any(map(draws, gm.graph.nodes))
    way = captured.way.value + ("; for one draw of its random numbers (seed=…)" if drawn else "")
    report = Report(rows, rulebook.name, way, left_out)
    if strict and report.counts["generic"]:
        names = "; ".join(f"{r.name} ({r.op}) at {r.source}" for r in report.nodes if r.kind == "generic")
        raise FxlrpError(
            f"{report.counts['generic']} node(s) have no rule in {rulebook.name!r}: {names}. "
            "Register one with @fxlrp.rule(op), or convert without strict=True."
        )
    _cut_constants(gm, facts.active)
    places, positions = _add_readouts(gm, outputs, inputs)
    look_up_before_cast(gm)
    gm.recompile()
    together = output if isinstance(output, tuple) else ()
    any_length &= captured.any_length  # which taking ops apart, a loop over steps, may have ended
    return Plan(gm, captured, places, positions, logits, explained, head, together, report, apart, any_length)


def draws(node: fx.Node) -> bool:
    """Whether a node draws random numbers, which dropout does in training alone."""
    op = getattr(node.target, "op", None) if isinstance(node.target, InPlace | Item) else node.target
    if torch.Tag.nondeterministic_seeded not in getattr(op, "tags", ()):
        return False
    how = {a.name: a.default_value for a in op._schema.arguments}
    how |= dict(zip(how, node.args, strict=False)) | dict(node.kwargs)
    return how.get("train", how.get("training", True)) is not False and how.get("dropout_p") != 0


def _refuse_generators(gm: fx.GraphModule) -> None:
    """Raises FxlrpError if a generator of the model's own is drawn from: each run of the graph would go on with it."""
    for node in gm.graph.nodes:
        if draws(node) and node.kwargs.get("generator") is not None:
            row = describe(node, "", "")
            raise FxlrpError(
                f"{row.op} at {row.source} draws by a torch.Generator of the model's own, which a graph can't start "
                "anew at every call: let it draw by torch's (convert(…, seed=…) says which draw), or draw before "
                "the call and give the model what was drawn."
            )


def _pool_as_mean(node: fx.Node) -> None:
    """Averages over all of a picture → means: of a picture whose channels come last, torch makes the average by strides
    written over, which Inductor (torch 2.11) compiles wrongly."""
    if str(node.target).startswith("aten.adaptive_avg_pool") and set(node.args[1]) == {1}:
        node.target, node.args = aten.mean.dim, (node.args[0], [-1 - i for i in range(len(node.args[1]))], True)


def _numbers_as_tensors(node: fx.Node, shares: tuple[int, ...]) -> None:
    """Give a rule that takes a share for it a number among the op's arguments as a tensor."""
    like = node.meta["val"]
    for i in shares:
        if i < len(node.args) and isinstance(node.args[i], int | float):
            with node.graph.inserting_before(node):
                number = emit(
                    node.graph, node, aten.full.default, [], node.args[i], dtype=like.dtype, device=like.device
                )
            node.update_arg(i, number)


def _put_together(gm: fx.GraphModule, places: tuple[int, ...]) -> None:
    """Return also the entries of several outputs beside each other, [batch, entries], as one more output.

    Raises FxlrpError where they have no axis of samples in common.
    """
    end = gm.graph.output_node()
    several = [end.args[0][i] for i in places]
    sizes = {hint(size) for n in several for size in n.meta["val"].shape[:1] or (0,)}
    if len(sizes) > 1 or 0 in sizes:
        shapes = ", ".join(str(tuple(n.meta["val"].shape)) for n in several)
        raise FxlrpError(f"The target depends on outputs of shapes {shapes}, which have no axis of samples in common.")
    with gm.graph.inserting_before(end):
        rows = [
            emit(gm.graph, n, aten.unsqueeze.default, n, 1)
            if n.meta["val"].ndim == 1
            else emit(gm.graph, n, aten.flatten.using_ints, n, 1)
            for n in several
        ]
        both = emit(gm.graph, several[0], aten.cat.default, rows, 1)
    end.args = ((*end.args[0], both),)


def _install(node: fx.Node, entry: Rule | Absolute | None, facts: Facts, book: Rulebook) -> bool:
    """Put a Site in the node's place; False if its samples can't be told apart."""
    op, operands = node.target, leaves(node)
    positions = facts.positions(node)
    rule = entry if isinstance(entry, Rule) else None
    shares = positions if rule is None or rule.shares is None else rule.shares
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        row = describe(node, "", "")
        raise FxlrpError(f"{row.op} at {row.source} returns several tensors and has no rule for that.")
    where = facts.samples.of(node)
    batches = [where, *(where if is_pointwise(op) else facts.samples.of(operands[i]) for i in shares)]
    output, *inputs = (b or WHOLE for b in batches)
    masked = about(op).kind == "softmax" or node in facts.infinite or any(operands[i] in facts.infinite for i in shares)
    plain = op_name(node).split(".")[0]
    nonnegs = tuple(operands[i] in facts.nonnegative for i in shares)
    known: dict[str, Any] = {"nonneg": nonnegs[:1] == (True,), "nonnegs": nonnegs}
    known["op"] = op.op if isinstance(op, Given) else op
    extras = tuple((k, v) for k, v in known.items() if rule and rule.wants(k))
    node.target = Site(
        op,
        rule.fn if rule else generic(op, shares),
        rule.name if rule else plain if entry else f"generic_{plain}",
        book.name,
        book.normalise,
        shares,
        frozenset(positions),
        Placement(output, tuple(inputs), masked),
        extras,
    )
    if book.normalise is NONE:  # then it does not matter where they are
        return not _merges(node, facts)
    # a tensor that all samples share takes relevance from all of them, which can't be told apart
    return None not in batches and len({b == WHOLE for b in batches}) == 1


def _tied_to_length(node: fx.Node, facts: Facts) -> bool:
    """Whether a text's length is folded into an axis of samples, so that where these are holds for one length alone."""

    def tied(n: fx.Node) -> bool:
        where = facts.samples.of(n)
        if where is None or where[1:] == (1, 1):
            return False
        return bool(free_symbols(n.meta["val"].shape[where.axis]) - facts.samples.symbols)

    return tied(node) or any(tied(n) for n in carriers(node) if n in facts.active)


def _merges(node: fx.Node, facts: Facts) -> bool:
    """Whether an input that all samples share takes relevance from each of them here."""
    inputs = [facts.samples.of(n) for n in carriers(node) if n in facts.active]
    return facts.samples.of(node) != WHOLE and WHOLE in inputs


@dataclass(frozen=True)
class Item:
    """One output of an op that has several, as an op of its own."""

    op: Callable
    index: int

    @property
    def __name__(self) -> str:
        return f"{getattr(self.op, '__name__', self.op)}_{self.index}".replace(".", "_")

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.op(*args, **kwargs)[self.index]


def _split_outputs(gm: fx.GraphModule, rulebook: Rulebook) -> None:
    """Rules are for ops with one output: an op with several becomes one op for each that is used."""
    for node in list(gm.graph.nodes):
        if isinstance(node.meta.get("val"), Tensor) or not differentiable(node) or node.op != "call_function":
            continue
        if isinstance(rulebook.lookup(node.target, (0,)), Structural):
            continue
        for item in [u for u in node.users if u.target is operator.getitem]:
            with gm.graph.inserting_before(item):
                one = gm.graph.call_function(Item(node.target, item.args[1]), node.args, node.kwargs)
            one.meta = {**node.meta, "val": item.meta["val"]}
            item.replace_all_uses_with(one)
            gm.graph.erase_node(item)


def _cut_constants(gm: fx.GraphModule, active: set[fx.Node]) -> None:
    """Keep autograd from what is inactive but depends on a readout all the same, such as a denominator."""
    for node in list(gm.graph.nodes):
        users = [u for u in node.users if u in active]
        tensor = node.op == "call_function" and isinstance(node.meta.get("val"), Tensor) and differentiable(node)
        if tensor and node not in active and users and stored(node) is node:
            with gm.graph.inserting_after(node):
                cut = gm.graph.call_function(constant, (node,))
            cut.meta = dict(node.meta)
            for user in users:
                user.replace_input_with(node, cut)


def _add_readouts(
    gm: fx.GraphModule, outputs: list, inputs: dict[Place, list[fx.Node]]
) -> tuple[dict[Place, list[int]], dict[int, int]]:
    """Return the readouts beside the model's outputs, each made the leaf of the relevance pass, and, where they stand
    for entries that were looked up, the positions of these."""
    placeholders = gm.graph.find_nodes(op="placeholder")

    def position(i: Place, node: fx.Node) -> fx.Node | None:
        if isinstance(i, str) or node is placeholders[i] or node.target is ones_for:
            return None
        return Positions(placeholders[i]).at(node)

    found = [(i, n, position(i, n)) for i in inputs for n in inputs[i]]
    places: dict[Place, list[int]] = {i: [] for i in inputs}
    positions: dict[int, int] = {}
    for i, node, stands_for in found:
        with gm.graph.inserting_after(node):
            leaf = gm.graph.call_function(readout)
        leaf.meta = dict(node.meta)
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


EXPOSED = 8
"""How many choices of modules to explain inside of are kept for a graph."""


def expose(gm: fx.GraphModule, names: Sequence[str]) -> tuple[fx.GraphModule, list[int]]:
    """The graph returning also what `names` (modules, by their output, or nodes) name, and the places of these.

    Raises FxlrpError for a name of nothing that carries relevance.
    """
    if not names:
        return gm, []
    known = kept(gm, "exposed", lambda: Recent(EXPOSED))
    with LOCK if known.get(tuple(names)) is None else nullcontext():
        exposed = known.get(tuple(names))
        if exposed is None:
            copy, nodes = copied(gm)
            end = copy.graph.output_node()
            first = len(end.args[0])
            end.args = ((*end.args[0], *(nodes[_named(gm, name)] for name in names)),)
            copy.recompile()
            exposed = known.set(tuple(names), (copy, list(range(first, first + len(names)))))
    return exposed


def _named(gm: fx.GraphModule, name: str) -> fx.Node:
    """The active node of that name, else the last one inside the module of that name."""
    active = [n for n in gm.graph.nodes if n.op == "call_function" and n.meta.get("active")]
    paths = {n: describe(n, "", "").module for n in active}
    inside = [n for n in active if f"{paths[n]}.".startswith(f"{name}.")]
    left = [n for n in inside if any(u not in inside for u in n.users)]
    found = [n for n in active if n.name == name] or (left or inside)[-1:]
    if not found:
        raise FxlrpError(
            f"at={name!r} names no module or node on the way of relevance; modules are, among others, "
            f"{', '.join(sorted({p for p in paths.values() if p})[:8]) or 'none'}."
        )
    return found[0]
