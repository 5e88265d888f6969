"""Joins a weighted product and the bias added to it into one linear op, so that the rule knows the bias as such."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import fx

from fxlrp.nodes import args_of

if TYPE_CHECKING:
    from fxlrp.graph.facts import Facts

aten = torch.ops.aten
PRODUCTS = (aten.matmul.default, aten.mm.default)


def join_bias(gm: fx.GraphModule, facts: Facts) -> bool:
    """Rewrites x @ W + b with constant W [in, out] and b [out] as linear(x, Wᵀ, b), and addmm(b, x, Wᵀ) as
    linear(x, W, b)."""
    changed = False
    for node in list(gm.graph.nodes):
        if node.target is aten.addmm.default and not node.kwargs and facts.carries(node):
            b, x, w = node.args
            if not (facts.carries(b) or facts.carries(w)) and w.target is aten.t.default and b.meta["val"].ndim == 1:
                facts.replace(node, lambda call, b, x, w: call(aten.linear.default, x, w.args[0], b))
                changed = True
            continue
        if node.target is not aten.add.Tensor or node.kwargs or not facts.carries(node):
            continue
        constants = [a for a in node.args if isinstance(a, fx.Node) and not facts.carries(a)]
        products = [a for a in node.args if isinstance(a, fx.Node) and a.target in PRODUCTS and len(a.users) == 1]
        if len(constants) != 1 or len(products) != 1:
            continue
        (b,), (x, w) = constants, args_of(products[0])
        alike = len({t.meta["val"].dtype for t in (x, w, b)}) == 1
        if facts.carries(w) or w.meta["val"].ndim != 2 or b.meta["val"].shape != w.meta["val"].shape[1:] or not alike:
            continue
        facts.replace(node, lambda call, *_, x=x, w=w, b=b: call(aten.linear.default, x, call(aten.t.default, w), b))
        changed = True
    gm.graph.eliminate_dead_code()
    return changed
