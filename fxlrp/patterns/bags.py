"""Rewrites embedding bags as lookups and the sum, mean or maximum of each bag, so that their ids are read as usual."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from fxlrp.emit import emit
from fxlrp.nodes import args_of, target_of

aten = torch.ops.aten
BAGS = (
    aten.embedding_bag.default,
    aten.embedding_bag.padding_idx,
    aten._embedding_bag.default,
    aten._embedding_bag_forward_only.default,
)
SUM, MEAN, MAX = 0, 1, 2


def spell_bags(gm: fx.GraphModule) -> None:
    """Rewrites every embedding bag of which only the bags' vectors are used."""
    for node in [n for n in gm.graph.nodes if n.target in BAGS]:
        if all(u.target is operator.getitem and u.args[1] == 0 for u in node.users if u.users):
            with gm.graph.inserting_before(node):
                vectors = _plain_ops(node)
            for item in list(node.users):
                item.replace_all_uses_with(vectors)
                gm.graph.erase_node(item)
            gm.graph.erase_node(node)
    gm.graph.eliminate_dead_code()


def _plain_ops(node: fx.Node) -> fx.Node:
    arguments = {a.name: a.default_value for a in target_of(node)._schema.arguments}
    arguments |= dict(zip(arguments, node.args, strict=False)) | dict(node.kwargs)
    table, ids, offsets, mode = *args_of(node)[:3], arguments["mode"]
    weights, padding = arguments["per_sample_weights"], arguments.get("padding_idx")

    def call(op: Callable, *args: Any, **kwargs: Any) -> fx.Node:
        return emit(node.graph, node, op, *args, **kwargs)

    def column(n: fx.Node) -> fx.Node:
        return call(aten.unsqueeze.default, n, -1)

    rows = _rows(ids, offsets)
    if rows is not None and weights is not None:
        weights = call(aten.view_as.default, weights, rows)
    ids = ids if rows is None else rows
    vectors = call(aten.embedding.default, table, ids)
    if weights is not None:
        vectors = call(aten.mul.Tensor, vectors, column(weights))
    counted = call(aten.ne.Scalar, ids, -1 if padding is None else padding)
    fill = float("-inf") if mode == MAX else 0.0
    if padding is not None and padding >= 0:
        vectors = call(aten.masked_fill.Scalar, vectors, column(call(aten.logical_not.default, counted)), fill)
    if rows is not None:
        bags = call(aten.amax.default, vectors, [1]) if mode == MAX else call(aten.sum.dim_IntList, vectors, [1])
        count = call(aten.sum.dim_IntList, counted, [1])
    else:
        if arguments["include_last_offset"]:
            offsets = call(aten.slice.Tensor, offsets, 0, 0, -1)
        position = call(aten.arange.default, call(aten.sym_size.int, ids, 0), device=ids.meta["val"].device)
        bag = call(aten.sub.Tensor, call(aten.searchsorted.Tensor, offsets, position, right=True), 1)
        no_ids = call(aten.zeros_like.default, offsets)
        count = call(aten.index_add.default, no_ids, 0, bag, call(aten.to.dtype, counted, torch.int64))
        size = call(aten.sym_size.int, offsets, 0)
        zeros = call(aten.new_zeros.default, vectors, [size, table.meta["val"].shape[1]])
        if mode == MAX:
            bags = _largest(call, vectors, bag, zeros)
        else:
            bags = call(aten.index_add.default, zeros, 0, bag, vectors)
    if mode == MAX:
        return call(aten.masked_fill.Scalar, bags, column(call(aten.eq.Scalar, count, 0)), 0.0)
    if mode == MEAN:
        return call(aten.div.Tensor, bags, column(call(aten.clamp_min.default, count, 1)))
    return bags


def _largest(call: Callable[..., fx.Node], vectors: fx.Node, bag: fx.Node, zeros: fx.Node) -> fx.Node:
    """The largest entry of each bag, as the mean of all entries that equal it."""
    indices = call(aten.expand_as.default, call(aten.unsqueeze.default, bag, -1), vectors)
    highest = call(aten.scatter_reduce.two, zeros, 0, indices, vectors, "amax", include_self=False)
    lower = call(aten.ne.Tensor, vectors, call(aten.index.Tensor, highest, [bag]))
    ones = call(aten.masked_fill.Scalar, call(aten.ones_like.default, vectors), lower, 0.0)
    ties = call(aten.index.Tensor, call(aten.index_add.default, zeros, 0, bag, ones), [bag])
    parts = call(aten.div.Tensor, call(aten.masked_fill.Scalar, vectors, lower, 0.0), ties)
    return call(aten.index_add.default, zeros, 0, bag, parts)


def _rows(ids: fx.Node, offsets: fx.Node) -> fx.Node | None:
    """The ids [B, L] if `ids` is a flattened version of them with one bag per row; else None."""
    if ids.target is not aten.reshape.default or offsets.target is not aten.arange.start_step:
        return None
    rows, step = args_of(ids)[0], (*args_of(offsets), 1)[2]  # bags of one id leave the step out
    value = rows.meta["val"]
    length = step.meta["val"] if isinstance(step, fx.Node) else step
    return rows if value.ndim == 2 and str(value.shape[1]) == str(length) else None
