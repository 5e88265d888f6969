"""Analyse: which nodes of a captured graph carry relevance, where their samples are, and which are known to be ≥ 0."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from fxlrp.capture import free_symbols
from fxlrp.patterns.centring import offset
from fxlrp.patterns.masks import masked
from fxlrp.precision import stored
from fxlrp.rules.movement import MOVEMENT, carriers
from fxlrp.rules.quantities import WHOLE, Batch, is_pointwise

aten = torch.ops.aten


def differentiable(node: fx.Node) -> bool:
    """Whether relevance could stand at this node: a float tensor, or several values one of which is."""
    values = torch.utils._pytree.tree_leaves(node.meta.get("val"))
    return any(isinstance(v, Tensor) and (v.is_floating_point() or v.is_complex()) for v in values)


def find_active(
    gm: fx.GraphModule,
    readouts: Iterable[fx.Node],
    output: fx.Node,
    flows: Callable[[fx.Node, set[fx.Node]], Iterable[fx.Node]],
) -> set[fx.Node]:
    """Nodes that depend on a readout and get relevance from `output`, through float tensors all the way.

    flows(node, reached): the inputs among `reached` that get relevance from the node (a denominator, say, gets none).
    """
    readouts = set(readouts)
    reached: set[fx.Node] = set()
    for node in gm.graph.nodes:
        if node in readouts or (differentiable(node) and any(n in reached for n in carriers(node))):
            reached.add(node)
    needed = {output} & reached
    for node in reversed(gm.graph.nodes):
        if node in needed and node not in readouts:
            needed.update(flows(node, reached))
    active: set[fx.Node] = set()
    for node in gm.graph.nodes:  # what passes nothing on to a readout (a normaliser) takes nothing
        if node in needed and (node in readouts or any(n in active for n in flows(node, reached))):
            active.add(node)
    return active


NONNEGATIVE = {
    aten.relu.default,
    aten.sigmoid.default,
    aten.hardsigmoid.default,
    aten.softmax.int,
    aten.exp.default,
    aten.abs.default,
    aten.square.default,
    aten.softplus.default,
    aten.relu6.default,
}
# fmt: off
KEEPS_SIGN = {
    operator.getitem, aten.view, aten.reshape, aten.flatten, aten.unflatten, aten.permute, aten.transpose,
    aten.squeeze, aten.unsqueeze, aten.expand, aten.clone, aten.contiguous, aten.alias, aten.to, aten.slice,
    aten.select, aten.cat, aten.stack, aten.split, aten.split_with_sizes, aten.chunk, aten.unbind, aten.dropout,
    aten.unsafe_split, aten.unsafe_split_with_sizes, aten.unsafe_chunk,
    aten.pad, aten.max_pool1d, aten.max_pool2d, aten.max_pool3d, aten.avg_pool1d, aten.avg_pool2d,
    aten.avg_pool3d, aten.adaptive_avg_pool1d, aten.adaptive_avg_pool2d, aten.adaptive_avg_pool3d,
    aten.adaptive_max_pool2d, aten.mean, aten.sum, aten.add, aten.mul, aten.index, aten.roll, aten.repeat,
    aten.upsample_nearest2d, aten.upsample_bilinear2d,
}
# fmt: on
"""Ops whose value is ≥ 0 when all their tensor inputs are."""


def find_nonnegative(gm: fx.GraphModule) -> set[fx.Node]:
    """Nodes known to be ≥ 0, whatever the input (what follows a ReLU, up to the next product)."""
    known: set[fx.Node] = set()
    for node in gm.graph.nodes:
        target = getattr(node.target, "overloadpacket", node.target)
        clamped = target in (aten.hardtanh, aten.clamp, aten.clamp_min) and len(node.args) > 1
        if node.target in NONNEGATIVE or (clamped and isinstance(node.args[1], int | float) and node.args[1] >= 0):
            known.add(node)
        elif target in KEEPS_SIGN and node.all_input_nodes:
            tensors = [n for n in node.all_input_nodes if differentiable(n)]
            literals = [a for a in (*node.args, *node.kwargs.values()) if isinstance(a, int | float) and a < 0]
            signed = target in (aten.add, aten.mul, aten.pad) and literals
            if tensors and all(n in known for n in tensors) and not signed:
                known.add(node)
    return known


MASKING = {aten.masked_fill, aten.where, masked}
FILLING = {aten.scatter, aten.index_put, aten.masked_scatter, aten.slice_scatter, aten.select_scatter, aten.index_copy}
"""Ops that leave constants, perhaps infinite ones, beside what they move."""


def find_infinite(gm: fx.GraphModule, active: set[fx.Node]) -> set[fx.Node]:
    """Active nodes that masks may have made infinite, up to the op (a softmax) that makes them finite again."""
    found: set[fx.Node] = set()
    for node in gm.graph.nodes:
        if node not in active or node.op != "call_function":
            continue
        packet = getattr(node.target, "overloadpacket", node.target)
        pointwise = is_pointwise(node.target)
        mixing = pointwise or packet in FILLING
        constants = [n for n in node.all_input_nodes if n not in active and differentiable(n)]
        masked = mixing and packet is not aten.mul and any(not _finite(gm, n) for n in constants)
        inherits = (pointwise or packet in MOVEMENT or packet is offset) and any(
            n in found for n in node.all_input_nodes
        )
        if packet in MASKING or masked or inherits:
            found.add(node)
    return found


def _finite(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a constant is a stored tensor without infinities."""
    node = stored(node)
    if node.op != "get_attr":
        return False
    return bool(operator.attrgetter(str(node.target))(gm).isfinite().all())


