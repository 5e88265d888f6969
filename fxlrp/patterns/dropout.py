"""Removes dropouts that a published method skips."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import fx

from fxlrp.capture.precision import stored

if TYPE_CHECKING:
    from fxlrp.graph.facts import Facts

aten = torch.ops.aten


def skip_position_dropout(gm: fx.GraphModule, facts: Facts) -> bool:
    """Removes dropouts directly after the sum with a learned constant (a position embedding)."""
    changed = False
    for node in list(gm.graph.nodes):
        total = node.args[0] if node.target is aten.dropout.default else None
        if not isinstance(total, fx.Node) or total.target is not aten.add.Tensor:
            continue
        if any(isinstance(a, fx.Node) and stored(a).op == "get_attr" for a in total.args):
            node.replace_all_uses_with(total)
            gm.graph.erase_node(node)
            changed = True
    return changed
