"""Finds the sample axes of a call, by symbolic shapes and by trial captures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor, fx

from fxlrp.capture.axes import Axes, joined_by_sparse
from fxlrp.capture.buffers import copies
from fxlrp.capture.model import Capture, CaptureMode
from fxlrp.capture.state import drawing
from fxlrp.errors import FxlrpError, InputsRefused
from fxlrp.graph.layouts import Layouts
from fxlrp.graph.lookups import cast_one_hots
from fxlrp.graph.outputs import Output, explained_output, score_rows, spell_reals
from fxlrp.graph.probe import NUDGE, PUSHES, Probe
from fxlrp.graph.reads import Place, find_readouts
from fxlrp.graph.samples import batch_symbols, starts_of
from fxlrp.patterns.accumulated import spell_accumulated
from fxlrp.patterns.bags import spell_bags
from fxlrp.patterns.packed import spell_packed
from fxlrp.patterns.sparse import spell_sparse
from fxlrp.rules.per_sample import SampleAxis

PRIMES = (5, 7, 11, 13, 17, 19)
"""Values substituted for symbols to compare two sizes."""


def spelled(captured: Capture) -> Capture:
    """The capture with special lookup ops written out as plain ones, so that readouts can be found, and with outputs
    that are complex by their type alone as real ones."""
    spell_packed(captured.graph, captured.inputs)
    spell_accumulated(captured.graph)
    spell_bags(captured.graph)
    spell_sparse(captured.graph)
    cast_one_hots(captured.graph)
    spell_reals(captured.graph, captured.inputs)
    return captured


def find_samples(
    capture: Callable[[Axes], Capture],
    guesses: Sequence[Axes],
    tensors: Sequence[Tensor],
    output: Output,
    sure: bool,
) -> Capture:
    """Captures a call with its sample axes: the first of the `guesses` that holds, else other axes whose entries each
    reach one row of the explained output, else none, if the call is one sample.

    sure: whether the only guess must hold.

    Raises FxlrpError if the call can't be captured, or if a guess that is sure does not hold.
    """
    failed: FxlrpError | None = None
    captured: Capture | None = None
    settled_axes: Axes | None = None
    for axes in guesses:
        if axes.whole:
            continue
        try:
            captured = capture(axes)
        except FxlrpError as error:
            if sure:
                raise
            failed = failed if isinstance(error, InputsRefused) else error
            continue
        if settled_axes := settled(captured, output, tensors):
            captured.axes = settled_axes
            if sure or captured.mode is not CaptureMode.THIS_BATCH or not _left_out(settled_axes, tensors):
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
    if not sure and (recaptured := _at_other_axes(captured, capture, tensors, output)):
        return recaptured
    if settled_axes:
        return captured
    explained, readouts = _explained(captured, output)
    shape = explained.meta["val"].shape
    captured.axes = Axes.none(tensors, 0 if len(shape) and isinstance(shape[0], int) and shape[0] == 1 else None)
    if len(shape) == 1 and captured.axes.output is None and _are_apart(captured, explained, readouts):
        score_rows(captured.graph, explained)
    return captured


ROWS = 64
"""The maximum number of scores that are tried for being apart."""


def _are_apart(captured: Capture, scores: fx.Node, readouts: Mapping[Place, Sequence[fx.Node]]) -> bool:
    """Whether no entry of an input has a derivative to two scores of a vector, as the energies of graphs that lie
    beside each other; classes share their inputs."""
    starts = {n for nodes in readouts.values() for n in nodes}
    leaves: list[Tensor] = []

    class FromLeaves(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            if n in starts:
                value = value.detach().requires_grad_()
                leaves.append(value)
            return value

    def reached(score: Tensor) -> list[Tensor]:
        grads = torch.autograd.grad(score, leaves, retain_graph=True, allow_unused=True)
        return [x != x if d is None else d != 0 for d, x in zip(grads, leaves, strict=True)]

    with torch.enable_grad(), drawing(0, captured.inputs):
        runner = FromLeaves(captured.graph, garbage_collect_values=False)
        try:
            runner.run(*copies(captured.inputs))
            vector = runner.env[scores]
            if not vector.requires_grad or not 1 < len(vector) <= ROWS:
                return False
            before = reached(vector[0])
            for score in vector[1:]:
                own = reached(score)
                if any(bool((a & b).any()) for a, b in zip(before, own, strict=True)):
                    return False
                before = [a | b for a, b in zip(before, own, strict=True)]
        except (RuntimeError, IndexError, ValueError):  # an op has no derivative
            return False
    return any(bool(r.any()) for r in before)


def _at_other_axes(
    captured: Capture, capture: Callable[[Axes], Capture], tensors: Sequence[Tensor], output: Output
) -> Capture | None:
    """Captures a call anew at the first of its other axes that hold; None if it is one sample.

    Raises FxlrpError if it has samples but can be captured neither with them nor for other values.
    """
    failed: FxlrpError | None = None
    for axes in other_axes(captured, output):
        try:
            recaptured = capture(axes)
        except InputsRefused:  # an entry along these axes is no call on its own
            continue
        except FxlrpError as error:
            failed = error
            continue
        if settled_at := settled(recaptured, output, tensors):
            recaptured.axes = settled_at
            return recaptured
    if failed and captured.mode is CaptureMode.THIS_INPUT:
        raise failed
    return None


def _of_this_call(captured: Capture, tensors: Sequence[Tensor]) -> bool:
    """Whether a graph was traced on this call's whole batch, and so holds for it."""
    alone = captured.mode is CaptureMode.THIS_INPUT and captured.axes.count(tensors) == 1
    return alone or captured.mode is CaptureMode.THIS_BATCH


