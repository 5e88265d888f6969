"""Rewrites the addition of a mask (0 where open, very negative where shut) as an op whose relevance all goes to x."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from fxlrp.capture.precision import stored
from fxlrp.nodes import target_of
from fxlrp.ops import describe

if TYPE_CHECKING:
    from fxlrp.graph.facts import Facts

aten = torch.ops.aten
SHUT = -50.0  # e to this power is negligible in float32


def masked(x: Tensor, mask: Tensor) -> Tensor:
    """x + mask, where `mask` is 0 or very negative."""
    return x + mask


describe(masked, fills="masks")


def mark_masks(gm: fx.GraphModule, facts: Facts) -> bool:
    """Rewrites add(x, constant) as masked(x, constant) if the constant's value on the example inputs is a mask."""
    values: dict[fx.Node, Any] = dict(zip(gm.graph.find_nodes(op="placeholder"), facts.captured.inputs, strict=True))
    changed = False
    for node in list(gm.graph.nodes):
        if node.target is not aten.add.Tensor or not facts.carries(node) or node.kwargs:
            continue
        constants = [n for n in node.args if isinstance(n, fx.Node) and not facts.carries(n)]
        if len(constants) == 1 and _is_mask(_value(stored(constants[0]), values)):
            (mask,) = constants
            x = node.args[1 - node.args.index(mask)]
            if x.meta["val"].shape == node.meta["val"].shape:
                facts.replace(node, lambda call, *_, x=x, mask=mask: call(masked, x, mask))
                changed = True
    return changed


def _is_mask(value: object) -> bool:
    if not isinstance(value, Tensor) or isinstance(value, nn.Parameter) or not value.ndim or value.is_complex():
        return False
    return bool(((value == 0) | (value < SHUT)).all())


def _value(node: fx.Node, values: dict[fx.Node, Any]) -> Any:
    """The value of a node for the example inputs."""
    stack = [node]
    while stack:
        top = stack[-1]
        missing = [n for n in top.all_input_nodes if n not in values]
        if missing and top.op == "call_function":
            stack += missing
            continue
        stack.pop()
        if top.op == "get_attr":
            values[top] = operator.attrgetter(str(top.target))(top.graph.owning_module)
        elif top not in values:
            args, kwargs = fx.map_arg((top.args, top.kwargs), values.__getitem__)
            with torch.no_grad():
                values[top] = target_of(top)(*args, **kwargs)
    return values[node]
