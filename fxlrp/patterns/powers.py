"""Powers by their own names: x², √x, 1/x, 1/√x, so that each has its one rule."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from fxlrp.patterns.emit import replace

aten = torch.ops.aten
NAMES = {2: aten.square.default, 0.5: aten.sqrt.default, -0.5: aten.rsqrt.default, -1: aten.reciprocal.default}


def name_powers(gm: fx.GraphModule) -> None:
    """pow(x, p) → the op that is named for it; a negative power divides."""
    for node in list(gm.graph.nodes):
        if node.target is aten.pow.Tensor_Scalar and (node.args[1] in NAMES or node.args[1] < 0):
            replace(node, _named)


def _named(call: Any, x: fx.Node, p: float) -> fx.Node:
    if p in NAMES:
        return call(NAMES[p], x)
    return call(aten.reciprocal.default, call(aten.pow.Tensor_Scalar, x, -p))