def _left_out(axes: Axes, tensors: Sequence[Tensor]) -> bool:
    """Whether an input without a sample axis has an axis whose length is the number of samples."""
    count = axes.count(tensors)
    return any(axis is None and count in t.shape for t, axis in zip(tensors, axes.inputs, strict=True))


def _explained(captured: Capture, output: Output) -> tuple[fx.Node, dict[Place, list[fx.Node]]]:
    """The node whose value is explained, and the readouts of each input."""
    first = output[0] if isinstance(output, tuple) else output  # several outputs have the same samples
    return explained_output(captured, first).end, find_readouts(captured, {})


def settled(captured: Capture, output: Output, tensors: Sequence[Tensor]) -> Axes | None:
    """The captured axes that count the same as the explained output's first axis, or its second if it has three or
    more; None if there are none, or if the samples along them depend on each other.

    tensors: those of the whole call, which may have more samples than the capture."""
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
            # an input counted by another axis of the output (texts beside pictures) is shared by its rows
            others = [s for i, s in enumerate(shape) if i != place]
            shared = [any(_same_symbol(s, other) for other in others) and not _same_symbol(s, size) for s in sizes]
            fitted = Axes(tuple(None if skip else a for a, skip in zip(axes.inputs, shared, strict=True)), place)
        else:
            fitted = Axes(axes.inputs if isinstance(size, int) and size == count else (None,) * len(axes.inputs), place)
        if fitted.whole:
            continue
        if count == 1:
            return fitted
        mix = _mix(captured, explained, readouts, fitted, captured.inputs)
        if (
            mix is None and captured.mode is CaptureMode.ANY_BATCH and fitted.count(tensors) > 1
        ):  # two samples are no valid call
            mix = _mix(captured, explained, readouts, fitted, tensors)
        if not mix:
            return fitted
    return None


