"""Samples: which axes of a call count them, and where they are at each node of a captured graph.

Symbolic shapes tell most of it.  What they don't, a probe does: one sample is nudged where relevance is read, by values
close to its own, and what changes belongs to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor, fx

from fxlrp.capture.axes import Axes, joined_by_sparse
from fxlrp.capture.model import Capture, Way
from fxlrp.capture.state import drawing
from fxlrp.capture.symbols import free_symbols
from fxlrp.errors import FxlrpError
from fxlrp.graph.lookups import cast_one_hots
from fxlrp.graph.outputs import Output, explained_output
from fxlrp.graph.reads import Place, find_readouts
from fxlrp.graph.rowwise import differ, is_rowwise
from fxlrp.patterns.bags import spell_bags
from fxlrp.patterns.packed import spell_packed
from fxlrp.patterns.sparse import spell_sparse
from fxlrp.rules.per_sample import WHOLE, Batch

NUDGE = 1e-3
"""By which part of itself, at most, a value is nudged: an integer among floats stays that when it is rounded down."""


PRIMES = (5, 7, 11, 13, 17, 19)


def nudged(t: Tensor) -> Tensor:
    """Other values of the same kind: each a little above its own, by shares that differ from entry to entry."""
    size = t.abs()
    size = size.where(size.isfinite(), 0)
    steps = torch.arange(1, t.numel() + 1, device=t.device, dtype=size.dtype).view(t.shape)
    share = 0.5 + 0.5 * (steps * 0.6180339887).frac()
    return t + NUDGE * share * (size + size.mean().clamp(max=1)) if t.numel() else t


class Probe:
    """Runs a graph as it is and with one sample nudged, and says what changes."""

    def __init__(self, graph: fx.GraphModule, inputs: Sequence[Tensor], starts: Mapping[fx.Node, int]) -> None:
        self.graph, self.inputs, self.starts = graph, inputs, starts
        self.plain: dict[fx.Node, Tensor] = {}

    def changes(self, sample: int, wanted: set[fx.Node]) -> dict[fx.Node, Tensor] | None:
        """Which entries of each node in `wanted` depend on a sample, as booleans; None if no run with it succeeds."""
        try:
            if missing := wanted - self.plain.keys():
                self.plain.update(_Nudging(self, missing, None).seen())
            return _Nudging(self, wanted, sample).seen()
        except (RuntimeError, IndexError, ValueError):  # the network takes no such values
            return None


class _Nudging(fx.Interpreter):
    """Runs a graph, with one sample nudged or none, and keeps of each node in `wanted` the value, or what changed."""

    def __init__(self, probe: Probe, wanted: set[fx.Node], sample: int | None) -> None:
        super().__init__(probe.graph)
        self.probe, self.wanted, self.sample = probe, wanted, sample
        self.found: dict[fx.Node, Tensor] = {}

    def seen(self) -> dict[fx.Node, Tensor]:
        """What is kept of a run."""
        with torch.no_grad(), drawing(0, self.probe.inputs):
            self.run(*(t.clone() for t in self.probe.inputs))
        return self.found

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n in self.probe.starts and self.sample is not None:
            value = value.clone()
            one = value.select(self.probe.starts[n], self.sample)
            one.copy_(nudged(one))
        if n in self.wanted:
            self.found[n] = value if self.sample is None else differ(self.probe.plain[n], value)
        return value


def starts_of(
    graph: fx.GraphModule, readouts: Mapping[Place, Sequence[fx.Node]], axes: Axes, count: int
) -> tuple[dict[fx.Node, int], bool]:
    """The nodes where relevance is read, with the axis of their samples, and whether that is known of all of them."""
    symbols = batch_symbols(graph, axes)
    starts, known = {}, True
    for i, nodes in readouts.items():
        axis = 0 if isinstance(i, str) else axes.inputs[i]
        if axis is None:
            continue
        for node in nodes:
            shape = node.meta["val"].shape
            plain = plain_axis(node, symbols)
            if plain is not None:
                starts[node] = plain
            elif len(shape) > axis and shape[axis] == count:
                starts[node] = axis
            elif candidates(node.meta["val"], symbols):  # folded with another axis before it was looked up
                known = False
    return starts, known


def batch_symbols(graph: fx.GraphModule, axes: Axes) -> set:
    """The symbols that stand for the number of samples."""
    places = zip(graph.graph.find_nodes(op="placeholder"), axes.inputs, strict=True)
    return {s for n, axis in places if axis is not None for s in free_symbols(n.meta["val"].shape[axis])}


def candidates(traced: Tensor, symbols: set) -> list[int]:
    """The axes of a traced tensor that the samples are a part of, by their symbols."""
    return [axis for axis, size in enumerate(traced.shape) if free_symbols(size) & symbols]


def plain_axis(node: fx.Node, symbols: set) -> int | None:
    """The axis of a node that counts the samples and nothing else, if its shape tells."""
    value = node.meta.get("val")
    return plain(value, symbols) if isinstance(value, Tensor) else None


def plain(traced: Tensor, symbols: set) -> int | None:
    """The same of a traced tensor."""
    axes = candidates(traced, symbols)
    if len(axes) == 1 and traced.shape[axes[0]].node.expr in symbols:  # type: ignore[attr-defined]
        return axes[0]
    return None


def spelled(captured: Capture) -> Capture:
    """The same, with what is looked up by an op of its own written out, so that it is known where relevance is read."""
    spell_packed(captured.graph, captured.inputs)
    spell_bags(captured.graph)
    spell_sparse(captured.graph)
    cast_one_hots(captured.graph)
    return captured


def find_samples(
    capture: Callable[[Axes], Capture],
    guesses: Sequence[Axes],
    tensors: Sequence[Tensor],
    output: Output,
    sure: bool,
) -> Capture:
    """A call captured with its samples where they are: at the first of the `guesses` that holds, at other axes that
    reach one row of the explained output each, or nowhere, where the call is one sample.

    sure: whether there is nothing to guess.

    Raises FxlrpError if the call can't be captured, or if the one guess that is sure does not hold.
    """
    failed: FxlrpError | None = None
    captured: Capture | None = None
    found: Axes | None = None
    for axes in guesses:
        if axes.whole:
            continue
        try:
            captured = capture(axes)
        except FxlrpError as error:
            if sure:
                raise
            failed = error
            continue
        if found := settled(captured, output, tensors):
            captured.axes = found
            if sure or captured.way is not Way.THIS_BATCH or not _left_out(found, tensors):
                return captured
            break  # the batch may be fixed by another input that has samples elsewhere
        if sure:
            raise FxlrpError(
                "The samples along these axes depend on each other, or the explained output does not count them: give "
                "another axis as batch, or batch=None to explain the call as one sample."
            )
    try:
        if captured is None or not _of_this_call(captured, tensors):
            captured = capture(Axes.none(tensors))
    except FxlrpError as error:
        raise failed or error from error.__cause__
    refused: FxlrpError | None = None  # samples there are, but they can't be captured as such
    for axes in () if sure else other_axes(captured, output):
        try:
            other = capture(axes)
        except FxlrpError as error:
            refused = error
            continue
        if settled_at := settled(other, output, tensors):
            other.axes = settled_at
            return other
    if refused and captured.way is Way.THIS_INPUT:
        raise refused
    if found:
        return captured
    shape = _explained(captured, output)[0].meta["val"].shape
    captured.axes = Axes.none(tensors, 0 if len(shape) and isinstance(shape[0], int) and shape[0] == 1 else None)
    return captured


def _of_this_call(captured: Capture, tensors: Sequence[Tensor]) -> bool:
    """Whether a graph holds for this call as it is: it was traced on all of its batch."""
    alone = captured.way is Way.THIS_INPUT and captured.axes.count(tensors) == 1
    return alone or captured.way is Way.THIS_BATCH


def _left_out(axes: Axes, tensors: Sequence[Tensor]) -> bool:
    """Whether an input without samples has an axis that is as long as there are samples."""
    count = axes.count(tensors)
    return any(axis is None and count in t.shape for t, axis in zip(tensors, axes.inputs, strict=True))


def _explained(captured: Capture, output: Output) -> tuple[fx.Node, dict[Place, list[fx.Node]]]:
    """The node whose value is explained, and the readouts of each input."""
    first = output[0] if isinstance(output, tuple) else output  # of several, which have the same samples
    outputs, _, logits, _ = explained_output(captured, first)
    return outputs[logits], find_readouts(captured)


def settled(captured: Capture, output: Output, tensors: Sequence[Tensor]) -> Axes | None:
    """The axes among those it was captured with that count what the first axis of the explained output does, or its
    second, if it has three; None if there are none, or if the samples along them depend on each other.

    tensors: those of the call, which are more than the samples it was captured with."""
    explained, readouts = _explained(captured, output)
    axes, shape = captured.axes, explained.meta["val"].shape
    count = axes.count(captured.inputs)
    inputs = captured.graph.graph.find_nodes(op="placeholder")
    for place in range(2 if len(shape) > 2 else min(1, len(shape))):
        size = shape[place]
        if captured.way is Way.ANY_BATCH:
            sizes = [None if a is None else n.meta["val"].shape[a] for n, a in zip(inputs, axes.inputs, strict=True)]
            if not any(_same_symbol(s, size) for s in sizes):
                continue
            # one that is along another axis of the output, as texts for pictures are, is shared by its rows
            others = [s for i, s in enumerate(shape) if i != place]
            apart = [any(_same_symbol(s, other) for other in others) and not _same_symbol(s, size) for s in sizes]
            found = Axes(tuple(None if no else a for a, no in zip(axes.inputs, apart, strict=True)), place)
        else:
            found = Axes(axes.inputs if isinstance(size, int) and size == count else (None,) * len(axes.inputs), place)
        if found.whole:
            continue
        if count == 1:
            return found
        mix = _mix(captured, explained, readouts, found, captured.inputs)
        if mix is None and captured.way is Way.ANY_BATCH and found.count(tensors) > 1:  # two of them are no call
            mix = _mix(captured, explained, readouts, found, tensors)
        if not mix:
            return found
    return None


def _same_symbol(a: int | torch.SymInt | None, b: int | torch.SymInt | None) -> bool:
    """Whether two sizes are one, which may be written in other ways: by their values where symbols have some."""
    if not isinstance(a, torch.SymInt) or not isinstance(b, torch.SymInt):
        return False
    one, other = a.node.expr, b.node.expr
    symbols = sorted(one.free_symbols | other.free_symbols, key=str)
    tried = [dict(zip(symbols, PRIMES[i:] + PRIMES[:i], strict=False)) for i in range(3)]
    return one == other or (len(symbols) <= len(PRIMES) and all(one.subs(v) == other.subs(v) for v in tried))


def _mix(
    captured: Capture,
    explained: fx.Node,
    readouts: Mapping[Place, Sequence[fx.Node]],
    axes: Axes,
    inputs: Sequence[Tensor],
) -> bool | None:
    """Whether a row of the explained output depends on another sample than its own; None if that can't be run."""
    assert axes.output is not None
    count = axes.count(inputs)
    starts, known = starts_of(captured.graph, readouts, axes, count)
    symbols = batch_symbols(captured.graph, axes)
    if known and len(symbols) == 1 and is_rowwise(captured.graph, starts, explained, partial(plain, symbols=symbols)):
        return False
    probe = Probe(captured.graph, inputs, starts)
    found = [_rows_reached(probe, explained, axes.output, sample, count) for sample in (0, count - 1)]
    return None if None in found else any(rows is not None and rows[1] for rows in found)


