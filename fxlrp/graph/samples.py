"""Finds the sample axis of each node of a captured graph.

Symbolic shapes show most of them, and ops where these fold the batch into other axes.  A probe finds the rest: it
nudges one sample slightly where relevance is read, and the entries that change belong to that sample.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, fx

from fxlrp.capture.axes import Axes
from fxlrp.capture.model import Capture
from fxlrp.capture.symbols import free_symbols
from fxlrp.graph.layouts import Layouts, candidates, locate, plain
from fxlrp.graph.probe import NUDGE, PUSHES, Probe
from fxlrp.graph.reads import Place
from fxlrp.rules.per_sample import WHOLE, SampleAxis


def starts_of(
    captured: Capture, readouts: Mapping[Place, Sequence[fx.Node]], axes: Axes, inputs: Sequence[Tensor]
) -> tuple[dict[fx.Node, SampleAxis], bool]:
    """The nodes where relevance is read, with the layouts of their samples, and whether all of these are known.

    inputs: tensors that the graph runs with.
    """
    graph, count, symbols = captured.graph, axes.count(inputs), batch_symbols(captured.graph, axes)
    starts, all_known = dict[fx.Node, SampleAxis](), True
    by_ops: Layouts | None = None
    for i, nodes in readouts.items():
        axis = 0 if isinstance(i, str) else axes.inputs[i]
        if axis is None:
            continue
        for node in nodes:
            shape = node.meta["val"].shape
            plain = plain_axis(node, symbols)
            if plain is not None:
                starts[node] = SampleAxis(plain)
            elif len(shape) > axis and shape[axis] == count:
                starts[node] = SampleAxis(axis)
            elif candidates(node.meta["val"], symbols):  # folded with another axis before the lookup
                if by_ops is None:
                    places = zip(graph.graph.find_nodes(op="placeholder"), axes.inputs, strict=True)
                    at_inputs = {n: SampleAxis(a) for n, a in places if a is not None}
                    by_ops = Layouts(graph, inputs, at_inputs, count, symbols, captured.tried)
                found = by_ops.of.get(node)
                if isinstance(found, SampleAxis):
                    starts[node] = found
                else:
                    all_known = False
    return starts, all_known


def batch_symbols(graph: fx.GraphModule, axes: Axes) -> set:
    """The symbols for the number of samples."""
    places = zip(graph.graph.find_nodes(op="placeholder"), axes.inputs, strict=True)
    return {s for n, axis in places if axis is not None for s in free_symbols(n.meta["val"].shape[axis])}


def plain_axis(node: fx.Node, symbols: set) -> int | None:
    """The axis of a node that counts the samples and nothing else, if its shape shows one."""
    value = node.meta.get("val")
    return plain(value, symbols) if isinstance(value, Tensor) else None


class Samples:
    """The sample axis of each node.

    Shapes with a symbolic batch show it.  If the batch is folded into another axis (windows, heads) or is not symbolic,
    the ops on the way there do, and where these can't, the first sample of the example and then the last is nudged: the
    entries that change belong to that sample.  Nodes
    without a sample axis (a loop over the batch, an input shared by all) are probed with each sample in turn: at most
    one sample may change them.
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
        self.where: dict[fx.Node, SampleAxis] = {}
        self.known = True  # whether the samples are known at all the readouts
        if axes.whole or self.count == 1:
            self.where = dict.fromkeys(nodes, WHOLE)
            return
        self.where = {n: SampleAxis(axis) for n in nodes if (axis := plain_axis(n, self.symbols)) is not None}
        folded = {n for n in nodes if n not in self.where and isinstance(n.meta.get("val"), Tensor)}
        if not folded:
            return
        starts, self.known = starts_of(captured, readouts, axes, captured.inputs)
        layouts = Layouts(gm, captured.inputs, starts, self.count, self.symbols, captured.tried)
        by_ops = {n: layouts.of.get(n, WHOLE) for n in folded}
        self.where |= {n: at for n, at in by_ops.items() if isinstance(at, SampleAxis)}
        folded -= self.where.keys()
        if not folded:
            return
        probe = Probe(gm, captured.inputs, starts)
        fits = self._fits(probe, folded, NUDGE)
        for push in PUSHES:  # values that are saturated, or that depend on one sample alone
            silent = {n for n in folded if len(fits.get(n, ())) < 2}
            pushed = self._fits(probe, silent, push) if silent else {}
            fits |= {n: more for n, more in pushed.items() if len(more) > len(fits.get(n, ()))}
        for node in folded:
            each = fits.get(node, [])
            if len(each) > 1:
                common = set.intersection(*map(set, each))
                if len(common) == 1:
                    self.where[node] = common.pop()
            elif each and not candidates(node.meta["val"], self.symbols):
                self.where[node] = WHOLE

    def _fits(self, probe: Probe, nodes: set[fx.Node], by: float) -> dict[fx.Node, list[list[SampleAxis]]]:
        """For each node, a list of the layouts that fit its changes, for each sample that changes it."""
        fits: dict[fx.Node, list[list[SampleAxis]]] = {}
        for sample in range(self.count):
            first_or_last = sample in (0, self.count - 1)
            wanted = nodes if first_or_last else {n for n in nodes if not any(fits.get(n, ()))}
            changed = probe.changes(sample, wanted, by) if wanted else {}
            for node, entries in (changed or {}).items():
                if entries.any():
                    axes_to_try = candidates(node.meta["val"], self.symbols) or list(range(entries.ndim))
                    fits.setdefault(node, []).append(list(locate(entries, axes_to_try, self.count, sample)))
        return fits

    def of(self, node: fx.Node) -> SampleAxis | None:
        """The sample axis of a node; None if it can't be determined."""
        return self.where.get(node)
