"""Expands fused attention into its two products and softmax, each of which has its rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import fx

from fxlrp.emit import Insert

if TYPE_CHECKING:
    from fxlrp.graph.facts import Facts

aten = torch.ops.aten


def expand_attention(gm: fx.GraphModule, facts: Facts) -> bool:
    """Rewrites scaled_dot_product_attention(q, k, v) as dropout(softmax(q kᵀ · scale + mask)) v, unless it has a rule
    and no dropout."""
    return _expand(gm, facts, lambda node: not facts.entry(node) or any(node.args[4:5]))  # its dropout_p


def expand_every_attention(gm: fx.GraphModule, facts: Facts) -> bool:
    """Rewrites every scaled_dot_product_attention so, whether or not it has a rule."""
    return _expand(gm, facts, lambda node: True)


def _expand(gm: fx.GraphModule, facts: Facts, chosen: Callable[[fx.Node], bool]) -> bool:
    fused = gm.graph.find_nodes(op="call_function", target=aten.scaled_dot_product_attention.default)
    expanded = [node for node in fused if chosen(node)]
    for node in expanded:
        facts.replace(node, _attention)
    return bool(expanded)


def _attention(
    call: Insert,
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
    q_value = q.meta["val"]
    if enable_gqa:
        groups = q_value.shape[-3] // k.meta["val"].shape[-3]
        k, v = (call(aten.repeat_interleave.self_int, t, groups, -3) for t in (k, v))
    q = call(aten.mul.Tensor, q, q_value.shape[-1] ** -0.5 if scale is None else scale)
    scores = call(aten.matmul.default, q, call(aten.transpose.int, k, -2, -1))
    if is_causal:
        rows, columns = (call(aten.sym_size.int, scores, d) for d in (-2, -1))
        ones = call(aten.ones.default, [rows, columns], dtype=torch.bool, device=q_value.device)
        mask = call(aten.tril.default, ones)
    weights = _softmax(call, scores, mask, fixed=is_causal)
    return call(aten.matmul.default, call(aten.dropout.default, weights, dropout_p, False), v)


def _softmax(call: Insert, scores: fx.Node, mask: fx.Node | None, *, fixed: bool) -> fx.Node:
    """softmax(scores + mask), or 0 where a mask shuts out every key, as in a window of padding only; a `fixed` mask,
    such as the causal one, never does."""
    if mask is None:
        return call(aten.softmax.int, scores, -1)
    boolean = mask.meta["val"].dtype == torch.bool
    shut = call(aten.logical_not.default, mask) if boolean else call(aten.eq.Scalar, mask, float("-inf"))
    no_key = None if fixed else call(aten.all.dim, shut, -1, True)
    if boolean:
        shut = shut if no_key is None else call(aten.logical_and.default, shut, call(aten.logical_not.default, no_key))
        scores = call(aten.masked_fill.Scalar, scores, shut, float("-inf"))
    else:
        scores = call(aten.add.Tensor, scores, call(aten.masked_fill.Scalar, mask, no_key, 0.0))
    weights = call(aten.softmax.int, scores, -1)
    return weights if no_key is None else call(aten.masked_fill.Scalar, weights, no_key, 0.0)
