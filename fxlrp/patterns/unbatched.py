"""Gives convolutions of a single sample, [C, H, W], the axis of samples that rules and kernels rely on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import fx

from fxlrp.nodes import args_of
from fxlrp.ops import about

if TYPE_CHECKING:
    from fxlrp.graph.facts import Facts

aten = torch.ops.aten


def batch_convolutions(gm: fx.GraphModule, facts: Facts) -> bool:
    """Rewrites active convolutions of one sample as those of a batch of one."""
    single = [n for n in gm.graph.nodes if about(n.target).kind == "convolution" and facts.carries(n) and _of_one(n)]
    for node in single:
        facts.replace(
            node,
            lambda call, x, *args, op=node.target, **kwargs: call(
                aten.squeeze.dim, call(op, call(aten.unsqueeze.default, x, 0), *args, **kwargs), 0
            ),
        )
    return bool(single)


def _of_one(node: fx.Node) -> bool:
    x, weight = args_of(node)[:2]
    return x.meta["val"].ndim < weight.meta["val"].ndim
