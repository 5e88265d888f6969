"""Rewrites all products with a sparse matrix (an adjacency) as matmul, which has rules."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, fx

from fxlrp.emit import replace
from fxlrp.errors import FxlrpError
from fxlrp.reports.report import row_of

aten = torch.ops.aten
SPARSE_PRODUCTS = (aten._sparse_mm.default, aten.mm.default, aten.mv.default, aten.smm.default)
SPARSE_SUMS = (aten._sparse_addmm.default, aten.addmm.default, aten.addmv.default)


def is_sparse(node: object) -> bool:
    """Whether a node's value is a sparse tensor."""
    value = node.meta.get("val") if isinstance(node, fx.Node) else node
    return isinstance(value, Tensor) and value.layout is not torch.strided


def spell_sparse(gm: fx.GraphModule) -> None:
    """Rewrites A x as a matmul, and b + A x as a matmul and a sum."""
    for node in list(gm.graph.nodes):
        if not any(map(is_sparse, node.all_input_nodes)):
            continue
        if node.target in SPARSE_PRODUCTS:
            node.target = aten.matmul.default
        elif node.target in SPARSE_SUMS and not node.kwargs:
            replace(node, lambda call, b, x, y: call(aten.add.Tensor, b, call(aten.matmul.default, x, y)))


def refuse_sparse(gm: fx.GraphModule, active: Collection[fx.Node]) -> None:
    """Raises FxlrpError if an active node is a sparse tensor."""
    for node in gm.graph.nodes:
        if node in active and is_sparse(node):
            row = row_of(node)
            raise FxlrpError(
                f"{row.op} at {row.source} makes a sparse tensor of what is explained, and relevance can't stand "
                "there: make it dense, or write the product as y.index_add(0, rows, values[:, None] * x[columns])."
            )
