"""Fuses entrywise functions of one tensor that are written out in several ops into one op.

Finds tanh-GELU, quick-GELU, Swish, Mish, hard-Swish and any other such function by the shape of the graph.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx

from fxlrp.emit import cut_out
from fxlrp.ops import SCALINGS, about, is_pointwise

if TYPE_CHECKING:
    from fxlrp.graph.facts import Facts

aten = torch.ops.aten


class Elementwise:
    """An entrywise function of one tensor and constants, defined by the graph in `body`."""

    def __init__(self, body: fx.Graph) -> None:
        self.body = fx.GraphModule({}, body)
        self.__name__ = self.__qualname__ = type(self).__name__.lower()
        self.__module__ = __name__

    def __call__(self, x: Tensor, *constants: object) -> Tensor:
        return self.body(x, *constants)


class Gate(Elementwise):
    """x · gate(x)."""


def fuse_elementwise(gm: fx.GraphModule, facts: Facts) -> bool:
    """Fuses branches from one tensor x that meet again, with entrywise ops only, into one function of x."""
    order = {n: i for i, n in enumerate(gm.graph.nodes)}
    changed = False
    for node in reversed(list(gm.graph.nodes)):
        cone = _cone(node, order, facts) if not node._erased and _joins(node, facts) else None
        if cone is not None:
            order[_fuse(node, *cone, facts)] = order[node]
            changed = True
    gm.graph.eliminate_dead_code()
    return changed


def _joins(node: fx.Node, facts: Facts) -> bool:
    return facts.carries(node) and is_pointwise(node.target) and len(_active(node, facts)) > 1


def _active(node: fx.Node, facts: Facts) -> list[fx.Node]:
    return [n for n in node.all_input_nodes if facts.carries(n)]


def _cone(top: fx.Node, order: dict[fx.Node, int], facts: Facts) -> tuple[fx.Node, list[fx.Node]] | None:
    """The nearest tensor x that `top` is an entrywise function of, and the nodes from x to `top`, in order."""
    front, inside = set(_active(top, facts)), [top]
    while len(front) > 1:
        latest = max(front, key=order.__getitem__)
        if not (is_pointwise(latest.target) or about(latest.target).copies):
            return None
        front = (front - {latest}) | set(_active(latest, facts))
        inside.append(latest)
    (x,) = front
    same = x.meta["val"].shape == top.meta["val"].shape
    return (x, sorted(inside, key=order.__getitem__)) if same else None


def _fuse(top: fx.Node, x: fx.Node, inside: list[fx.Node], facts: Facts) -> fx.Node:
    body, constants = cut_out(top, inside, x)
    kind = Gate if _is_gate(top, x, facts) else Elementwise
    with top.graph.inserting_before(top):
        fused = facts.emit(top, kind(body), x, *constants)
    top.replace_all_uses_with(fused)
    for node in reversed(inside):
        if not node.users:
            node.graph.erase_node(node)
    return fused


def _is_gate(top: fx.Node, x: fx.Node, facts: Facts) -> bool:
    """Whether `top` is a product in which exactly one factor is x itself or x times constants."""

    def scaled(node: fx.Node) -> bool:
        while node is not x and node.target in SCALINGS and len(_active(node, facts)) == 1:
            (node,) = _active(node, facts)
        return node is x

    factors = _active(top, facts)
    return top.target is aten.mul.Tensor and [scaled(f) for f in factors].count(True) == 1
