"""Straight-through estimators: x + (q(x) − x).detach() has the value q(x) and the derivative of x.

Elsewhere detach is removed, since it stops training but not relevance; here that would leave q(x) + x − x, in which x
cancels, and with it the path for relevance.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import fx
from torch.overrides import TorchFunctionMode

from fxlrp.emit import emit
from fxlrp.nodes import args_of
from fxlrp.ops import SUMS, about
from fxlrp.rules.values import stands_for

aten = torch.ops.aten
DETACH = (aten.detach.default, aten.detach_.default)
Term = tuple[fx.Node, bool]
"""A summand, and whether it is detached."""


def join_straight_through(gm: fx.GraphModule) -> None:
    """Replaces a sum by stands_for(x, sum) if its derivative is that of x, some of whose terms cancel in its value, and
    its value has other terms instead."""
    if not any(n.target in DETACH for n in gm.graph.nodes):
        return
    sums: dict[fx.Node, Counter[Term]] = {}
    for node in list(gm.graph.nodes):
        terms = sums[node] = _terms(node, sums)
        if node.target not in SUMS:
            continue
        valued = _counted(terms, (False, True))
        still_open = _counted(terms, (False,)).items()
        derived = Counter({n: times for n, times in still_open if n not in valued or _depends_smoothly(n)})
        if not set(valued) - set(derived) or not set(derived) - set(valued):
            continue  # nothing cancels, or what is left has a derivative of its own
        x = Counter({(term, False): times for term, times in derived.items()})
        alike = [n for n in _parts(node) if sums[n] == x]
        if not alike or alike[0].meta["val"].shape != node.meta["val"].shape:
            continue
        users = list(node.users)
        with gm.graph.inserting_after(node):
            joined = emit(gm.graph, node, stands_for, alike[0], node)
        for user in users:
            user.replace_input_with(node, joined)
        sums[joined] = Counter({(joined, False): 1})
        sums[node] = Counter({(node, True): 1})


def _counted(terms: Counter[Term], detached: tuple[bool, ...]) -> Counter[fx.Node]:
    """How often each summand is taken, of those that are `detached` or not."""
    out: Counter[fx.Node] = Counter()
    for (n, is_detached), times in terms.items():
        out[n] += times * (is_detached in detached)
    return Counter({n: times for n, times in out.items() if times})


def _parts(node: fx.Node) -> list[fx.Node]:
    """The nodes that a sum is made of, through sums and detaches, the nearest first."""
    parts: dict[fx.Node, None] = {}
    front = [a for a in args_of(node)[:2] if isinstance(a, fx.Node)]
    while front:
        n, *front = front
        if n not in parts:
            parts[n] = None
            front += n.all_input_nodes if n.target in SUMS or n.target in DETACH else []
    return list(parts)


def _terms(node: fx.Node, sums: dict[fx.Node, Counter[Term]]) -> Counter[Term]:
    """The summands of a node through sums, differences and detaches, and how often each is taken."""
    if node.target in DETACH:
        out: Counter[Term] = Counter()
        for (n, _), times in sums[args_of(node)[0]].items():
            out[n, True] += times
        return out
    operands = args_of(node)[:2]
    if node.target in SUMS and not node.kwargs and all(isinstance(a, fx.Node) for a in operands):
        first, second = (sums[a] for a in operands)
        out = Counter(first)
        for term, times in second.items():
            out[term] += times if node.target is aten.add.Tensor else -times
        return out
    return Counter({(node, False): 1})


def _depends_smoothly(node: fx.Node) -> bool:
    """Whether a node depends on some input by a path without step functions or detaches."""
    from fxlrp.graph.analyse import can_carry, carriers  # imported here to avoid a circular import

    seen: set[fx.Node] = set()
    front = [node]
    while front:
        n = front.pop()
        if n in seen or not can_carry(n) or n.target in DETACH or about(n.target).kind == "step":
            continue
        if n.op == "placeholder":
            return True
        seen.add(n)
        front += carriers(n)
    return False


READ_DATA: Any = vars(torch._C.TensorBase)["data"].__get__


class DataDetached(TorchFunctionMode):
    """Within it, `x.data` is `x.detach()`, which tracing sees; of x.data it would make a constant."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func == READ_DATA:
            return args[0].detach()
        return func(*args, **(kwargs or {}))
