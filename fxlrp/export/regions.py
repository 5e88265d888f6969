"""Compiles what a graph repeats, such as the blocks of a transformer, once for all the places where it stands.

This is regional compilation, found in the graph alone. Its ops are read as a sequence of labels: what repeats is a run
of equal labels whose arguments come from the same places. Each run is cut out as a function of what it needs from
outside, weights included, so that one compiled function serves all of them.
"""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby, pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxlrp.nodes import leaves
from fxlrp.recent import Recent

aten = torch.ops.aten

LEAST = 24  # ops in a region: what is shorter is better fused with its surroundings
SEEN = 64  # shapes that a piece remembers
SHARE = 0.4  # the part of all ops that may be left to compile, at most, for regions to pay


class Repeat(NamedTuple):
    """A run of `size` ops that begins at each of `starts`."""

    size: int
    starts: Sequence[int]


class Listing:
    """The ops of a graph that compute tensors, in order, with labels: equal if the op, its constants and the shapes,
    strides and types of what comes in and out are equal."""

    def __init__(self, gm: fx.GraphModule) -> None:
        self.ops = [n for n in gm.graph.nodes if n.op == "call_function" and not is_number(n)]
        self.index = {n: i for i, n in enumerate(self.ops)}
        self.inputs = [[a for a in _nodes_in(n) if not is_number(a)] for n in self.ops]
        numbers: dict[Any, int] = {}
        self.labels = np.array([numbers.setdefault(_label(n), len(numbers)) for n in self.ops], dtype=np.int64)

    def equal(self, a: int, b: int, size: int) -> int:
        """The number of ops, at most `size`, that do from a on what they do from b on: an argument is made by the same
        op of both runs, or comes from outside."""
        there: dict[fx.Node, fx.Node] = {}
        back: dict[fx.Node, fx.Node] = {}
        for k in range(size):
            if self.labels[a + k] != self.labels[b + k]:
                return k
            for u, v in zip(self.inputs[a + k], self.inputs[b + k], strict=True):
                i, j = self.index.get(u, -1) - a, self.index.get(v, -1) - b
                if i >= 0 or j >= 0:
                    if i != j:
                        return k
                elif there.setdefault(u, v) is not v or back.setdefault(v, u) is not u:
                    return k
        return size

    def leaving(self, start: int, size: int) -> int:
        """The number of ops of a run whose values are used outside it."""
        run = range(start, start + size)
        return sum(any(self.index.get(u, -1) not in run and not is_number(u) for u in self.ops[i].users) for i in run)


def is_number(node: fx.Node) -> bool:
    """Whether a node's value is a size or computed from sizes."""
    return isinstance(node.meta.get("val"), torch.SymInt | torch.SymFloat | torch.SymBool | int | float)


def repeats(listing: Listing) -> list[Repeat]:
    """The runs that repeat and don't overlap, those first that save most."""
    free = np.ones(len(listing.ops), dtype=bool)
    found: list[Repeat] = []
    while (best := _longest(listing.labels, free)) is not None:
        start, lag, length = best
        size = min(lag, length)
        # where a repeated block begins is open: cut where the least goes from one to the next
        shifts = range(start, start + length % lag + 1) if length >= lag else range(start, start + 1)
        start = min(shifts, key=lambda s: listing.leaving(s, size))
        size = listing.equal(start, start + lag, size)
        if size < LEAST:
            free[start + size] = False  # the op at which the two part
            continue
        starts = _occurrences(listing, free, start, size)
        found.append(Repeat(size, starts))
        for s in starts:
            free[s : s + size] = False
    return found


