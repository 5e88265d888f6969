"""Recognises norms, softmax and sigmoid written out in ops, so that their statistics can be constants of a method."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx

from fxlrp.nodes import args_of
from fxlrp.ops import about, describe

if TYPE_CHECKING:
    from fxlrp.graph.facts import Facts

aten = torch.ops.aten

MEANS = (aten.mean.dim, aten.mean.default)
OFFSETS = (aten.amax.default, aten.max.dim)
RESHAPES = (operator.getitem, aten.detach, aten.unsqueeze, aten.expand, aten.expand_as, aten.view)


def centred(x: Tensor, mean: Tensor) -> Tensor:
    """x − mean, where `mean` is a mean of x."""
    return x - mean


def offset(x: Tensor, top: Tensor) -> Tensor:
    """x − top, where a softmax subtracts `top` to stay finite; it cancels in the result."""
    return x - top


describe(offset, entrywise=True)


def mark_centring(gm: fx.GraphModule, facts: Facts) -> bool:
    """Rewrites sub(x, mean(x)) as centred(x, mean(x)), sub(x, amax(x)) as offset(x, amax(x)), and
    sub(x, logsumexp(x)) as log_softmax(x)."""
    changed = False
    for node in list(gm.graph.nodes):
        if node.target is not aten.sub.Tensor or node.kwargs or not isinstance(node.args[1], fx.Node):
            continue
        x, statistic = args_of(node)
        source = _origin(statistic)
        known = (*MEANS, *OFFSETS, aten.logsumexp.default)
        if source.target not in known or _origin(args_of(source)[0]) is not _origin(x):
            continue
        if source.target is aten.logsumexp.default:
            dims, shape = args_of(source)[1], statistic.meta["val"].shape
            if len(dims) == 1 and len(shape) == x.meta["val"].ndim and shape[dims[0]] == 1:
                facts.replace(node, lambda call, x, _, dim=dims[0]: call(aten.log_softmax.int, x, dim))
                changed = True
        elif x.meta["val"].ndim == node.meta["val"].ndim:
            op = centred if source.target in MEANS else offset
            facts.replace(node, lambda call, x, m, op=op: call(op, x, m))
            changed = True
    return changed


def join_softmax(gm: fx.GraphModule, facts: Facts) -> bool:
    """Rewrites exp(x) / sum(exp(x), dim) as softmax(x, dim), with or without the maximum subtracted first, and
    exp(log_softmax(x)), too."""
    changed = False
    for node in list(gm.graph.nodes):
        if node.target is aten.exp.default and node.args[0].target is aten.log_softmax.int:
            facts.replace(node, lambda call, log: call(aten.softmax.int, *log.args))
            changed = True
        if node.target is not aten.div.Tensor or not all(isinstance(a, fx.Node) for a in node.args):
            continue
        e, total = node.args
        summed = total.target is aten.sum.dim_IntList and total.args[0] is e and total.args[2:] == (True,)
        if e.target is not aten.exp.default or not summed or len(total.args[1]) != 1:
            continue
        x = e.args[0].args[0] if e.args[0].target is offset else e.args[0]
        facts.replace(node, lambda call, e, total, x=x: call(aten.softmax.int, x, total.args[1][0]))
        changed = True
    return changed


def join_sigmoid(gm: fx.GraphModule, facts: Facts) -> bool:
    """Rewrites 1 / (1 + exp(−x)) as sigmoid(x): its denominator is no constant, for x occurs nowhere else."""
    changed = False
    for node in list(gm.graph.nodes):
        total = args_of(node)[0] if node.target is aten.reciprocal.default else None
        exp = total.args[0] if total is not None and total.target is aten.add.Tensor and total.args[1] == 1 else None
        negative = args_of(exp)[0] if isinstance(exp, fx.Node) and exp.target is aten.exp.default else None
        if negative is not None and negative.target is aten.neg.default:
            facts.replace(node, lambda call, _, x=negative.args[0]: call(aten.sigmoid.default, x))
            changed = True
    return changed


def _origin(node: fx.Node) -> fx.Node:
    """The node that `node` is a copy of, perhaps in another shape or type."""
    while about(node.target).copies or getattr(node.target, "overloadpacket", node.target) in RESHAPES:
        node = args_of(node)[0]
    return node
