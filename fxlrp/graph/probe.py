"""Probe: which values of a graph depend on a sample, found by nudging it and running the graph again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from fxlrp.capture.state import drawing
from fxlrp.graph.rowwise import differ

NUDGE = 1e-3
"""By which part of itself, at most, a value is nudged: an integer among floats stays that when it is rounded down."""


def nudged(t: Tensor) -> Tensor:
    """Other values of the same kind: each a little above its own, by shares that differ from entry to entry."""
    size = t.abs()
    size = size.where(size.isfinite(), 0)
    steps = torch.arange(1, t.numel() + 1, device=t.device, dtype=size.dtype).view(t.shape)
    share = 0.5 + 0.5 * (steps * 0.6180339887).frac()
    return t + NUDGE * share * (size + size.mean().clamp(max=1)) if t.numel() else t


class Probe:
    """Runs a graph as it is and with one sample nudged, and says what changes."""

    def __init__(self, graph: fx.GraphModule, inputs: Sequence[Tensor], starts: Mapping[fx.Node, int]) -> None:
        self.graph, self.inputs, self.starts = graph, inputs, starts
        self.plain: dict[fx.Node, Tensor] = {}

    def changes(self, sample: int, wanted: set[fx.Node]) -> dict[fx.Node, Tensor] | None:
        """Which entries of each node in `wanted` depend on a sample, as booleans; None if no run with it succeeds."""
        try:
            if missing := wanted - self.plain.keys():
                self.plain.update(_Nudging(self, missing, None).seen())
            return _Nudging(self, wanted, sample).seen()
        except (RuntimeError, IndexError, ValueError):  # the network takes no such values
            return None


class _Nudging(fx.Interpreter):
    """Runs a graph, with one sample nudged or none, and keeps of each node in `wanted` the value, or what changed."""

    def __init__(self, probe: Probe, wanted: set[fx.Node], sample: int | None) -> None:
        super().__init__(probe.graph)
        self.probe, self.wanted, self.sample = probe, wanted, sample
        self.found: dict[fx.Node, Tensor] = {}

    def seen(self) -> dict[fx.Node, Tensor]:
        """What is kept of a run."""
        with torch.no_grad(), drawing(0, self.probe.inputs):
            self.run(*(t.clone() for t in self.probe.inputs))
        return self.found

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n in self.probe.starts and self.sample is not None:
            value = value.clone()
            one = value.select(self.probe.starts[n], self.sample)
            one.copy_(nudged(one))
        if n in self.wanted:
            self.found[n] = value if self.sample is None else differ(self.probe.plain[n], value)
        return value
