"""Facts about a captured graph while it is rewritten, which every pass is given.

A pass is a function (graph, facts) → whether it changed the graph; it writes by `Facts.emit` and `Facts.replace`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from functools import cached_property, partial
from typing import Any

from torch import fx

from fxlrp import emit
from fxlrp.capture.model import Capture
from fxlrp.graph.analyse import by_derivative, find_active, find_infinite, find_nonnegative
from fxlrp.graph.outputs import Output, explained_output
from fxlrp.graph.reads import Place, find_readouts
from fxlrp.graph.samples import Samples
from fxlrp.nodes import leaves
from fxlrp.ops import carriers
from fxlrp.rules.registry import Derivative, Entry, Rule, Rulebook


class Facts:
    """Facts about the graph of `captured`, as `rulebook` explains it.

    explained: the output that is explained, and its logits.
    marked: the readouts that a user asked for, and their names.
    readouts: the nodes where the relevance of each input tensor is read, for inputs that get some.
    active: the nodes that carry relevance between the readouts and the explained output.
    """

    def __init__(self, captured: Capture, rulebook: Rulebook, output: Output, marked: Mapping[fx.Node, str]) -> None:
        self.captured, self.rulebook = captured, rulebook
        self._known: dict[Hashable, object] = {}
        self.explained = explained_output(captured, output)
        readouts = find_readouts(captured, marked)
        starts = [n for ns in readouts.values() for n in ns]
        self.active = find_active(captured.graph, starts, self.explained.end, self._flows)
        self._starts = starts
        active_readouts = {i: [n for n in ns if n in self.active] for i, ns in readouts.items()}
        self.readouts: dict[Place, list[fx.Node]] = {i: ns for i, ns in active_readouts.items() if ns}

    @cached_property
    def nonnegative(self) -> set[fx.Node]:
        """The nodes known to be ≥ 0."""
        return find_nonnegative(self.captured.graph)

    @cached_property
    def infinite(self) -> set[fx.Node]:
        """The active nodes that masks may make infinite."""
        return find_infinite(self.captured.graph, self.active)

    @cached_property
    def samples(self) -> Samples:
        """The sample axis of every node."""
        return Samples(self.captured, self.readouts, self.active)

    def stops_at(self) -> fx.Node | None:
        """Where relevance ends by this rulebook, of all nodes that have a derivative by a readout the last one."""
        nodes = find_active(self.captured.graph, self._starts, self.explained.end, by_derivative)
        ends = [n for n in nodes.difference(self._starts) if not self._flows(n, nodes)]
        return max(ends, key=list(self.captured.graph.graph.nodes).index, default=None)

    def carries(self, value: object) -> bool:
        """Whether an argument is a node that carries relevance."""
        return isinstance(value, fx.Node) and value in self.active

    def positions(self, node: fx.Node) -> tuple[int, ...]:
        """The indices, among the leaves of a node's arguments, of those that carry relevance."""
        return self._positions(node, self.active)

    def entry(self, node: fx.Node) -> Entry | None:
        """The rulebook's entry for a node in its current form; None if the node has no rule of its own."""
        entry = self.rulebook.lookup(node.target, self.positions(node))
        return None if isinstance(entry, Derivative) and entry is self.rulebook.unknown else entry

    def emit(self, like: fx.Node, op: Callable, *args: Any, **kwargs: Any) -> fx.Node:
        """Inserts op(*args, **kwargs) at the graph's insertion point, with the metadata of `like`; the new node is
        active if `like` is."""
        node = emit.emit(like.graph, like, op, *args, known=self._known, **kwargs)
        if like in self.active:
            self.active.add(node)
        return node

    def replace(self, node: fx.Node, write: Callable[..., fx.Node]) -> fx.Node:
        """Replaces `node` by the nodes that `write(call, *args, **kwargs)` builds; call(op, …) inserts one."""
        return emit.replace(node, write, self.emit)

    def replace_uses(self, node: fx.Node, write: Callable[..., fx.Node]) -> fx.Node:
        """Replaces all uses of `node` by what `write(call)` builds after it, perhaps of it; call(op, …) inserts one."""
        users = list(node.users)
        with node.graph.inserting_before(node.next):
            new = write(partial(self.emit, node))
        for user in users:
            user.replace_input_with(node, new)
        return new

    def _positions(self, node: fx.Node, active: set[fx.Node]) -> tuple[int, ...]:
        carrying = set(carriers(node)) & active
        return tuple(i for i, leaf in enumerate(leaves(node)) if leaf in carrying)

    def _flows(self, node: fx.Node, reached: set[fx.Node]) -> list[fx.Node]:
        """The inputs of a node that its rule gives relevance to."""
        positions = self._positions(node, reached)
        entry = self.rulebook.lookup(node.target, positions)
        argnums = entry.argnums if isinstance(entry, Rule) and entry.argnums is not None else positions
        return [leaf for i, leaf in enumerate(leaves(node)) if i in positions and i in argnums]
