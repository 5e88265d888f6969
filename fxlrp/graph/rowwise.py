"""Row-wise: whether a captured graph is known to keep samples apart, each kind of op in it tried once by itself.

That takes a fraction of the time of the network: what it repeats (blocks, layers of one shape) is tried once, and
products and pointwise ops, whose shapes tell, not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from operator import attrgetter, getitem
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from fxlrp.capture.symbols import hint
from fxlrp.ops import about, is_pointwise, of_kind

aten = torch.ops.aten

SHAPES_TELL = {getitem, aten.linear.default, aten.addmm.default, aten.baddbmm.default, *of_kind("matmul")}
"""Ops that keep rows apart if their result has an axis for them: sums of products over other axes."""


def is_rowwise(
    gm: fx.GraphModule, starts: Collection[fx.Node], end: fx.Node, axis: Callable[[Tensor], int | None]
) -> bool:
    """Whether each row of `end` is known to depend on the same row of `starts` alone; False if ops alone don't tell.

    axis: which one of a traced tensor counts the rows and nothing else, if one does.
    """
    behind, before = set(starts), {end}
    for node in gm.graph.nodes:
        if node.target is not aten.sym_size.int and any(n in behind for n in node.all_input_nodes):
            behind.add(node)
    for node in reversed(gm.graph.nodes):
        if node in before and node not in starts:
            before.update(node.all_input_nodes)
    between = behind & before
    tried = set()
    for node in gm.graph.nodes:
        if node not in between:
            continue
        axes = [axis(t) for t in _tensors(node.meta.get("val"))]
        if not axes or None in axes:
            return False
        op = node.target
        convolved = about(op).kind == "convolution" and axes == [0]
        if node in starts or is_pointwise(op) or op in SHAPES_TELL or convolved:
            continue
        alike = _about(node, between, axis)
        if alike not in tried and not _keeps_rows(gm, node, between, axis):
            return False
        tried.add(alike)
    return True


def _about(node: fx.Node, between: Collection[fx.Node], axis: Callable) -> Any:
    """What is alike in nodes that treat their rows alike."""

    def one(n: fx.Node) -> Any:
        val = n.meta["val"]
        if not isinstance(val, Tensor):
            return repr(val)
        shared = n not in between and not val.is_floating_point()  # integers may be indices of rows
        return [n.name if shared else None, list(map(hint, val.shape)), val.dtype, axis(val)]

    return node.target, repr(fx.node.map_arg((node.args, node.kwargs), lambda n: repr(one(n))))


def _keeps_rows(gm: fx.GraphModule, node: fx.Node, between: Collection[fx.Node], axis: Callable) -> bool:
    """Whether in what a node makes of random values each row changes with its own row alone."""
    rows = {n: axis(n.meta["val"]) for n in node.all_input_nodes if n in between}
    drawn = torch.Generator().manual_seed(0)
    try:
        values = {n: _value(gm, n, n in between, drawn) for n in node.all_input_nodes}
        plain = _call(node, values)
        for i in (0, 1):
            others = dict(values)
            for n, a in rows.items():
                others[n] = values[n].clone()
                row = others[n].select(a, i)
                row.copy_(2 - row if row.is_floating_point() else 1 - row.int())  # another of the same range
            for traced, a, b in zip(_tensors(node.meta["val"]), plain, _call(node, others), strict=True):
                other = (axis(traced), 1 - i)
                if bool(differ(a.select(*other), b.select(*other)).any()):
                    return False
    except (RuntimeError, IndexError, ValueError, NotImplementedError):  # it takes no such values
        return False
    return True


def _value(gm: fx.GraphModule, n: fx.Node, own: bool, drawn: torch.Generator) -> Any:
    """A value for a node: a weight's own, and random numbers, but for indices that rows share."""
    val = n.meta["val"]
    if n.op == "get_attr":
        return attrgetter(str(n.target))(gm)
    if not isinstance(val, Tensor):
        return hint(val)
    if not own and not val.is_floating_point() and val.dtype != torch.bool:
        raise ValueError("which rows these are the indices of is not known")
    return _drawn(torch.empty(list(map(hint, val.shape)), dtype=val.dtype, device=val.device), drawn)


def _drawn(like: Tensor, drawn: torch.Generator) -> Tensor:
    """Random numbers from ½ to 1½; booleans and integers that are 0 or 1."""
    numbers = torch.rand(like.shape, generator=drawn) + 0.5
    return (numbers if like.is_floating_point() else numbers.floor()).to(like.device, like.dtype)


def _call(node: fx.Node, values: Mapping[fx.Node, Any]) -> list[Tensor]:
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
    with torch.no_grad():
        return _tensors(node.target(*args, **kwargs))  # type: ignore[operator]


def _tensors(value: Any) -> list[Tensor]:
    return [t for t in pytree.tree_leaves(value) if isinstance(t, Tensor)]


def differ(a: Tensor, b: Tensor) -> Tensor:
    """Where two values are not the same, but for rounding."""
    if not a.is_floating_point() and not a.is_complex():
        return a != b
    size = a.abs()
    scale = size.where(size.isfinite(), 0).amax() if a.numel() else 0
    return ~((a - b).abs() <= 8 * torch.finfo(a.dtype).eps * scale) & ~((a == b) | (a.isnan() & b.isnan()))
