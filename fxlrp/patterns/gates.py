"""Marks the gate in a gated product, such as SwiGLU's, for methods that treat it as a constant."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx

from fxlrp.ops import about
from fxlrp.patterns.elementwise import Elementwise

if TYPE_CHECKING:
    from fxlrp.graph.facts import Facts

aten = torch.ops.aten


def gate(x: Tensor) -> Tensor:
    """The values of a gate."""
    return x.view_as(x)


def mark_gates(gm: fx.GraphModule, facts: Facts) -> bool:
    """Rewrites mul(x, f(y)) as mul(x, gate(f(y))) if f(y) is an activation and x is not."""
    changed = False
    for node in list(gm.graph.nodes):
        if node.target is not aten.mul.Tensor or not all(map(facts.carries, node.args)):
            continue
        gates = [a for a in node.args if about(a.target).kind == "activation" or isinstance(a.target, Elementwise)]
        if len(gates) == 1:
            with gm.graph.inserting_before(node):
                node.replace_input_with(gates[0], facts.emit(node, gate, gates[0]))
            changed = True
    return changed