def _rows_reached(probe: Probe, explained: fx.Node, output: int, sample: int, count: int) -> tuple[bool, bool] | None:
    """Whether a sample reaches its own row of the explained output, and others; None if that can't be run."""
    changed = probe.changes(sample, {explained})
    if changed is None:
        return None
    rows = changed[explained].movedim(output, 0).reshape(count, -1).any(1)
    own = bool(rows[sample])
    rows[sample] = False
    return own, bool(rows.any())


def other_axes(captured: Capture, output: Output) -> Iterator[Axes]:
    """Axes of a call, captured as one sample, along which an entry reaches one row of the explained output alone.

    Inputs that can't be nudged (lengths, masks) have their samples on the first axis that is as long.  The first of
    those that can has samples, if any axis of it is as long: nodes of a graph are none, though rows of its matrix fit.
    """
    explained, readouts = _explained(captured, output)
    shape = explained.meta["val"].shape
    for place, count in enumerate(shape[: 2 if len(shape) > 2 else 1]):
        # a count that depends on values is none of samples
        if not isinstance(count, int) or count == 1 or joined_by_sparse(count, captured.inputs):
            continue
        choices: list[list[int | None]] = []
        for i, t in enumerate(captured.inputs):
            fit = [axis for axis, size in enumerate(t.shape) if size == count]
            long = bool(fit)
            if i in readouts:
                fit = [axis for axis in fit if _own_rows(captured, explained, readouts[i], axis, place, count)]
            first = long and i == next(iter(readouts), None)
            or_none: list[int | None] = [*fit, None]
            choices.append([*fit] if first else or_none if i in readouts else or_none[:1])
        for some in list(product(*choices))[:8]:
            if any(isinstance(i, int) and some[i] is not None for i in readouts):
                yield Axes(some, place)


