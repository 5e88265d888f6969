"""Memory: what an explainer keeps is bounded, and all of it goes with the explainer."""

from __future__ import annotations

import copy
import gc
import linecache
import os
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.symbolic_shapes import ShapeEnv

import fxlrp.capture.confine
import fxlrp.explainer
import fxlrp.graph.rewrite
from fxlrp import convert
from fxlrp.capture.model import CaptureMode
from fxlrp.recent import Recent


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)).eval()


class Branches(nn.Module):
    """Captured for the values of one sample alone, after torch.export has refused."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        return y * 2 if y.sum() > 0 else y


def test_plans_are_those_used_last(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (fxlrp.explainer, fxlrp.plans):
        monkeypatch.setattr(module, "PLANS", 2)
    monkeypatch.setattr(fxlrp.plans, "CHECKED", 3)
    for module in (fxlrp.capture.calls, fxlrp.capture.model):  # each size has a graph of its own
        monkeypatch.setattr(module, "lengths_of", lambda t, axis: ())
    explainer = convert(network())
    xs = [torch.randn(1, 3, size, 8) for size in (5, 6, 7)]
    first = explainer(xs[0])
    graph = weakref.ref(explainer.graph)
    for x in xs[1:]:
        explainer(x)
    gc.collect()
    assert len(explainer.plans.cache.plans) == 2
    assert graph() is None
    assert torch.equal(explainer(xs[0]).relevance, first.relevance)  # captured again
    for batch in range(1, 6):
        explainer(xs[0].expand(batch, -1, -1, -1))
    assert len(explainer.plans.cache.checked) == 3
    for size in range(4):
        explainer.of(size)
    assert len(explainer._others) == 2


def test_graphs_to_look_inside_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fxlrp.graph.plan, "FORMS", 4)
    explainer, x = convert(network()), torch.randn(1, 3, 8, 8)
    names = [["0"], ["1"], ["2"], ["0", "1"]]
    found = [explainer(x, at=at).latent for at in names]
    assert len(explainer.latest._forms) == 4
    assert torch.equal(explainer(x, at=names[0]).latent["0"], found[0]["0"])


@pytest.mark.parametrize("make", [network, Branches])
@pytest.mark.parametrize("how", [{}, {"checkpoint": True}])
def test_everything_goes_with_the_explainer(make: Any, how: dict[str, bool]) -> None:
    def alive() -> int:
        gc.collect()
        return sum(type(thing) is ShapeEnv for thing in gc.get_objects())

    x = torch.randn(1, 3, 8, 8) if make is network else torch.randn(1, 4)
    before = alive()
    model = make().eval()
    explainer = convert(model, **how)
    for contrast in (None, "others"):
        explainer(x, contrast=contrast)
    explainer(x, trace=True)
    kept = [explainer, model, *model.parameters(), explainer.graph]
    kept += [form.graph for form in explainer.latest._forms._values.values()]
    if explainer.latest.capture.mode is not CaptureMode.THIS_INPUT:
        kept.append(explainer.joint(x))
    gone = [weakref.ref(thing) for thing in kept]
    del explainer, model, kept
    gc.collect()
    assert [g() for g in gone if g() is not None] == []
    assert alive() <= before


def test_sources_of_generated_functions_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fxlrp.capture.confine, "SOURCES", 10)
    explainer = convert(network())
    explainer(torch.randn(1, 3, 8, 8))
    loaded = fx.graph_module._loader.eval_cache
    before = len(loaded), sum(key.startswith("<eval_with_key>") for key in linecache.cache)
    convert(network())(torch.randn(1, 3, 8, 8))
    now = len(loaded), sum(key.startswith("<eval_with_key>") for key in linecache.cache)
    assert now[0] <= before[0]
    assert now[1] <= before[1]
    explainer(torch.randn(2, 3, 8, 8))  # which does not need them


def test_a_copied_explainer_captures_anew() -> None:
    explainer, x = convert(network()), torch.randn(2, 3, 8, 8)
    expected = explainer(x).relevance
    other = copy.deepcopy(explainer)
    assert len(other.plans.cache.plans) == 0
    assert other._latest.get() is None
    assert torch.equal(other(x).relevance, expected)


def test_recent_forgets_what_was_not_asked_for() -> None:
    recent = Recent(2)
    recent.set("a", 1)
    recent.set("b", 2)
    assert recent.get("a") == 1
    recent.set("c", 3)
    assert (recent.get("a"), recent.get("b"), recent.get("c")) == (1, None, 3)
    assert len(copy.deepcopy(recent)) == 0

    def use(thread: int) -> None:
        for i in range(2000):
            recent.set((thread, i % 5), i)
            recent.get((thread, i % 3))

    threads = [threading.Thread(target=use, args=(t,)) for t in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    recent.set("a", 1)
    recent.set("b", 2)
    assert (len(recent), recent.get("a"), recent.get("b")) == (2, 1, 2)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="this system does not say how much memory is used")
def test_a_process_stays_as_large_as_it_is() -> None:
    root = Path(__file__).parents[1]
    command = [sys.executable, "-m", "benchmarks.stress", "memory", "--converts", "4", "--calls", "30", "--shapes", "4"]
    done = subprocess.run(
        [*command, "--start", "2"], cwd=root, capture_output=True, text=True, timeout=200, env={**os.environ}
    )
    assert done.returncode == 0, done.stdout + done.stderr
