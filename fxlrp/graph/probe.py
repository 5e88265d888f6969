"""Finds the values of a graph that depend on a sample, by nudging the sample and running the graph again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from fxlrp.capture.functions import Stepwise
from fxlrp.capture.state import drawing
from fxlrp.graph.layouts import differ
from fxlrp.ops import about
from fxlrp.rules.per_sample import SampleAxis, entries_of
from fxlrp.rules.values import stands_for

NUDGE = 1e-3
"""The largest relative nudge; small enough that an integer stored as a float keeps its value when rounded down."""
PUSHES = (2.0, -2.0)
"""Changes that are tried where a nudge does nothing: each turns the sign of all values of one sign, so that hardly an
activation stays saturated."""


def nudged(t: Tensor, by: float = NUDGE) -> Tensor:
    """Slightly larger values, by shares that differ from entry to entry."""
    if not t.numel():
        return t
    size = t.abs()
    size = size.where(size.isfinite(), 0)
    steps = torch.arange(1, t.numel() + 1, device=t.device, dtype=size.dtype).view(t.shape)
    share = 0.5 + 0.5 * (steps * 0.6180339887).frac()
    mean = size.mean()
    return t + by * share * (size + mean.where(mean > 0, 1).clamp(max=1))


def _hides(node: fx.Node) -> bool:
    """Whether a node hides a nudge of its input, though relevance passes it: its value goes in steps."""
    steps = about(node.target).kind == "step" or isinstance(node.target, Stepwise) or node.target is stands_for
    return steps and isinstance(node.meta.get("val"), Tensor) and node.meta["val"].is_floating_point()


class Probe:
    """Runs a graph with and without one sample nudged, and compares the values."""

    def __init__(self, graph: fx.GraphModule, inputs: Sequence[Tensor], starts: Mapping[fx.Node, SampleAxis]) -> None:
        self.graph, self.inputs, self.starts = graph, inputs, starts
        self.plain: dict[fx.Node, Tensor] = {}
        self.behind = {n: n.args[0] for n in graph.graph.nodes if _hides(n) and isinstance(n.args[0], fx.Node)}

    def changes(self, sample: int, wanted: set[fx.Node], by: float = NUDGE) -> dict[fx.Node, Tensor] | None:
        """Boolean masks of the entries of each node in `wanted` that depend on a sample; None if a run fails.

        by: the largest relative change of a value of the sample.
        """
        try:
            if missing := {*wanted, *self.behind.values()} - self.plain.keys():
                self.plain.update(_Nudging(self, missing, None, by).seen())
            return _Nudging(self, wanted, sample, by).seen()
        except (RuntimeError, IndexError, ValueError):  # the network refuses the nudged values
            return None


class _Nudging(fx.Interpreter):
    """Runs a graph and keeps the value of each node in `wanted`, or, with a sample nudged, a mask of its changes."""

    def __init__(self, probe: Probe, wanted: set[fx.Node], sample: int | None, by: float) -> None:
        super().__init__(probe.graph)
        self.probe, self.wanted, self.sample, self.by = probe, wanted, sample, by
        self.kept: dict[fx.Node, Tensor] = {}

    def seen(self) -> dict[fx.Node, Tensor]:
        """Runs the graph and returns the values or masks kept."""
        with torch.no_grad(), drawing(0, self.probe.inputs):
            self.run(*(t.clone() for t in self.probe.inputs))
        return self.kept

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n in self.probe.starts and self.sample is not None:
            where = self.probe.starts[n]
            own = entries_of(self.sample, value.shape[where.axis], where).to(value.device)
            changed = nudged(value.index_select(where.axis, own), self.by)
            value = value.index_copy(where.axis, own, changed.to(value.dtype))
        if n in self.probe.behind and self.sample is not None:
            before = self.probe.behind[n]
            value = torch.where(differ(self.probe.plain[before], self.env[before]), nudged(value, self.by), value)
        if n in self.wanted:
            self.kept[n] = value if self.sample is None else differ(self.probe.plain[n], value)
        return value
