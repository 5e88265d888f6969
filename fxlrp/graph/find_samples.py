"""Find samples: which axes of a call count its samples, told by symbolic shapes and tried by capturing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import product

import torch
from torch import Tensor, fx

from fxlrp.capture.axes import Axes, joined_by_sparse
from fxlrp.capture.model import Capture, CaptureMode
from fxlrp.errors import FxlrpError
from fxlrp.graph.lookups import cast_one_hots
from fxlrp.graph.outputs import Output, explained_output
from fxlrp.graph.probe import NUDGE, PUSH, Probe
from fxlrp.graph.reads import Place, find_readouts
from fxlrp.graph.rowwise import is_rowwise
from fxlrp.graph.samples import batch_symbols, plain, starts_of
from fxlrp.patterns.bags import spell_bags
from fxlrp.patterns.packed import spell_packed
from fxlrp.patterns.sparse import spell_sparse

PRIMES = (5, 7, 11, 13, 17, 19)
"""Values that symbols are given to compare two sizes."""


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
            if sure or captured.mode is not CaptureMode.THIS_BATCH or not _left_out(found, tensors):
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
    if refused and captured.mode is CaptureMode.THIS_INPUT:
        raise refused
    if found:
        return captured
    shape = _explained(captured, output)[0].meta["val"].shape
    captured.axes = Axes.none(tensors, 0 if len(shape) and isinstance(shape[0], int) and shape[0] == 1 else None)
    return captured


def _of_this_call(captured: Capture, tensors: Sequence[Tensor]) -> bool:
    """Whether a graph holds for this call as it is: it was traced on all of its batch."""
    alone = captured.mode is CaptureMode.THIS_INPUT and captured.axes.count(tensors) == 1
    return alone or captured.mode is CaptureMode.THIS_BATCH


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
        if captured.mode is CaptureMode.ANY_BATCH:
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
        if (
            mix is None and captured.mode is CaptureMode.ANY_BATCH and found.count(tensors) > 1
        ):  # two of them are no call
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
    own = others = False
    for by in (NUDGE, PUSH):
        changed = probe.changes(sample, {explained}, by)
        if changed is None:
            return None
        rows = changed[explained].movedim(output, 0).reshape(count, -1).any(1)
        own, others = bool(rows[sample]), bool(rows[torch.arange(count, device=rows.device) != sample].any())
        if own or others:
            break
    return own, others


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
