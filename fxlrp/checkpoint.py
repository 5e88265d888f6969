"""Checkpoint: a rewritten graph in segments that keep their inputs alone and run again when relevance comes by.

Chen et al., "Training Deep Nets with Sublinear Memory Cost" (arXiv 1604.06174): with √n segments of n layers, memory is
O(√n) for one more forward pass.
"""

from __future__ import annotations

import math
from bisect import bisect
from itertools import accumulate
from typing import Any

from torch import Tensor, fx, nn
from torch.fx.passes.split_module import split_module
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import checkpoint


class Segment(nn.Module):
    """A part of a graph whose inner values are computed again in the relevance pass."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, *args: Any) -> Any:
        return checkpoint(self.part, *args, use_reentrant=False, preserve_rng_state=False)


def checkpointed(gm: fx.GraphModule, leaves: list[fx.Node]) -> fx.GraphModule:
    """The graph in √(all it keeps / what a cut keeps) segments; what `leaves`, where the relevance pass ends, depend on
    stays outside of them."""
    if "checkpointed" not in gm.meta:
        parts = _parts(gm, leaves)
        split = split_module(gm, nn.Module(), parts.__getitem__, keep_original_order=False)
        for name, part in list(split.named_children()):
            if name.startswith("submod_") and name != "submod_0":
                setattr(split, name, Segment(part))
        gm.meta["checkpointed"] = split
    return gm.meta["checkpointed"]


def _parts(gm: fx.GraphModule, leaves: list[fx.Node]) -> dict[fx.Node, int]:
    """The segment of each node: 0 for what comes before the leaves, then in order, cut where little is alive."""
    nodes = [n for n in gm.graph.nodes if n.op in ("call_function", "get_attr")]
    first = set(leaves)
    for node in reversed(nodes):
        if any(u in first for u in node.users):
            first.add(node)
    rest = [n for n in nodes if n not in first and n.op == "call_function"]
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
    """The memory of a node's value, with the sizes of the example where they are symbolic."""
    return sum(
        math.prod(s if isinstance(s, int) else s.node.hint for s in t.shape) * t.dtype.itemsize
        for t in pytree.tree_leaves(node.meta.get("val"))
        if isinstance(t, Tensor)
    )
