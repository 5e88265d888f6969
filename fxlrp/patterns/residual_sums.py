"""Marks the residual sums x + f(x) that a norm reads, as in transformers, with the number of them that follow each
other.

Those of models that read tokens are left alone, and those of convolutional networks, which batch norm and ReLU follow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx

from fxlrp.ops import describe, moves
from fxlrp.patterns.normed import is_normed
from fxlrp.patterns.residual import between
from fxlrp.rules.weighted import ones_for

if TYPE_CHECKING:
    from fxlrp.graph.facts import Facts

aten = torch.ops.aten


def residual_sum(x: Tensor, y: Tensor, depth: int) -> Tensor:
    """x + y, in a model where `depth` such sums lie behind each other."""
    return x + y


describe(residual_sum, entrywise=True, sign="kept", values=(0, 1))


def mark_residual_sums(gm: fx.GraphModule, facts: Facts) -> bool:
    """Rewrites x + f(x), both of one shape and with relevance, as residual_sum(x, f(x), depth), if a norm reads it and
    no vectors that were looked up for tokens flow into it."""
    starts = [n for ns in facts.readouts.values() for n in ns]
    of_tokens = {n for n in starts if n.op != "placeholder" and n.target is not ones_for}
    depth: dict[fx.Node, int] = {}  # the most residual sums on one way to a node
    sums: list[fx.Node] = []
    for node in gm.graph.nodes:
        of_tokens |= {node} if of_tokens.intersection(node.all_input_nodes) else set()
        depth[node] = max((depth[n] for n in node.all_input_nodes), default=0)
        plain = node.target is aten.add.Tensor and not node.kwargs and node not in of_tokens
        if plain and is_normed(node, moves) and _is_residual(node, facts):
            depth[node] += 1
            sums.append(node)
    deepest = max(depth.values())
    for node in sums:
        x, y = node.args
        facts.replace(node, lambda call, *_, x=x, y=y: call(residual_sum, x, y, deepest))
    return bool(sums)


def _is_residual(node: fx.Node, facts: Facts) -> bool:
    """Whether a sum is of two tensors of one shape, both with relevance, one of which depends on the other."""
    x, y = node.args
    if not (isinstance(x, fx.Node) and isinstance(y, fx.Node) and facts.carries(x) and facts.carries(y)):
        return False
    return x.meta["val"].shape == y.meta["val"].shape and bool(between(x, y) or between(y, x))
