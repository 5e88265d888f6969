"""Places: a module's output or a node of the graph, or an attention's heads, and how a tensor there is laid out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from fxlrp.capture.symbols import hint
from fxlrp.engine.replaced import Item, ReplacedOp
from fxlrp.errors import FxlrpError
from fxlrp.graph.plan import Plan
from fxlrp.nodes import args_of
from fxlrp.ops import about, carriers, is_pointwise
from fxlrp.patterns.normed import Normed
from fxlrp.reports.report import row_of
from fxlrp.rules.folded import product_of
from fxlrp.rules.per_sample import WHOLE, SampleAxis
from fxlrp.rules.weighted import FirstLayer

FAR = 64
"""How many nodes back the axis of channels is looked for."""
AXES = {"convolution": 1, "batch_norm": 1, "group_norm": 1, "instance_norm": 1}
LAST = ("linear", "addmm", "layer_norm", "rms_norm", "embedding", "mm")
HEADS = "heads"


@dataclass(frozen=True)
class Place:
    """A node of a plan's graph, as it was asked for by `name`.

    samples: where the samples are.  parts: the axis of its channels, or of its heads; None: beside the samples, in the
    same axis.
    """

    name: str
    node: str
    samples: SampleAxis
    parts: int | None

    def arranged(self, t: Tensor) -> Tensor:
        """A tensor of that place as [batch, …, parts]."""
        if self.samples == WHOLE:
            return t[None].movedim((self.parts or 0) + 1, -1)
        axis, before, after = self.samples
        t = t.unflatten(axis, (before, t.shape[axis] // (before * after), after))
        parts = axis + 2 if self.parts is None else self.parts + (2 if self.parts > axis else 0)
        return t.movedim((axis + 1, parts), (0, -1))

    def back(self, t: Tensor, like: Tensor) -> Tensor:
        """A tensor [batch, …, parts] as it lies at that place, where `like` is."""
        if self.samples == WHOLE:
            return t.movedim(-1, (self.parts or 0) + 1)[0]
        axis, parts = self.samples.axis, self.parts
        at = axis + 2 if parts is None else parts + (2 if parts > axis else 0)
        return t.movedim((0, -1), (axis + 1, at)).reshape(like.shape)


def place(plan: Plan, name: str, heads: bool = False, axis: int | None = None) -> Place:
    """The place of that name: the output of a module or a node, or what an attention's heads add up.

    axis: of its channels, where they are not where its ops have them.

    Raises FxlrpError for a name of nothing active, and for heads where there is no softmax.
    """
    node = _weighted_values(plan, name) if heads else plan.named(name)
    traced, samples = node.meta["val"], samples_at(plan, node)
    if heads:
        folded = traced.ndim == 3 and samples != WHOLE
        parts = None if folded else 0 if traced.ndim == 3 else traced.ndim - 3
        if (parts is not None and parts == samples.axis) or (folded and samples.axis != 0):
            raise FxlrpError(f"The heads of {name!r} can't be told from its samples: name its channels, by their axis.")
        return Place(name, node.name, samples, parts)
    if axis is not None and not -traced.ndim <= axis < traced.ndim:
        raise FxlrpError(f"{name!r} is a tensor of {traced.ndim} axes; it has no axis {axis}.")
    parts = channel_axis(node) if axis is None else axis % traced.ndim
    if parts is None or parts == samples.axis != WHOLE.axis:
        parts = 1 if traced.ndim == 4 else traced.ndim - 1
    return Place(name, node.name, samples, None if parts == samples.axis else parts)


def samples_at(plan: Plan, node: fx.Node) -> SampleAxis:
    """Where the samples are in a node's value; where that is not known, in its first axis, if that can be."""
    traced = node.meta["val"]
    for alias in (node, *node.all_input_nodes[:1]):  # a readout is an alias
        if alias.name in plan.samples and (alias is node or getattr(node.target, "__name__", "") == "readout"):
            return plan.samples[alias.name]
    if plan.axes.whole or plan.is_for_one or not traced.ndim:
        return WHOLE
    count, first = hint(plan.axes.count(plan.capture.inputs)), hint(traced.shape[0])
    return SampleAxis(0, 1, first // count) if first and count and first % count == 0 else WHOLE


def op_of(node: fx.Node) -> Any:
    """The op that a node of a rewritten graph computes: of a product with a norm folded in, the product."""
    op: Any = node.target
    while isinstance(op, ReplacedOp | Item | Normed | FirstLayer):
        op = op.op
    return product_of(op)


def short_name(node: fx.Node) -> str:
    """The name of the op that a node computes, as "linear"."""
    name = getattr(op_of(node), "_schema", None)
    return name.name.rpartition("::")[2] if name else getattr(op_of(node), "__name__", "").split("_")[0]


def channel_axis(node: fx.Node, far: int = FAR) -> int | None:
    """The axis of a node's channels, where the product, norm or lookup that its value comes from has them; None where
    none is found."""
    op, name, value = op_of(node), short_name(node), node.meta.get("val")
    if not isinstance(value, Tensor) or not value.ndim or not far or node.op != "call_function":
        return None
    axis = AXES.get(about(op).kind or name, AXES.get(name))
    if axis is not None:
        return axis if value.ndim > 1 else None
    if name in LAST:
        return value.ndim - 1
    sources = [n for n in carriers(node) if isinstance(n.meta.get("val"), Tensor)]
    if name in ("matmul", "bmm", "scaled_dot_product_attention"):
        return value.ndim - 1
    for source in sorted(sources, key=lambda n: -n.meta["val"].ndim):
        before = channel_axis(source, far - 1)
        after = None if before is None else _moved(name, node, source, before)
        if after is not None:
            return after
    return None


def _moved(name: str, node: fx.Node, source: fx.Node, axis: int) -> int | None:
    """Where an axis of a node's input is in its value."""
    old, new = ([hint(s) for s in n.meta["val"].shape] for n in (source, node))
    if name in ("permute", "transpose", "swapaxes", "swapdims", "t", "movedim"):
        if name == "permute":
            return [d % len(old) for d in args_of(node)[1]].index(axis)
        if name == "movedim":
            return None
        a, b = (d % len(old) for d in (args_of(node)[1:3] if name != "t" else (0, 1)))
        return b if axis == a else a if axis == b else axis
    if len(old) == len(new):
        return axis if old[axis] == new[axis] or is_pointwise(op_of(node)) else None
    if axis == len(old) - 1 and new[-1] == old[axis]:
        return len(new) - 1
    if old[: axis + 1] == new[: axis + 1]:
        return axis
    fit = [d for d, n in enumerate(new) if n == old[axis]]
    return fit[0] if len(fit) == 1 else None


def in_module(node: fx.Node, name: str) -> bool:
    """Whether a node was computed inside the module of that name."""
    return f"{row_of(node).module}.".startswith(f"{name}.") or not name


def _weighted_values(plan: Plan, name: str) -> fx.Node:
    """The node where the heads of an attention have weighted their values, the last of a module."""
    inside = [n for n in plan.graph.graph.nodes if n.op == "call_function" and (in_module(n, name) or n.name == name)]
    for softmax in reversed(inside):
        values = weighted_by(softmax)
        if values is not None and values.name in plan.active:
            return values
    raise FxlrpError(
        f"{name!r} has no heads: no softmax in it weights values on the way of relevance.  Name an attention module, "
        "or its channels."
    )


def weighted_by(softmax: fx.Node) -> fx.Node | None:
    """The product of an attention's weights with its values, if the node is its softmax or all of it."""
    if short_name(softmax) == "scaled_dot_product_attention":
        return softmax
    if about(op_of(softmax)).kind != "softmax":
        return None
    nodes, seen = [softmax], set[fx.Node]()
    while nodes:
        node = nodes.pop(0)
        for user in node.users:
            if user.op != "call_function" or user in seen:
                continue
            seen.add(user)
            if about(op_of(user)).kind == "matmul" and args_of(user) and args_of(user)[0] is node:
                return user
            if _passes(user):
                nodes.append(user)
    return None


def _passes(node: fx.Node) -> bool:
    """Whether a node moves or scales what it gets."""
    op: Callable = op_of(node)
    return about(op).moves or is_pointwise(op) or getattr(op, "__name__", "") in ("constant", "masked")
