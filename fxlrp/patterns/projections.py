"""Splits a linear layer whose output is cut into parts (query, key, value) into one linear layer per part."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import fx

from fxlrp.nodes import args_of, target_of

if TYPE_CHECKING:
    from fxlrp.graph.facts import Facts

aten = torch.ops.aten
RESHAPES = (aten.reshape.default, aten.view.default)


def split_projections(gm: fx.GraphModule, facts: Facts) -> bool:
    """Rewrites unbind(permute(reshape(linear(x, W, b)))) along the outermost part of W's rows as linear(x, W_i, b_i)
    for each part."""
    changed = False
    for unbind in [n for n in gm.graph.nodes if n.target is aten.unbind.int]:
        chain = _chain(unbind)
        if chain is None:
            continue
        linear, reshape, permute, parts, axis = chain
        order = [d - (d > axis) for d in args_of(permute)[1] if d != axis]
        shape = [s for d, s in enumerate(args_of(reshape)[1]) if d != axis]
        for item in list(unbind.users):
            with gm.graph.inserting_before(unbind):
                rows = [_rows(facts, t, item.args[1], parts) for t in args_of(linear)[1:]]
                part = facts.emit(linear, aten.linear.default, linear.args[0], *rows)
                part = facts.emit(reshape, target_of(reshape), part, shape)
                part = facts.emit(permute, aten.permute.default, part, order)
            item.replace_all_uses_with(part)
            gm.graph.erase_node(item)
        gm.graph.erase_node(unbind)
        changed = True
    gm.graph.eliminate_dead_code()
    return changed


def _rows(facts: Facts, t: fx.Node | None, part: int, parts: int) -> fx.Node | None:
    """One of `parts` equal parts of a weight's or bias's rows."""
    if t is None:
        return None
    size = t.meta["val"].shape[0] // parts
    return facts.emit(t, aten.slice.Tensor, t, 0, part * size, (part + 1) * size)


def _chain(unbind: fx.Node) -> tuple[fx.Node, fx.Node, fx.Node, int, int] | None:
    """(linear, reshape, permute, number of parts, their axis in the reshape), if these nodes lead to `unbind`."""
    permute, dim = (*args_of(unbind), 0)[:2]
    if not isinstance(permute, fx.Node) or permute.target is not aten.permute.default:
        return None
    reshape = args_of(permute)[0]
    linear = args_of(reshape)[0] if isinstance(reshape, fx.Node) and reshape.target in RESHAPES else None
    if not isinstance(linear, fx.Node) or linear.target is not aten.linear.default:
        return None
    if any(len(n.users) != 1 for n in (permute, reshape, linear)):
        return None
    axis = args_of(permute)[1][dim]
    if axis != linear.meta["val"].ndim - 1:  # not the outermost part of the features
        return None
    return linear, reshape, permute, permute.meta["val"].shape[dim], axis
