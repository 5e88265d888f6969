"""Fused attention → the two products and the softmax it consists of, each of which has its rule."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from fxlrp.patterns.emit import replace

aten = torch.ops.aten


def expand_attention(gm: fx.GraphModule) -> None:
    """scaled_dot_product_attention(q, k, v) → dropout(softmax(q kᵀ · scale + mask)) v."""
    for node in list(gm.graph.nodes):
        if node.target is aten.scaled_dot_product_attention.default:
            replace(node, _attention)


def _attention(
    call: Any,
    q: fx.Node,
    k: fx.Node,
    v: fx.Node,
    mask: fx.Node | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> fx.Node:
    value = q.meta["val"]
    if enable_gqa:
        groups = value.shape[-3] // k.meta["val"].shape[-3]
        k, v = (call(aten.repeat_interleave.self_int, t, groups, -3) for t in (k, v))
    q = call(aten.mul.Tensor, q, value.shape[-1] ** -0.5 if scale is None else scale)
    scores = call(aten.matmul.default, q, call(aten.transpose.int, k, -2, -1))
    if is_causal:
        rows, columns = (call(aten.sym_size.int, scores, d) for d in (-2, -1))
        ones = call(aten.ones.default, [rows, columns], dtype=torch.bool, device=value.device)
        mask = call(aten.tril.default, ones)
    if mask is not None and mask.meta["val"].dtype == torch.bool:
        scores = call(aten.masked_fill.Scalar, scores, call(aten.logical_not.default, mask), float("-inf"))
    elif mask is not None:
        scores = call(aten.add.Tensor, scores, mask)
    weights = call(aten.dropout.default, call(aten.softmax.int, scores, -1), dropout_p, False)
    return call(aten.matmul.default, weights, v)
