"""A product of something with a gate, such as SwiGLU's → the gate marked, for methods to which it is a constant."""

from __future__ import annotations

import torch
from torch import Tensor, fx

from fxlrp.ops import about
from fxlrp.patterns.elementwise import Elementwise
from fxlrp.patterns.emit import emit

aten = torch.ops.aten


def gate(x: Tensor) -> Tensor:
    """The values of a gate."""
    return x.view_as(x)


def mark_gates(gm: fx.GraphModule) -> None:
    """mul(x, f(y)), f a non-linearity and the other factor none → mul(x, gate(f(y)))."""
    for node in list(gm.graph.nodes):
        if node.target is not aten.mul.Tensor or not all(
            isinstance(a, fx.Node) and a.meta["active"] for a in node.args
        ):
            continue
        gates = [a for a in node.args if about(a.target).kind == "activation" or isinstance(a.target, Elementwise)]
        if len(gates) == 1:
            with gm.graph.inserting_before(node):
                node.replace_input_with(gates[0], emit(gm.graph, node, gate, gates[0]))
