"""Tells writes that add to what is there, which are sums, from writes over it, which move values."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from fxlrp.emit import replace

aten = torch.ops.aten


def spell_accumulated(gm: fx.GraphModule) -> None:
    """Gives `index_put` and `scatter` that accumulate the names of ops that only do that."""
    for node in list(gm.graph.nodes):
        if node.target is aten.index_put.default and True in (*node.args[3:], *node.kwargs.values()):
            node.target = aten._unsafe_index_put.default  # the same op, but described as a sum
        elif node.target in (aten.scatter.reduce, aten.scatter.value_reduce):
            replace(node, _scattered)


def _scattered(call: Any, x: Any, dim: int, index: Any, source: Any, *, reduce: str) -> fx.Node:
    if not isinstance(source, fx.Node):
        source = call(aten.full_like.default, index, source, dtype=x.meta["val"].dtype)
    if reduce == "add":
        return call(aten.scatter_add.default, x, dim, index, source)
    return call(aten.scatter_reduce.two, x, dim, index, source, "prod")
