"""Tests whether a captured graph is known to keep samples apart, by trying each kind of op in it once.

This takes a fraction of a network's run: repeated ops (in blocks, layers of one shape) are tried once, and products and
pointwise ops, whose shapes suffice, not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from operator import attrgetter, getitem
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from fxlrp.capture.symbols import hint
from fxlrp.nodes import target_of
from fxlrp.ops import about, is_pointwise, of_kind

aten = torch.ops.aten

SHAPES_TELL = {getitem, *of_kind("matmul", "product")}
"""Ops that keep rows apart if their result has an axis for the rows: they sum products over other axes."""


def is_rowwise(
    gm: fx.GraphModule, starts: Collection[fx.Node], end: fx.Node, axis: Callable[[Tensor], int | None]
) -> bool:
    """Whether each row of `end` is known to depend only on the same row of `starts`; False if the ops can't show it.

    axis: the function from a traced tensor to its axis that counts the rows and nothing else, if it has one.
    """
    after_starts, before_end = set(starts), {end}
    for node in gm.graph.nodes:
        if node.target is not aten.sym_size.int and any(n in after_starts for n in node.all_input_nodes):
            after_starts.add(node)
    for node in reversed(gm.graph.nodes):
        if node in before_end and node not in starts:
            before_end.update(node.all_input_nodes)
    between = after_starts & before_end
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
        call_signature = _call_signature(node, between, axis)
        if call_signature not in tried and not _keeps_rows(gm, node, between, axis):
            return False
        tried.add(call_signature)
    return True


def _call_signature(node: fx.Node, between: Collection[fx.Node], axis: Callable) -> tuple:
    """A signature of a node's call; nodes with the same one treat their rows alike."""

    def describe(n: fx.Node) -> object:
        val = n.meta["val"]
        if not isinstance(val, Tensor):
            return repr(val)
        shared = n not in between and not val.is_floating_point()  # integers may index rows
        return [n.name if shared else None, list(map(hint, val.shape)), val.dtype, axis(val)]

    return node.target, repr(fx.node.map_arg((node.args, node.kwargs), lambda n: repr(describe(n))))


def _keeps_rows(gm: fx.GraphModule, node: fx.Node, between: Collection[fx.Node], axis: Callable) -> bool:
    """Whether each row of a node's value, computed from random inputs, changes only with its own row."""
    rows = {n: axis(n.meta["val"]) for n in node.all_input_nodes if n in between}
    generator = torch.Generator().manual_seed(0)
    try:
        values = {n: _value(gm, n, n in between, generator) for n in node.all_input_nodes}
        outputs = _call(node, values)
        for i in (0, 1):
            changed = dict(values)
            for n, a in rows.items():
                changed[n] = values[n].clone()
                row = changed[n].select(a, i)
                row.copy_(2 - row if row.is_floating_point() else 1 - row.int())  # another value in the same range
            for traced, a, b in zip(_tensors(node.meta["val"]), outputs, _call(node, changed), strict=True):
                other = (axis(traced), 1 - i)
                if bool(differ(a.select(*other), b.select(*other)).any()):
                    return False
    except (RuntimeError, IndexError, ValueError, NotImplementedError):  # the op refuses such values
        return False
    return True


def _value(gm: fx.GraphModule, n: fx.Node, has_rows: bool, generator: torch.Generator) -> Any:
    """A value for a node: a weight's own, else random numbers; raises ValueError for integers that rows share, and for
    a size that depends on values."""
    val = n.meta["val"]
    if n.op == "get_attr":
        return attrgetter(str(n.target))(gm)
    if not isinstance(val, Tensor):
        return hint(val)
    if not has_rows and not val.is_floating_point() and val.dtype != torch.bool:
        raise ValueError("which rows these are the indices of is not known")
    shape = [length for size in val.shape if (length := hint(size)) is not None]
    if len(shape) < val.ndim:
        raise ValueError("how large this is depends on values")
    return _random_like(torch.empty(shape, dtype=val.dtype, device=val.device), generator)


def _random_like(like: Tensor, generator: torch.Generator) -> Tensor:
    """Random numbers from ½ to 1½; for booleans and integers, 0 or 1."""
    numbers = torch.rand(like.shape, generator=generator) + 0.5
    return (numbers if like.is_floating_point() else numbers.floor()).to(like.device, like.dtype)


def _call(node: fx.Node, values: Mapping[fx.Node, Any]) -> list[Tensor]:
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
    with torch.no_grad():
        return _tensors(target_of(node)(*args, **kwargs))


def _tensors(value: object) -> list[Tensor]:
    return [t for t in pytree.tree_leaves(value) if isinstance(t, Tensor)]


def differ(a: Tensor, b: Tensor) -> Tensor:
    """A mask of the entries that differ by more than rounding."""
    if not a.is_floating_point() and not a.is_complex():
        return a != b
    size = a.abs()
    scale = size.where(size.isfinite(), 0).amax() if a.numel() else 0
    return ~((a - b).abs() <= 8 * torch.finfo(a.dtype).eps * scale) & ~((a == b) | (a.isnan() & b.isnan()))
