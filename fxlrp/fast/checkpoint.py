"""Checkpoint: cuts a rewritten graph into segments that keep only their inputs and run again in the relevance pass.

Chen et al., "Training Deep Nets with Sublinear Memory Cost" (arXiv 1604.06174): with √n segments of n layers, memory is
O(√n) for one more forward pass.
"""

from __future__ import annotations

import ctypes
import math
import sys
from bisect import bisect
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.split_module import split_module
from torch.fx.passes.utils.fuser_utils import fuse_by_partitions, validate_partition
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import checkpoint

from fxlrp.capture.symbols import hint
from fxlrp.engine.replaced import ReplacedOp
from fxlrp.nodes import copied
from fxlrp.ops import about
from fxlrp.rules.calculus import outside_vmap

aten = torch.ops.aten


class Segment(nn.Module):
    """A part of a graph whose inner values are computed again in the relevance pass."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, *args: Any) -> Any:
        return checkpoint(self.run, *args, use_reentrant=False, preserve_rng_state=False)

    def run(self, *args: Any) -> Any:
        with outside_vmap():
            return self.part(*args)


class Tidy(Segment):
    """A segment after which freed memory goes back to the system. glibc keeps most of it in holes that are too small
    for what comes next."""

    def run(self, *args: Any) -> Any:
        out = super().run(*args)
        if _trim is not None:
            _trim(0)
        return out


_trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None


def checkpointed(gm: fx.GraphModule, leaves: list[fx.Node]) -> fx.GraphModule:
    """Cut the graph into √(all it keeps / what a cut keeps) segments. What `leaves`, where the relevance pass ends,
    depend on stays outside of them."""
    parts = _parts(gm, leaves)
    split = split_module(gm, nn.Module(), parts.__getitem__, keep_original_order=False)
    for name, part in list(split.named_children()):
        if name.startswith("submod_") and name != "submod_0":
            setattr(split, name, Tidy(part))
    return split


def without_squares(gm: fx.GraphModule) -> fx.GraphModule:
    """Make a segment of each attention, from queries and keys to the weighted values: only one layer at a time keeps
    its weights of tokens × tokens."""
    copy, _ = copied(gm)
    parts: list[dict[fx.Node, int | None]] = []
    for node in copy.graph.nodes:
        part = _around(node) if about(_op(node)).kind == "softmax" else []
        if part and not any(n in other for n in part for other in parts):  # a softmax of a softmax is in its segment
            parts.append(dict.fromkeys(part))
    fuse_by_partitions(copy, _in_order(copy, parts), prefix="attention_")
    for name, module in list(copy.named_children()):
        if name.startswith("attention_"):
            setattr(copy, name, Segment(module))
    copy.recompile()
    return copy


def _is_product(op: object) -> bool:
    return about(op).kind in ("matmul", "product") or op is aten.einsum.default


def _op(node: fx.Node) -> Any:
    return node.target.op if isinstance(node.target, ReplacedOp) else node.target


def _around(softmax: fx.Node) -> list[fx.Node]:
    """The nodes as large as a softmax, from the product before it to the product after it; none if they save little."""
    size = _bytes(softmax)
    part, edge = {softmax}, [softmax]
    while edge:
        node = edge.pop()
        large = [n for n in (*node.all_input_nodes, *node.users) if n.op == "call_function" and _bytes(n) == size]
        edge += [n for n in large if n not in part and not _is_product(_op(n))]
        part.update(large)
    ends = {u for n in part for u in n.users if u.op == "call_function"}
    inputs = {n for m in part | ends for n in m.all_input_nodes} - part
    saved = sum(map(_bytes, part)) > sum(map(_bytes, inputs))
    whole = [n for n in softmax.graph.nodes if n in part | ends]
    ours = any(isinstance(n.target, ReplacedOp) for n in whole)  # else it keeps no more than the model itself does
    return whole if saved and ours and validate_partition(whole) else []


def _in_order(gm: fx.GraphModule, parts: list[dict[fx.Node, int | None]]) -> list[dict[fx.Node, int | None]]:
    """The parts none of whose nodes depends on a later part, so that no two depend on each other."""
    place = {n: i for i, part in enumerate(parts) for n in part}
    latest: dict[fx.Node, int] = {}  # of the parts that a node is in or depends on
    early = set()
    for node in gm.graph.nodes:
        before, own = max((latest[n] for n in node.all_input_nodes), default=-1), place.get(node, -1)
        latest[node] = max(before, own)
        early |= {own} if node in place and before > own else set()
    return [part for i, part in enumerate(parts) if i not in early]


CALLS = ("call_function", "call_module")


def _parts(gm: fx.GraphModule, leaves: list[fx.Node]) -> dict[fx.Node, int]:
    """The number of the segment of each node: 0 for what comes before the leaves, then in order, cut where little is
    alive."""
    nodes = [n for n in gm.graph.nodes if n.op in (*CALLS, "get_attr")]
    first = set(leaves)
    for node in reversed(nodes):
        if any(u in first for u in node.users):
            first.add(node)
    rest = [n for n in nodes if n not in first and n.op in CALLS]
    place, sizes = {n: i for i, n in enumerate(rest)}, {n: _bytes(n) for n in rest}
    alive = [0.0] * (len(rest) + 1)  # bytes kept by a cut in front of each place
    for node in rest:
        last = max((place.get(u, 0) for u in node.users), default=0)
        for i in range(place[node] + 1, last + 1):
            alive[i] += sizes[node]
    sums = list(accumulate(sizes.values()))
    narrow = sorted(alive)[len(alive) // 10]
    count = max(1, round(math.sqrt(sums[-1] / max(narrow, 1)))) if rest else 1
    reach = len(rest) // (2 * count)
    evenly = (bisect(sums, sums[-1] * k / count) for k in range(1, count))
    cuts = sorted({min(range(max(i - reach, 0), min(i + reach, len(rest)) + 1), key=alive.__getitem__) for i in evenly})
    return {**dict.fromkeys(nodes, 0), **{n: 1 + bisect(cuts, i) for n, i in place.items()}}


def _bytes(node: fx.Node) -> float:
    """The memory of a node's value in bytes; symbolic sizes count as those of the example, or 1 if values decide."""
    return sum(
        math.prod(hint(size) or 1 for size in t.shape) * t.dtype.itemsize
        for t in pytree.tree_leaves(node.meta.get("val"))
        if isinstance(t, Tensor)
    )
