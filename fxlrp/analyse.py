"""Analyse: which nodes of a captured graph carry relevance, and which are known to be ≥ 0."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, fx

from fxlrp.patterns.centring import offset
from fxlrp.patterns.masks import masked
from fxlrp.precision import stored
from fxlrp.rules.movement import MOVEMENT, carriers
from fxlrp.rules.quantities import is_pointwise

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
    aten.linalg_vector_norm.default,
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
    stored_there = operator.attrgetter(str(node.target))(gm)
    return stored_there.layout is not torch.strided or bool(stored_there.isfinite().all())