def _longest(labels: np.ndarray, free: np.ndarray) -> tuple[int, int, int] | None:
    """The (start, lag, length) that saves most ops, where labels[start : start + length] equal those a lag later."""
    places = defaultdict(list)
    for i, window in enumerate(np.lib.stride_tricks.sliding_window_view(labels, LEAST) if len(labels) >= LEAST else ()):
        if free[i : i + LEAST].all():
            places[window.tobytes()].append(i)
    lags = {later - i for found in places.values() for i, later in pairwise(found) if later - i >= LEAST}
    best, most = None, 0
    for lag in lags:
        same = np.concatenate([[0], (labels[:-lag] == labels[lag:]) & free[:-lag] & free[lag:], [0]])
        edges = np.flatnonzero(np.diff(same))
        for start, end in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
            length = end - start
            saved = min(length, lag) * max(1, length // lag)
            if length >= LEAST and saved > most:
                best, most = (start, lag, length), saved
    return best


def _occurrences(listing: Listing, free: np.ndarray, start: int, size: int) -> list[int]:
    """Where the run at `start` stands, without overlaps."""
    alike = np.flatnonzero(listing.labels == listing.labels[start]).tolist()
    ends = len(listing.ops) - size
    stands = [i for i in alike if i <= ends and free[i : i + size].all() and listing.equal(start, i, size) == size]
    found = [start]
    for i in stands:
        if i >= found[-1] + size:
            found.append(i)
    for i in reversed(stands):
        if i + size <= found[0]:
            found.insert(0, i)
    return found


def compiled_by_regions(gm: fx.GraphModule, **options: Any) -> Callable[..., Any]:
    """Compiles a graph, piece by piece if most of it repeats: what repeats once, and what is between.

    options: as of torch.compile.  The sizes that are symbols in the graph, and no others, are dynamic from the first
    call, unless dynamic=False.
    """
    listing = Listing(gm)
    found = repeats(listing)
    if sum(r.size * (len(r.starts) - 1) for r in found) < (1 - SHARE) * len(listing.ops):
        return Piece(gm, options)
    return assembled(gm, listing, with_the_rest(found, len(listing.ops)), options)


def with_the_rest(found: Sequence[Repeat], count: int) -> list[Repeat]:
    """The runs found among `count` ops, and those between them, which stand once."""
    taken = {i for run in found for start in run.starts for i in range(start, start + run.size)}
    others = [list(ops) for within, ops in groupby(range(count), taken.__contains__) if not within]
    return [*found, *(Repeat(len(ops), [ops[0]]) for ops in others)]


def assembled(gm: fx.GraphModule, listing: Listing, runs: Sequence[Repeat], options: dict[str, Any]) -> fx.GraphModule:
    """The graph as calls of pieces, one compiled for each run.  The runs hold each op once."""
    outside = {start: _operands(listing, start, run.size) for run in runs for start in run.starts}
    needed = {a for operands in outside.values() for a in operands} | set(_nodes_in(gm.graph.output_node()))
    pieces: dict[str, Any] = {n.target: operator.attrgetter(n.target)(gm) for n in gm.graph.find_nodes(op="get_attr")}
    calls: dict[int, tuple[str, list[int]]] = {}
    for run in runs:
        given = [k for k in range(run.size) if any(listing.ops[start + k] in needed for start in run.starts)]
        name = f"piece_{run.starts[0]}"
        pieces[name] = Piece(_cut_out(listing, run, outside[run.starts[0]], given), options)
        calls |= dict.fromkeys(run.starts, (name, given))
    graph = fx.Graph()
    copies = {n: graph.node_copy(n) for n in gm.graph.nodes if n.op in ("placeholder", "get_attr")}
    for start, (name, given) in sorted(calls.items()):
        call = graph.call_module(name, tuple(copies[a] for a in outside[start]))
        items = [graph.call_function(operator.getitem, (call, i)) for i in range(len(given))]
        copies |= {listing.ops[start + k]: item for k, item in zip(given, items, strict=True)}
    graph.output(fx.map_arg(gm.graph.output_node().args[0], copies.__getitem__))
    return fx.GraphModule(pieces, graph)


class Piece(nn.Module):
    """A compiled graph, whose sizes are dynamic where they are symbols in it."""

    def __init__(self, graph: fx.GraphModule, options: dict[str, Any]) -> None:
        super().__init__()
        values = [n.meta.get("val") for n in graph.graph.find_nodes(op="placeholder")]
        shapes = [v.shape if isinstance(v, Tensor) else () for v in values]
        static = options.get("dynamic") is False
        self.dynamic = [
            [d for d, n in enumerate(shape) if isinstance(n, torch.SymInt) and not static] for shape in shapes
        ]
        self.seen: Recent[bool] = Recent(SEEN)
        self.run = torch.compile(graph, **{**options, "dynamic": False if static else None})

    def forward(self, *args: Any) -> Any:
        shapes = tuple(getattr(t, "shape", ()) for t in args)
        if not self.seen.get(shapes):
            for t, axes in zip(args, self.dynamic, strict=True):
                torch._dynamo.maybe_mark_dynamic(t, axes)
            self.seen.set(shapes, True)
        return self.run(*args)


def _operands(listing: Listing, start: int, size: int) -> list[fx.Node]:
    """The tensors that a run needs from outside: the arguments of its ops, and what tells the sizes among them."""
    run = range(start, start + size)
    found = dict.fromkeys(a for i in run for a in listing.inputs[i] if listing.index.get(a, -1) not in run)
    for i in run:
        for number in _numbers_of(listing.ops[i]):
            tensors = [a for a in _nodes_in(number) if not is_number(a)]
            if tensors and _dimension(number, found) is None:
                found |= dict.fromkeys(a for a in tensors if listing.index.get(a, -1) not in run)
    return list(found)


def _cut_out(listing: Listing, run: Repeat, operands: Sequence[fx.Node], given: Sequence[int]) -> fx.GraphModule:
    """The run as a graph of its own: operands → the values of the ops `given`, counted from its start."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for i, node in enumerate(operands):
        copies[node] = graph.placeholder(f"operand_{i}")
        copies[node].meta = {"val": node.meta.get("val")}
    ops = listing.ops[run.starts[0] : run.starts[0] + run.size]
    for op in ops:
        for number in _numbers_of(op):
            if number not in copies:
                where = _dimension(number, operands)
                if where is not None:
                    copies[number] = graph.call_function(aten.sym_size.int, (copies[where[0]], where[1]))
                else:
                    copies[number] = graph.node_copy(number, copies.__getitem__)
        copies[op] = graph.node_copy(op, copies.__getitem__)
    graph.output(tuple(copies[ops[k]] for k in given))
    return fx.GraphModule(nn.Module(), graph)


def _numbers_of(op: fx.Node) -> list[fx.Node]:
    """The numbers that an op's arguments are computed from, each after those it needs."""
    direct = [a for a in _nodes_in(op) if is_number(a)]
    return list(dict.fromkeys(n for number in direct for n in (*_numbers_of(number), number)))


def _dimension(number: fx.Node, tensors: Iterable[fx.Node]) -> tuple[fx.Node, int] | None:
    """The tensor and axis whose size a number is."""
    if not isinstance(number.meta["val"], torch.SymInt):
        return None
    sizes = ((t, d, size) for t in tensors for d, size in enumerate(getattr(t.meta.get("val"), "shape", ())))
    return next(((t, d) for t, d, size in sizes if str(size) == str(number.meta["val"])), None)


def _nodes_in(node: fx.Node) -> list[fx.Node]:
    return [a for a in leaves(node) if isinstance(a, fx.Node)]


def _label(node: fx.Node) -> str:
    """Equal for nodes that compute the same from equal arguments."""

    def described(value: Any) -> Any:
        if isinstance(value, Tensor):
            return (*map(str, (value.shape, value.stride(), value.dtype, value.device)),)
        return [described(v) for v in value] if isinstance(value, list | tuple) else (type(value).__name__, str(value))

    def argument(a: Any) -> Any:
        return described(a.meta.get("val")) if isinstance(a, fx.Node) else described(a)

    shape = pytree.tree_structure((node.args, node.kwargs))
    return repr((str(node.target), shape, [argument(a) for a in leaves(node)], described(node.meta.get("val"))))