def _own_rows(
    captured: Capture, explained: fx.Node, nodes: Sequence[fx.Node], axis: int, output: int, count: int
) -> bool:
    """Whether the entries of an input along an axis reach a row of the output each, and some do."""
    fit = {n: axis for n in nodes if n.meta["val"].ndim > axis and n.meta["val"].shape[axis] == count}
    probe = Probe(captured.graph, captured.inputs, fit)
    if len(fit) < len(nodes):
        return False
    first, last = (_rows_reached(probe, explained, output, i, count) for i in (0, count - 1))
    return first == (True, False) and last is not None and not last[1]


class Samples:
    """Where each node's samples are.

    A symbolic batch shows it in the shapes.  Where the batch is folded into another axis (windows, heads) or is not
    symbolic, the first sample of the example is nudged and the graph run, then the last: what changes belongs to that
    sample.  What has no axis of samples at all (a loop over the batch, an input they all share) is probed by each
    sample in turn: it may see one at most.
    """

    def __init__(
        self,
        captured: Capture,
        readouts: Mapping[Place, Sequence[fx.Node]],
        nodes: set[fx.Node],
    ):
        gm, axes = captured.graph, captured.axes
        self.count = axes.count(captured.inputs)
        self.symbols = batch_symbols(gm, axes)
        self.where: dict[fx.Node, Batch] = {}
        self.known = True  # whether the samples are known at all the readouts
        if axes.whole or self.count == 1:
            self.where = dict.fromkeys(nodes, WHOLE)
            return
        self.where = {n: Batch(axis) for n in nodes if (axis := plain_axis(n, self.symbols)) is not None}
        folded = {n for n in nodes if n not in self.where and isinstance(n.meta.get("val"), Tensor)}
        if not folded:
            return
        starts, self.known = starts_of(gm, readouts, axes, self.count)
        probe = Probe(gm, captured.inputs, starts)
        seen: dict[fx.Node, int] = dict.fromkeys(folded, 0)
        fits: dict[fx.Node, list[Batch]] = {}
        for sample in range(self.count):
            wanted = folded if sample in (0, self.count - 1) else {n for n in folded if not fits.get(n)}
            changed = probe.changes(sample, wanted) if wanted else {}
            if changed is None:
                return
            for node, entries in changed.items():
                if entries.any():
                    at = candidates(node.meta["val"], self.symbols) or list(range(entries.ndim))
                    layouts = list(locate(entries, at, self.count, sample))
                    seen[node] += 1
                    fits[node] = [b for b in fits.get(node, layouts) if b in layouts]
        for node in folded:
            if seen[node] < 2:
                self.where[node] = WHOLE
            elif len(fits[node]) == 1:
                self.where[node] = fits[node][0]

    def of(self, node: fx.Node) -> Batch | None:
        """Where the node's samples are; None if that can't be told."""
        return self.where.get(node)


def locate(changed: Tensor, axes: Iterable[int], count: int, sample: int = 0) -> Iterator[Batch]:
    """The layouts [before, count, after] of one of `axes` in which what changed is confined to the sample."""
    for axis in axes:
        size = changed.shape[axis]
        if not changed.numel():
            return
        line = changed.movedim(axis, 0).reshape(size, -1).any(1)
        for before in range(1, size // count + 1):
            if size % (before * count) == 0:
                others = line.view(before, count, -1).clone()
                others[:, sample] = False
                if line.any() and not others.any():
                    yield Batch(axis, before, size // count // before)
