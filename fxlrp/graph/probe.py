"""Finds the values of a graph that depend on a sample, by nudging the sample and running the graph again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from fxlrp.capture.state import drawing
from fxlrp.graph.rowwise import differ

NUDGE = 1e-3
"""The largest relative nudge; small enough that an integer stored as a float keeps its value when rounded down."""


def nudged(t: Tensor) -> Tensor:
    """Slightly larger values, by shares that differ from entry to entry."""
    size = t.abs()
    size = size.where(size.isfinite(), 0)
    steps = torch.arange(1, t.numel() + 1, device=t.device, dtype=size.dtype).view(t.shape)
    share = 0.5 + 0.5 * (steps * 0.6180339887).frac()
    return t + NUDGE * share * (size + size.mean().clamp(max=1)) if t.numel() else t


class Probe:
    """Runs a graph with and without one sample nudged, and compares the values."""

    def __init__(self, graph: fx.GraphModule, inputs: Sequence[Tensor], starts: Mapping[fx.Node, int]) -> None:
        self.graph, self.inputs, self.starts = graph, inputs, starts
        self.plain: dict[fx.Node, Tensor] = {}

    def changes(self, sample: int, wanted: set[fx.Node]) -> dict[fx.Node, Tensor] | None:
        """Boolean masks of the entries of each node in `wanted` that depend on a sample; None if a run fails."""
        try:
            if missing := wanted - self.plain.keys():
                self.plain.update(_Nudging(self, missing, None).seen())
            return _Nudging(self, wanted, sample).seen()
        except (RuntimeError, IndexError, ValueError):  # the network refuses the nudged values
            return None


class _Nudging(fx.Interpreter):
    """Runs a graph and keeps the value of each node in `wanted`, or, with a sample nudged, a mask of its changes."""

    def __init__(self, probe: Probe, wanted: set[fx.Node], sample: int | None) -> None:
        super().__init__(probe.graph)
        self.probe, self.wanted, self.sample = probe, wanted, sample
        self.kept: dict[fx.Node, Tensor] = {}

    def seen(self) -> dict[fx.Node, Tensor]:
        """Runs the graph and returns the values or masks kept."""
        with torch.no_grad(), drawing(0, self.probe.inputs):
            self.run(*(t.clone() for t in self.probe.inputs))
        return self.kept

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n in self.probe.starts and self.sample is not None:
            value = value.clone()
            nudged_sample = value.select(self.probe.starts[n], self.sample)
            nudged_sample.copy_(nudged(nudged_sample))
        if n in self.wanted:
            self.kept[n] = value if self.sample is None else differ(self.probe.plain[n], value)
        return value