def _same_symbol(a: int | torch.SymInt | None, b: int | torch.SymInt | None) -> bool:
    """Whether two symbolic sizes are equal, though perhaps written differently: compared at several symbol values."""
    if not isinstance(a, torch.SymInt) or not isinstance(b, torch.SymInt):
        return False
    left, right = a.node.expr, b.node.expr
    symbols = sorted(left.free_symbols | right.free_symbols, key=str)
    substitutions = [dict(zip(symbols, PRIMES[i:] + PRIMES[:i], strict=False)) for i in range(3)]
    return left == right or (len(symbols) <= len(PRIMES) and all(left.subs(v) == right.subs(v) for v in substitutions))


def _mix(
    captured: Capture,
    explained: fx.Node,
    readouts: Mapping[Place, Sequence[fx.Node]],
    axes: Axes,
    inputs: Sequence[Tensor],
) -> bool | None:
    """Whether a row of the explained output depends on a sample other than its own; None if the probe can't run."""
    assert axes.output is not None
    count = axes.count(inputs)
    starts, certain = starts_of(captured, readouts, axes, inputs)
    layouts = Layouts(captured.graph, inputs, starts, count, batch_symbols(captured.graph, axes), captured.tried)
    if certain and layouts.of.get(explained) == SampleAxis(axes.output):
        return False
    probe = Probe(captured.graph, inputs, starts)
    reached = [_rows_reached(probe, explained, axes.output, sample, count) for sample in (0, count - 1)]
    return None if None in reached else any(rows is not None and rows[1] for rows in reached)


def _rows_reached(probe: Probe, explained: fx.Node, output: int, sample: int, count: int) -> tuple[bool, bool] | None:
    """Whether a sample reaches its own row of the explained output, and others; None if that can't be run."""
    own = others = False
    for by in (NUDGE, *PUSHES):
        changed = probe.changes(sample, {explained}, by)
        if changed is None:
            return None
        rows = changed[explained].movedim(output, 0).reshape(count, -1).any(1)
        own, others = bool(rows[sample]), bool(rows[torch.arange(count, device=rows.device) != sample].any())
        if own or others:
            break
    return own, others


def other_axes(captured: Capture, output: Output) -> Iterator[Axes]:
    """Axes of a call, captured as one sample, along which each entry reaches one row of the explained output only.

    Inputs that can't be nudged (lengths, masks) have their samples on the first axis of the right length.  The first
    input that can be nudged must have a sample axis if any axis has that length; the nodes of a graph are no samples,
    though the rows of its matrix fit.
    """
    explained, readouts = _explained(captured, output)
    shape = explained.meta["val"].shape
    for place, count in enumerate(shape[: 2 if len(shape) > 2 else 1]):
        # a size that depends on values counts no samples
        if not isinstance(count, int) or count == 1 or joined_by_sparse(count, captured.inputs):
            continue
        choices: list[list[int | None]] = []
        for i, t in enumerate(captured.inputs):
            fit = [axis for axis, size in enumerate(t.shape) if size == count]
            has_fit = bool(fit)
            if i in readouts:
                fit = [axis for axis in fit if _own_rows(captured, explained, readouts[i], axis, place, count)]
            first = has_fit and i == next(iter(readouts), None)
            or_none: list[int | None] = [*fit, None]
            choices.append([*fit] if first else or_none if i in readouts else or_none[:1])
        for chosen in list(product(*choices))[:8]:
            if any(isinstance(i, int) and chosen[i] is not None for i in readouts):
                yield Axes(chosen, place)


def _own_rows(
    captured: Capture, explained: fx.Node, nodes: Sequence[fx.Node], axis: int, output: int, count: int
) -> bool:
    """Whether the first entry of an input along an axis reaches its row of the output, and the first and last reach no
    other row."""
    fit = {n: SampleAxis(axis) for n in nodes if n.meta["val"].ndim > axis and n.meta["val"].shape[axis] == count}
    probe = Probe(captured.graph, captured.inputs, fit)
    if len(fit) < len(nodes):
        return False
    first, last = (_rows_reached(probe, explained, output, i, count) for i in (0, count - 1))
    return first == (True, False) and last is not None and not last[1]
