"""Lookups: where integer inputs (token ids) become vectors, and which input entry each vector stands for.

Relevance is read at the vectors.  A second chain beside the ids, of the same moves made with their positions, tells
which entry each came from, however the model slices, shifts, hashes or transposes ids before it looks them up.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx

from fxlrp.patterns.emit import emit
from fxlrp.rules.movement import MOVEMENT, SHAPE_ONLY
from fxlrp.rules.quantities import is_pointwise

aten = torch.ops.aten
NOWHERE = -1  # the position of an entry that is no entry of the input

VALUES = {  # the arguments that values are taken from, where it is not the first alone
    aten.cat: (0,),
    aten.stack: (0,),
    aten.where: (1, 2),
    aten.slice_scatter: (0, 1),
    aten.select_scatter: (0, 1),
    aten.index_put: (0, 2),
    aten.index_copy: (0, 3),
    aten.scatter: (0, 3),
    aten.masked_fill: (0, 2),
    aten.pad: (0, 3),
    aten.constant_pad_nd: (0, 2),
}


def _follow(ids: fx.Node) -> Iterator[tuple[fx.Node, set[fx.Node]]]:
    """Every node that takes `ids`, moved or hashed, and the integer tensors among which that is known so far."""
    reached = {ids}
    for node in ids.graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, Tensor) and node.target not in SHAPE_ONLY and reached.intersection(node.all_input_nodes):
            yield node, reached
            keeps = _moves(node) or is_pointwise(node.target) or _one_hot(node)
            if keeps and not value.is_floating_point() and value.dtype != torch.bool:
                reached.add(node)


def find_lookups(ids: fx.Node, *, numbers: bool = False) -> list[fx.Node]:
    """The nodes that look up vectors by `ids`, moved or hashed; with `numbers`, those that use them as numbers."""

    def looks_up(node: fx.Node, reached: set[fx.Node]) -> bool:
        if _index(node) in reached or any(_one_hot(n) and n in reached for n in node.all_input_nodes):
            return True
        return numbers and (is_pointwise(node.target) or _moves(node))

    return [n for n, reached in _follow(ids) if n.meta["val"].is_floating_point() and looks_up(n, reached)]


def _moves(node: fx.Node) -> bool:
    return getattr(node.target, "overloadpacket", None) in MOVEMENT


def _one_hot(node: fx.Node) -> bool:
    return node.target is aten.one_hot.default


def _index(node: fx.Node) -> fx.Node | None:
    """The indices by which a lookup takes rows of a table."""
    if node.target is aten.embedding.default:
        return node.args[1]
    if node.target is aten.index_select.default and node.args[1] == 0:
        return node.args[2]
    if node.target is aten.index.Tensor and len(node.args[1]) == 1:
        return node.args[1][0]
    return None


class Positions:
    """Nodes beside those that move `ids`, with the position in `ids` of each entry."""

    def __init__(self, ids: fx.Node) -> None:
        self.ids = ids
        self.reached = {ids}
        for _, self.reached in _follow(ids):
            pass
        self.known: dict[fx.Node, fx.Node] = {}

    def at(self, lookup: fx.Node) -> fx.Node:
        """The positions that the entries of `lookup` stand for, in its shape."""
        index = _index(lookup)
        if index not in self.reached:
            return self._beside(lookup, aten.expand_as.default, self.of(self._source(lookup)), lookup)
        places = self.of(index)
        for _ in range(lookup.meta["val"].ndim - index.meta["val"].ndim):
            places = self._beside(lookup, aten.unsqueeze.default, places, -1)
        return self._beside(lookup, aten.expand_as.default, places, lookup)

    def of(self, node: fx.Node) -> fx.Node:
        """The positions of the entries of `node`."""
        if node not in self.known:
            self.known[node] = self._positions(node)
        return self.known[node]

    def _positions(self, node: fx.Node) -> fx.Node:
        if node is self.ids:
            count = self._beside(node, aten.sym_numel.default, node)
            line = self._beside(count, aten.arange.default, count, device=node.meta["val"].device)
            return self._beside(line, aten.view_as.default, line, node)
        if node not in self.reached:
            return self._beside(node, aten.full_like.default, node, NOWHERE, dtype=torch.int64)
        if _index(node) in self.reached:  # a table of integers
            return self.of(_index(node))
        if _one_hot(node):
            places = self._beside(node, aten.unsqueeze.default, self.of(node.args[0]), -1)
            return self._beside(node, aten.expand_as.default, places, node)
        if not _moves(node):
            return self._beside(node, aten.expand_as.default, self.of(self._source(node)), node)
        at = VALUES.get(node.target.overloadpacket, (0,))
        args = [self._moved(a) if i in at else a for i, a in enumerate(node.args)]
        return self._beside(node, node.target, *args, **node.kwargs)

    def _source(self, node: fx.Node) -> fx.Node:
        return next(n for n in node.all_input_nodes if n in self.reached)

    def _moved(self, value: Any) -> Any:
        return NOWHERE if isinstance(value, int | float) else fx.map_arg(value, self.of)

    def _beside(self, node: fx.Node, op: Any, *args: Any, **kwargs: Any) -> fx.Node:
        with node.graph.inserting_after(self._latest([node, *(a for a in args if isinstance(a, fx.Node))])):
            return emit(node.graph, node, op, *args, **kwargs)

    def _latest(self, nodes: list[fx.Node]) -> fx.Node:
        order = {n: i for i, n in enumerate(self.ids.graph.nodes)}
        return max(nodes, key=order.__getitem__)
