"""Rewrites powers as the ops named for them: x², √x, 1/x, 1/√x, so that each has one rule."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import fx

from fxlrp.emit import Insert

if TYPE_CHECKING:
    from fxlrp.graph.facts import Facts

aten = torch.ops.aten
NAMES = {2: aten.square.default, 0.5: aten.sqrt.default, -0.5: aten.rsqrt.default, -1: aten.reciprocal.default}


def name_powers(gm: fx.GraphModule, facts: Facts) -> bool:
    """Rewrites pow(x, p) as the op named for it, and any other negative power as the reciprocal of a power."""
    powers = gm.graph.find_nodes(op="call_function", target=aten.pow.Tensor_Scalar)
    renamed = [n for n in powers if n.args[1] in NAMES or n.args[1] < 0]
    for node in renamed:
        facts.replace(node, _named)
    return bool(renamed)


def _named(call: Insert, x: fx.Node, p: float) -> fx.Node:
    if p in NAMES:
        return call(NAMES[p], x)
    return call(aten.reciprocal.default, call(aten.pow.Tensor_Scalar, x, -p))