class Samples:
    """Where each node's samples are.

    A symbolic batch shows it in the shapes.  Where the batch is folded into another axis (windows, heads) or is not
    symbolic, the first sample of the example is poisoned with NaN and the graph run, then the last: what turns NaN
    belongs to that sample.  What has no axis of samples at all (a loop over the batch, an input they all share) is
    poisoned by each sample in turn: it may see one at most.  In the same way a model is found out whose outputs depend
    on other samples.
    """

    def __init__(
        self,
        gm: fx.GraphModule,
        inputs: list[Tensor],
        readouts: Mapping[Any, list[fx.Node]],
        nodes: set[fx.Node],
        output: fx.Node,
    ):
        self.symbols: set = set()
        for node in gm.graph.find_nodes(op="placeholder"):
            value = node.meta.get("val")
            if isinstance(value, Tensor) and value.ndim:
                self.symbols |= free_symbols(value.shape[0])
        self.count = next((t.shape[0] for t in inputs if t.ndim), 1)
        self.where: dict[fx.Node, Batch] = {}
        for node in nodes:
            plain = self._plain(node)
            if plain is not None:
                self.where[node] = plain
        folded = {n for n in nodes if n not in self.where and isinstance(n.meta.get("val"), Tensor)}
        starts: dict[fx.Node, int] = {}  # the readouts, and the axis of their samples
        self.known = True  # whether the samples are known at all of them
        for node in (n for ns in readouts.values() for n in ns):
            at, shape = self._plain(node), node.meta["val"].shape
            if at is not None or (len(shape) and shape[0] == self.count):
                starts[node] = 0 if at is None else at.axis
            elif self._candidates(node.meta["val"]):  # folded with another axis before it was looked up
                self.known = False
        seen: dict[fx.Node, int] = dict.fromkeys(folded, 0)
        fits: dict[fx.Node, list[Batch]] = {}
        for sample in range(self.count if self.count > 1 else 0):
            wanted = folded if sample in (0, self.count - 1) else {n for n in folded if not fits.get(n)}
            if wanted or sample == 0:
                for node, layouts in self._poison(gm, inputs, starts, wanted | {output}, sample).items():
                    seen[node] = seen.get(node, 0) + 1
                    fits[node] = [b for b in fits.get(node, layouts) if b in layouts]
        for node in folded:
            if seen[node] < 2:
                self.where[node] = WHOLE
            elif fits[node]:
                self.where[node] = fits[node][0]
        suspect = output in fits and self.where.get(output) not in fits[output]
        self.mixed = suspect and self._mixes(gm, inputs, starts, output)

    def of(self, node: fx.Node) -> Batch | None:
        """Where the node's samples are; None if that can't be told."""
        return self.where.get(node)

    def _candidates(self, value: Tensor) -> list[int]:
        return [axis for axis, size in enumerate(value.shape) if free_symbols(size) & self.symbols]

    def _plain(self, node: fx.Node) -> Batch | None:
        value = node.meta.get("val")
        if not isinstance(value, Tensor):
            return None
        axes = self._candidates(value)
        if len(axes) == 1 and value.shape[axes[0]].node.expr in self.symbols:  # type: ignore[attr-defined]
            return Batch(axes[0])
        return None

    def _mixes(self, gm: fx.GraphModule, inputs: list[Tensor], readouts: dict[fx.Node, int], output: fx.Node) -> bool:
        """Whether the last row of the output changes with sample 0; NaN gets where a product with 0 gives nothing."""

        def rows(change: Callable[[Tensor], Tensor]) -> Tensor:
            class Changed(fx.Interpreter):
                def run_node(self, n: fx.Node) -> Any:
                    value = super().run_node(n)
                    if n in readouts:
                        value = value.clone()
                        one = value.select(readouts[n], 0)
                        one.copy_(change(one))
                    found[n is output] = value
                    return value

            found: dict[bool, Any] = {}
            with torch.no_grad():
                Changed(gm).run(*inputs)
            return found[True][-1]

        before, after = rows(lambda t: t), rows(lambda t: t.flip(-1) * 1.1 + 0.1)
        return bool((before - after).abs().max() > 1e-3 * before.abs().max())

    def _poison(
        self, gm: fx.GraphModule, inputs: list[Tensor], readouts: dict[fx.Node, int], wanted: set[fx.Node], sample: int
    ) -> dict[fx.Node, list[Batch]]:
        """Those of `wanted` that turn NaN with the sample, and the layouts in which that is the sample's part alone."""
        samples, found = self, {}

        class Poisoned(fx.Interpreter):
            def run_node(self, n: fx.Node) -> Any:
                value = super().run_node(n)
                if n in readouts:
                    value = value.clone()
                    value.select(readouts[n], sample).fill_(float("nan"))
                if n in wanted and (nan := value.isnan()).any():
                    axes = samples._candidates(n.meta["val"]) or list(range(value.ndim))
                    found[n] = list(locate(nan, axes, samples.count, sample))
                return value

        with torch.no_grad():
            Poisoned(gm).run(*inputs)
        return found


def locate(poisoned: Tensor, axes: Iterable[int], count: int, sample: int = 0) -> Iterator[Batch]:
    """The layouts [before, count, after] of one of `axes` in which `poisoned` is confined to the sample."""
    for axis in axes:
        size = poisoned.shape[axis]
        if not poisoned.numel():
            return
        line = poisoned.movedim(axis, 0).reshape(size, -1).any(1)
        for before in range(1, size // count + 1):
            if size % (before * count) == 0:
                others = line.view(before, count, -1).clone()
                others[:, sample] = False
                if line.any() and not others.any():
                    yield Batch(axis, before, size // count // before)
