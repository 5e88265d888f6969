"""Finds the nodes of a captured graph that carry relevance, those known to be ≥ 0, and those that draw numbers."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from fxlrp.capture.precision import stored
from fxlrp.engine.replaced import Item, ReplacedOp
from fxlrp.nodes import values_of
from fxlrp.ops import about, carriers, is_pointwise

aten = torch.ops.aten


def can_carry(node: fx.Node) -> bool:
    """Whether a node can have relevance: its value is a float or complex tensor, or contains one."""
    return any(v.is_floating_point() or v.is_complex() for v in values_of(node))


def find_active(
    gm: fx.GraphModule,
    readouts: Iterable[fx.Node],
    output: fx.Node,
    flows: Callable[[fx.Node, set[fx.Node]], Iterable[fx.Node]],
) -> set[fx.Node]:
    """Nodes that depend on a readout and get relevance from `output`, through nodes that can carry relevance only.

    flows(node, reached): the inputs among `reached` that get relevance from the node (a denominator, say, gets none).
    """
    readouts = set(readouts)
    reached: set[fx.Node] = set()
    for node in gm.graph.nodes:
        if node in readouts or (can_carry(node) and any(n in reached for n in carriers(node))):
            reached.add(node)
    needed = {output} & reached
    for node in reversed(gm.graph.nodes):
        if node in needed and node not in readouts:
            needed.update(flows(node, reached))
    active: set[fx.Node] = set()
    for node in gm.graph.nodes:  # a node that passes no relevance on to a readout (a normaliser) gets none
        if node in needed and (node in readouts or any(n in active for n in flows(node, reached))):
            active.add(node)
    return active


def by_derivative(node: fx.Node, reached: set[fx.Node]) -> list[fx.Node]:
    """The inputs among `reached` that a node depends on by a derivative, whatever its rule."""
    return [n for n in carriers(node) if n in reached]


def find_nonnegative(gm: fx.GraphModule) -> set[fx.Node]:
    """Nodes known to be ≥ 0 for any input (those after a ReLU, up to the next product)."""
    nonnegative: set[fx.Node] = set()
    for node in gm.graph.nodes:
        sign = about(node.target).sign
        keeps_sign = sign == "kept" and all(_is_nonnegative(v, nonnegative) for v in _values(node))
        if sign == "positive" or keeps_sign or _clamped(node):
            nonnegative.add(node)
    return nonnegative


def _clamped(node: fx.Node) -> bool:
    """Whether a node clamps its value to a lower bound ≥ 0."""
    clamps = getattr(node.target, "overloadpacket", None) in (aten.hardtanh, aten.clamp, aten.clamp_min)
    least = node.args[1] if clamps and len(node.args) > 1 else None
    return isinstance(least, int | float) and least >= 0


def _values(node: fx.Node) -> list[object]:
    """The arguments that the entries of a node's value are made of: nodes and numbers."""
    named = {k: v for k, v in node.kwargs.items() if k in ("value", "other", "alpha")}
    places = about(node.target).values
    return tree_leaves(([a for i, a in enumerate(node.args) if i in places], named))


def _is_nonnegative(value: object, nonnegative: set[fx.Node]) -> bool:
    if not isinstance(value, fx.Node):
        return not isinstance(value, int | float) or value >= 0
    t = value.meta.get("val")
    return value in nonnegative or (isinstance(t, Tensor) and t.dtype == torch.bool)


def find_infinite(gm: fx.GraphModule, active: set[fx.Node]) -> set[fx.Node]:
    """Active nodes that masks may make infinite, up to the op (a softmax, not its logarithm) that makes them finite."""
    infinite: set[fx.Node] = set()
    for node in gm.graph.nodes:
        if node not in active or node.op != "call_function":
            continue
        op = about(node.target)
        pointwise = is_pointwise(node.target)
        mixing = (pointwise and getattr(node.target, "overloadpacket", None) is not aten.mul) or op.fills
        constants = [n for n in node.all_input_nodes if n not in active and can_carry(n)]
        masked = mixing and any(not _finite(gm, n) for n in constants)
        logarithms = op.kind == "softmax" and op.sign != "positive"
        inherits = (pointwise or op.moves or op.entrywise or logarithms) and any(
            n in infinite for n in node.all_input_nodes
        )
        if op.fills == "masks" or masked or inherits:
            infinite.add(node)
    return infinite


def _finite(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a constant is a stored tensor without infinities."""
    node = stored(node)
    if node.op != "get_attr":
        return False
    stored_there = operator.attrgetter(str(node.target))(gm)
    return stored_there.layout is not torch.strided or bool(stored_there.isfinite().all())


def draws(node: fx.Node) -> bool:
    """Whether a node draws random numbers; dropout does so only in training."""
    op: Any = node.target.op if isinstance(node.target, ReplacedOp | Item) else node.target
    if torch.Tag.nondeterministic_seeded not in getattr(op, "tags", ()):
        return False
    arguments = {a.name: a.default_value for a in op._schema.arguments}
    arguments |= dict(zip(arguments, node.args, strict=False)) | dict(node.kwargs)
    return arguments.get("train", arguments.get("training", True)) is not False and arguments.get("dropout_p") != 0
