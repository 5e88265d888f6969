"""Folds batch norm into the weighted product before it, so that the rule sees the weights that the network applies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from fxlrp.emit import KEPT, Insert
from fxlrp.nodes import target_of
from fxlrp.ops import of_kind
from fxlrp.rules.folded import FoldedProduct
from fxlrp.rules.registry import Rule

if TYPE_CHECKING:
    from fxlrp.graph.facts import Facts

aten = torch.ops.aten
TRANSPOSED = (aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input)
FOLDABLE = (aten.linear.default, *of_kind("convolution"))


def fold_batch_norm(gm: fx.GraphModule, facts: Facts) -> bool:
    """Explains a product and the batch norm after it (in eval mode, with no other user of the product) as one product,
    with γ/√(v + ε) in its weight and the rest in its bias.  Its value stays the one that the model computes."""
    changed = False
    for node in list(gm.graph.nodes):
        product = node.args[0] if node.target is aten.batch_norm.default else None
        if not isinstance(product, fx.Node) or product.target not in FOLDABLE or len(product.users) > 1:
            continue
        grouped = product.target in TRANSPOSED and len(product.args) > 6 and product.args[6] != 1
        if node.args[5] or product.kwargs or grouped or facts.carries(product.args[1]):
            continue  # batch statistics do not fold
        if isinstance(facts.entry(product), Rule):
            facts.replace_uses(node, lambda call, z=node, product=product: _folded(call, z, product, *z.args[1:]))
            changed = True
    return changed


def _folded(
    call: Insert,
    z: fx.Node,
    product: fx.Node,
    w: fx.Node | None,
    b: fx.Node | None,
    mean: fx.Node,
    var: fx.Node,
    *rest: Any,
) -> fx.Node:
    x, weight, *more = product.args
    bias, more = (more[0], more[1:]) if more else (None, [])
    scale = call(aten.rsqrt.default, call(aten.add.Tensor, var, rest[2]))
    scale = scale if w is None else call(aten.mul.Tensor, w, scale)
    shift = call(aten.neg.default, mean) if bias is None else call(aten.sub.Tensor, bias, mean)
    shift = call(aten.mul.Tensor, shift, scale)
    shift = shift if b is None else call(aten.add.Tensor, shift, b)
    op = FoldedProduct(target_of(product), channels=1 if product.target in TRANSPOSED else 0)
    folded = call(op, x, weight, shift, *more, value=z, scale=scale)
    folded.meta.update({k: product.meta[k] for k in KEPT if k in product.meta})
    return folded


def split_batch_norm(gm: fx.GraphModule, facts: Facts) -> bool:
    """Splits batch_norm into one without weights, which standardizes, and one without statistics, an affine map."""
    norms = gm.graph.find_nodes(op="call_function", target=aten.batch_norm.default)
    split = [n for n in norms if isinstance(n.args[1], fx.Node) and not n.args[5]]
    for node in split:
        facts.replace(node, _standardize_then_scale)
    return bool(split)


def _standardize_then_scale(
    call: Insert, x: fx.Node, w: fx.Node, b: fx.Node, mean: fx.Node, var: fx.Node, *rest: Any
) -> fx.Node:
    u = call(aten.batch_norm.default, x, None, None, mean, var, *rest)
    zero, one = call(aten.zeros_like.default, mean), call(aten.ones_like.default, var)
    training, momentum, _, cudnn = rest
    return call(aten.batch_norm.default, u, w, b, zero, one, training, momentum, 0.0, cudnn)
