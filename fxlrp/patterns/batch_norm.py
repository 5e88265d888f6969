"""Batch norm behind a product with weights → one op, so that relevance sees the product as the network uses it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from fxlrp.patterns.emit import emit, replace

aten = torch.ops.aten
CONVOLUTIONS = tuple(getattr(c, kind) for c in (aten.conv1d, aten.conv2d, aten.conv3d) for kind in c.overloads())
TRANSPOSED = (aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input)
FOLDABLE = (aten.linear.default, *CONVOLUTIONS, *TRANSPOSED)


def batch_normed(x: Tensor, w: Tensor, b: Tensor | None, product: Any, rest: tuple, norm: tuple) -> Tensor:
    """batch_norm(product(x, w, b, *rest), *norm), computed just as the model does."""
    return aten.batch_norm.default(product(x, w, b, *rest), *norm)


def fold_batch_norm(gm: fx.GraphModule) -> None:
    """product → batch_norm (in eval mode, the product used nowhere else) becomes one `batch_normed` node."""
    for node in list(gm.graph.nodes):
        product = node.args[0] if node.target is aten.batch_norm.default else None
        if not isinstance(product, fx.Node) or product.target not in FOLDABLE or len(product.users) > 1:
            continue
        x, w, *more = product.args
        if node.args[5] or product.kwargs:  # batch statistics do not fold
            continue
        with gm.graph.inserting_before(node):
            bias, rest = (more[0], tuple(more[1:])) if more else (None, ())
            fused = emit(gm.graph, product, batch_normed, x, w, bias, product.target, rest, tuple(node.args[1:]))
        node.replace_all_uses_with(fused)
        gm.graph.erase_node(node)
        gm.graph.erase_node(product)


def split_batch_norm(gm: fx.GraphModule) -> None:
    """batch_norm → standardize, then scale and shift: one batch norm without weights, one without statistics."""
    for node in list(gm.graph.nodes):
        if node.target is aten.batch_norm.default and isinstance(node.args[1], fx.Node) and not node.args[5]:
            replace(node, _standardize_then_scale)


def _standardize_then_scale(
    call: Any, x: fx.Node, w: fx.Node, b: fx.Node, mean: fx.Node, var: fx.Node, *rest: Any
) -> Any:
    u = call(aten.batch_norm.default, x, None, None, mean, var, *rest)
    zero, one = call(aten.zeros_like.default, mean), call(aten.ones_like.default, var)
    training, momentum, _, cudnn = rest
    return call(aten.batch_norm.default, u, w, b, zero, one, training, momentum, 0.0, cudnn)
