"""Joins a residual sum with the branch that leads from the shortcut to the sum, for abslrp-2024-12, whose rule needs
both."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx

from fxlrp.emit import cut_out

if TYPE_CHECKING:
    from fxlrp.graph.facts import Facts

aten = torch.ops.aten


class Residual:
    """branch + shortcut, where branch = body(shortcut, …)."""

    def __init__(self, body: fx.Graph) -> None:
        self.body = fx.GraphModule({}, body)
        self.__name__ = self.__qualname__ = "residual"
        self.__module__ = __name__

    def __call__(self, branch: Tensor, shortcut: Tensor, *operands: object) -> Tensor:
        return branch + shortcut


def join_branches(gm: fx.GraphModule, facts: Facts, instead: Mapping[Callable | str, Callable]) -> bool:
    """Rewrites f(x) + x as one op of f(x), x and f's other operands; `instead`: replacements for ops in f that get
    another derivative."""
    changed = False
    for node in [n for n in gm.graph.nodes if n.target is aten.add.Tensor and facts.carries(n) and not n.kwargs]:
        for branch, shortcut in (node.args, node.args[::-1]):
            pair = facts.carries(branch) and facts.carries(shortcut)
            inside = between(shortcut, branch) if pair else []
            if inside and branch.meta["val"].shape == shortcut.meta["val"].shape:
                body, operands = cut_out(branch, inside, shortcut, instead=instead)
                args = (branch, shortcut, *operands)
                facts.replace(node, lambda call, *_, body=body, args=args: call(Residual(body), *args))
                changed = True
                break
    return changed


def between(first: fx.Node, last: fx.Node) -> list[fx.Node]:
    """The nodes through which `last` depends on `first`, in order, including `last`."""
    behind, ahead, nodes = {first}, {last}, list(first.graph.nodes)
    nodes = nodes[nodes.index(first) + 1 :]
    for node in nodes:
        if behind.intersection(node.all_input_nodes):
            behind.add(node)
    for node in reversed(nodes):
        if ahead.intersection(node.users):
            ahead.add(node)
    return [n for n in nodes if n in behind and n in ahead]
