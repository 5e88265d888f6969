"""Marks weighted products of an input itself as first layers, whose relevance goes to ones in the input's place."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import fx

from fxlrp.nodes import target_of
from fxlrp.ops import about, is_pointwise, overloads
from fxlrp.rules.folded import FoldedProduct
from fxlrp.rules.weighted import CONVOLVING, DENSE, FirstLayer, ones_for

if TYPE_CHECKING:
    from fxlrp.graph.facts import Facts

aten = torch.ops.aten

SCALING = {op for packet in (aten.add, aten.sub, aten.mul, aten.div) for op in overloads(packet)}
PLACES = {
    op: places
    for places, packets in (*CONVOLVING, *DENSE)
    for packet in packets
    if not isinstance(packet, str) and places[0] == 0
    for op in overloads(packet)
}


def mark_first_layers(gm: fx.GraphModule, facts: Facts) -> bool:
    """Replaces weighted products of an input, which may be moved or normalized with constants before, by `FirstLayer`s
    that also take ones, which are moved in the same way."""
    ones_of: dict[fx.Node, fx.Node | None] = {}
    changed = False
    for node in list(gm.graph.nodes):
        places = PLACES.get(node.target.product if isinstance(node.target, FoldedProduct) else node.target)
        if places is None or not facts.carries(node) or facts.carries(node.args[1]):
            continue
        ones = _ones(node.args[0], ones_of, facts)
        if ones is None:
            continue
        with gm.graph.inserting_before(node):
            first = facts.emit(node, FirstLayer(node.target, places), ones, *node.args, **node.kwargs)
        node.replace_all_uses_with(first)
        gm.graph.erase_node(node)
        changed = True
    return changed


def _ones(node: fx.Node, ones_of: dict[fx.Node, fx.Node | None], facts: Facts) -> fx.Node | None:
    """The ones in place of an active node, moved like it from the ones of the inputs; None if that is impossible."""
    if node not in ones_of:
        ones_of[node] = _make_ones(node, ones_of, facts)
    return ones_of[node]


def _make_ones(node: fx.Node, ones_of: dict[fx.Node, fx.Node | None], facts: Facts) -> fx.Node | None:
    graph = node.graph
    if node.op == "placeholder":
        with graph.inserting_after(max(graph.find_nodes(op="placeholder"))):
            return facts.emit(node, ones_for, node) if node.meta["val"].is_floating_point() else None
    active = [n for n in node.all_input_nodes if facts.carries(n)]
    ones = {n: _ones(n, ones_of, facts) for n in active}
    if None in ones.values():
        return None
    if node.target in SCALING and is_pointwise(node.target) and len(active) == 1:
        same = active[0].meta["val"].shape == node.meta["val"].shape
        return ones[active[0]] if same else None
    op = about(node.target)
    if not op.routes or op.parts or op.fills == "masks":
        return None
    with graph.inserting_after(node):
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: ones.get(n, n))
        return facts.emit(node, target_of(node), *args, **kwargs)
