"""Finds where entries of an input (token ids, categories among numbers) become vectors, and each vector's entry.

Relevance is read at the vectors.  A second chain of nodes moves the positions of the ids just as the model moves the
ids, and so tells each vector's entry, however the model slices, shifts, hashes or transposes ids before the lookup.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch.fx.node import Argument
from torch.utils._pytree import tree_leaves

from fxlrp.emit import emit
from fxlrp.nodes import args_of, target_of, values_of
from fxlrp.ops import about, carriers, is_pointwise, moves

aten = torch.ops.aten
NOWHERE = -1  # the position of a value that comes from no entry of the input


class Trail:
    """Follows an input to the tensors whose entries each come from one entry of the input, moved or hashed.

    reached: these tensors, except booleans and floats made of integers and, unless `counted`, tensors that also depend
    on counts of the entries (positions, from a mask).
    hot: the reached tensors that are one-hot rows.
    takers: the nodes that take a reached tensor.
    """

    def __init__(self, start: fx.Node, given: set[fx.Node] | None = None, *, counted: bool = False) -> None:
        self.start, self.reached, self.hot = start, {start}, set[fx.Node]()
        self.takers: list[fx.Node] = []
        self.given = find_given(start.graph) if given is None else given
        entries, depends = {start}, {start}
        for node in start.graph.nodes:
            sources = depends.intersection(carriers(node))
            if not sources:
                continue
            depends.add(node)
            if sources & self.reached:
                self.takers.append(node)
            entry_sources = self._entry_sources(node)
            if not entry_sources & entries or not (counted or moves(node) or sources <= entries):
                continue
            entries.add(node)
            hot = not _is_float(node) and bool(entry_sources & self.hot if moves(node) else self._one_hot(node))
            if entry_sources & self.reached and (hot or _is_float(start) or not (_is_float(node) or _is_bool(node))):
                self.reached.add(node)
                if hot:
                    self.hot.add(node)

    def _entry_sources(self, node: fx.Node) -> set[fx.Node]:
        """The inputs of a node such that each entry of its value is one of their entries, or made of one of each."""
        if self.takes_rows(node):
            return {i for i in [_index(node)] if i is not None}
        if moves(node):
            at = about(node.target).values
            return {n for i in at if i < len(node.args) for n in tree_leaves(node.args[i]) if isinstance(n, fx.Node)}
        return set(node.all_input_nodes) if _entrywise(node) or node.target is aten.one_hot.default else set()

    def _one_hot(self, node: fx.Node) -> bool:
        """Whether a node makes one-hot rows: by one_hot, or by comparing ids with all classes."""
        if node.target is not aten.eq.Tensor:
            return node.target is aten.one_hot.default
        ids, classes = sorted(args_of(node), key=lambda n: n not in self.reached)
        sizes = zip(reversed(ids.meta["val"].shape), reversed(classes.meta["val"].shape), strict=False)
        return classes not in self.given and any(n == 1 and isinstance(m, int) and m > 1 for n, m in sizes)

    def takes_rows(self, node: fx.Node) -> bool:
        """Whether a node looks up rows of a table that does not depend on the inputs."""
        return _index(node) in self.reached and node.args[0] not in self.given

    def lookups(self, *, numbers: bool = False) -> list[fx.Node]:
        """The nodes that look up vectors; with `numbers`, also those that use integers as numbers."""

        def looks_up(node: fx.Node) -> bool:
            if self.takes_rows(node) or self.hot.intersection(node.all_input_nodes):
                return True
            return numbers and (is_pointwise(node.target) or moves(node))

        return [n for n in self.takers if _is_float(n) and looks_up(n)]


def cast_one_hots(gm: fx.GraphModule) -> None:
    """Casts one-hot rows to floats before a node that takes them with other tensors, since vectors are read there."""
    given = find_given(gm.graph)
    for start in gm.graph.find_nodes(op="placeholder"):
        trail = Trail(start, given)
        for node in trail.takers:
            for hot in trail.hot.intersection(node.all_input_nodes):
                if _is_float(node) and not _is_float(hot) and len(node.all_input_nodes) > 1:
                    with gm.graph.inserting_before(node):
                        node.replace_input_with(hot, emit(gm.graph, node, aten.to.dtype, hot, node.meta["val"].dtype))


def find_given(graph: fx.Graph) -> set[fx.Node]:
    """The nodes whose values depend on an input, except tables whose rows are renormalised before a lookup."""
    given = set(graph.find_nodes(op="placeholder"))
    for node in graph.nodes:
        if node.target is not aten.embedding_renorm.default and not given.isdisjoint(carriers(node)):
            given.add(node)
    return given


def _entrywise(node: fx.Node) -> bool:
    return is_pointwise(node.target) or about(node.target).entrywise


def _is_float(node: fx.Node) -> bool:
    return any(v.is_floating_point() for v in values_of(node))


def _is_bool(node: fx.Node) -> bool:
    return any(v.dtype == torch.bool for v in values_of(node))


def _index(node: fx.Node) -> fx.Node | None:
    """The index argument of an op that looks up rows of a table; None for other ops."""
    args = args_of(node)
    if node.target is aten.embedding.default:
        return args[1]
    if node.target is aten.index_select.default and args[1] == 0:
        return args[2]
    if node.target is aten.index.Tensor and len(args[1]) == 1:
        return args[1][0]
    return None


class Positions:
    """Adds a node beside each node that moves `ids`, with each entry's position in `ids`."""

    def __init__(self, ids: fx.Node) -> None:
        self.ids = ids
        self.trail = Trail(ids, counted=True)
        self.reached = self.trail.reached
        self.positions_of: dict[fx.Node, fx.Node] = {}

    def at(self, lookup: fx.Node) -> fx.Node:
        """The position in `ids` of each entry of `lookup`, in its shape."""
        index = _index(lookup)
        if index is None or not self.trail.takes_rows(lookup):
            return self._beside(lookup, aten.expand_as.default, self.of(self._source(lookup)), lookup)
        positions = self.of(index)
        for _ in range(lookup.meta["val"].ndim - index.meta["val"].ndim):
            positions = self._beside(lookup, aten.unsqueeze.default, positions, -1)
        return self._beside(lookup, aten.expand_as.default, positions, lookup)

    def of(self, node: fx.Node) -> fx.Node:
        """The position in `ids` of each entry of `node`."""
        if node not in self.positions_of:
            self.positions_of[node] = self._positions(node)
        return self.positions_of[node]

    def _positions(self, node: fx.Node) -> fx.Node:
        if node is self.ids:
            count = self._beside(node, aten.sym_numel.default, node)
            flat = self._beside(count, aten.arange.default, count, device=node.meta["val"].device)
            return self._beside(flat, aten.view_as.default, flat, node)
        if node not in self.reached:
            return self._beside(node, aten.full_like.default, node, NOWHERE, dtype=torch.int64)
        index = _index(node)
        if index is not None and self.trail.takes_rows(node):  # a lookup in a table of integers
            return self.of(index)
        if about(node.target).copies:
            return self.of(args_of(node)[0])
        if node.target is aten.one_hot.default:
            positions = self._beside(node, aten.unsqueeze.default, self.of(args_of(node)[0]), -1)
            return self._beside(node, aten.expand_as.default, positions, node)
        if not moves(node):
            return self._beside(node, aten.expand_as.default, self.of(self._source(node)), node)
        values = about(node.target).values
        args = [self._moved(a) if i in values else a for i, a in enumerate(node.args)]
        return self._beside(node, target_of(node), *args, **node.kwargs)

    def _source(self, node: fx.Node) -> fx.Node:
        return next(n for n in node.all_input_nodes if n in self.reached)

    def _moved(self, value: Argument) -> Argument:
        return NOWHERE if isinstance(value, int | float) else fx.map_arg(value, self.of)

    def _beside(self, node: fx.Node, op: Callable, *args: Any, **kwargs: Any) -> fx.Node:
        with node.graph.inserting_after(self._latest([node, *(a for a in args if isinstance(a, fx.Node))])):
            return emit(node.graph, node, op, *args, **kwargs)

    def _latest(self, nodes: list[fx.Node]) -> fx.Node:
        order = {n: i for i, n in enumerate(self.ids.graph.nodes)}
        return max(nodes, key=order.__getitem__)
