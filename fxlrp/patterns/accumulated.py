"""Tells writes that add to what is there, which are sums, from writes over it, which move values."""

from __future__ import annotations

import torch
from torch import fx

from fxlrp.emit import Insert, replace

aten = torch.ops.aten


def spell_accumulated(gm: fx.GraphModule) -> None:
    """Gives `index_put` and `scatter` that accumulate the names of ops that only do that."""
    for node in list(gm.graph.nodes):
        if node.target is aten.index_put.default and node.args[3:] == (True,):
            node.target = aten._unsafe_index_put.default  # the same op, but described as a sum
        elif node.target in (aten.scatter.reduce, aten.scatter.value_reduce):
            replace(node, _scattered)


def _scattered(call: Insert, x: fx.Node, dim: int, index: fx.Node, source: fx.Node | float, *, reduce: str) -> fx.Node:
    """`scatter` that adds or multiplies, as the op that only does that; a number becomes a tensor of it."""
    if not isinstance(source, fx.Node):
        source = call(aten.full_like.default, index, source, dtype=x.meta["val"].dtype)
    if reduce == "add":
        return call(aten.scatter_add.default, x, dim, index, source)
    return call(aten.scatter_reduce.two, x, dim, index, source, "prod")
