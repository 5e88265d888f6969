"""Marks the convolutions whose values a norm reads, as patches do in transformers, from those an activation reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from fxlrp.nodes import target_of
from fxlrp.ops import SUMS, about, of_kind
from fxlrp.patterns.centring import centred
from fxlrp.rules.weighted import Weighted

if TYPE_CHECKING:
    from fxlrp.graph.facts import Facts

aten = torch.ops.aten
NORMS = (*of_kind("norm"), centred)


@dataclass(frozen=True)
class Normed:
    """A convolution whose value a norm reads."""

    op: Callable[..., Tensor]

    @property
    def __name__(self) -> str:
        return str(self.op).removeprefix("aten.").partition(".")[0]

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.op(*args, **kwargs)


def mark_normed(gm: fx.GraphModule, facts: Facts) -> bool:
    """Rewrites convolutions whose values a norm reads, before any activation does, as Normed(convolution)."""
    changed = False
    for node in gm.graph.nodes:
        entry = facts.entry(node) if about(node.target).kind == "convolution" and facts.carries(node) else None
        if isinstance(getattr(entry, "fn", None), Weighted) and is_normed(node, _is_linear):
            normed = Normed(target_of(node))
            facts.replace(node, lambda call, *args, op=normed, **kwargs: call(op, *args, **kwargs))
            changed = True
    return changed


def is_normed(node: fx.Node, through: Callable[[fx.Node], bool]) -> bool:
    """Whether a norm reads a node's value, itself or what ops that satisfy a condition make of it."""
    seen = {node}
    ahead = [node]
    while ahead:
        users = [u for u in ahead.pop().users if u.op == "call_function" and u not in seen]
        if any(u.target in NORMS for u in users):
            return True
        seen.update(users)
        ahead += [u for u in users if through(u)]
    return False


def _is_linear(node: fx.Node) -> bool:
    """Whether a node moves values, scales them, adds to them or convolves them."""
    op = about(node.target)
    linear = op.routes or op.kind == "convolution" or node.target in (*SUMS, aten.mul.Tensor)
    return linear or isinstance(node.target, Normed)
