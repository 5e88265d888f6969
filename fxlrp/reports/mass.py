"""Measures how much relevance passes between any two nodes of a graph, to show leaks and explosions."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

from torch import Tensor, fx

from fxlrp.nodes import target_of
from fxlrp.rules.quantities import as_pair, relevance


class Mass(NamedTuple):
    """Relevance summed over all samples: the positive part, and the size of the negative part."""

    positive: float = 0.0
    negative: float = 0.0

    def __add__(self, other: Any) -> Mass:
        return Mass(self.positive + other.positive, self.negative + other.negative)

    @property
    def size(self) -> float:
        return self.positive + self.negative

    @property
    def sum(self) -> float:
        return self.positive - self.negative

    def __str__(self) -> str:
        return f"{self.positive:+.3g} {-self.negative:+.3g}" if self.negative else f"{self.positive:+.3g}"


def mass_of(r: Tensor) -> Mass:
    """The mass of a relevance tensor."""
    return Mass(float(r.clamp(min=0).sum()), float(-r.clamp(max=0).sum()))


class Weighing(fx.Interpreter):
    """Runs a rewritten graph, whose relevance pass then records in `edges` the mass from each node to its inputs.

    edges: (node, input) → mass, by the nodes' names.
    """

    def __init__(self, gm: fx.GraphModule) -> None:
        super().__init__(gm, garbage_collect_values=False)
        self.edges: dict[tuple[str, str], Mass] = {}

    def run_node(self, n: fx.Node) -> Any:
        if n.op not in ("call_function", "output"):
            return super().run_node(n)

        def weighed(source: fx.Node) -> Any:
            value = self.env[source]
            if not isinstance(value, Tensor) or not value.requires_grad or (n.op == "output" and value.is_leaf):
                return value
            probe = value.view_as(value)
            # bind `edges`, not self: self holds the values that the hook hangs on, a cycle that is never freed
            probe.register_hook(partial(_note, self.edges, (n.name, source.name), value.detach()))
            return probe

        args, kwargs = fx.map_arg((n.args, n.kwargs), weighed)
        return args[0] if n.op == "output" else target_of(n)(*args, **kwargs)


def _note(edges: dict[tuple[str, str], Mass], edge: tuple[str, str], a: Tensor, g: Tensor | None) -> None:
    if g is None:  # a C++ op without a derivative
        return
    r = relevance(as_pair(a), as_pair(g), masked=True)
    edges[edge] = edges.get(edge, Mass()) + mass_of(r)
