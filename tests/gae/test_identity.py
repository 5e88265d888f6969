"""Digests: equal for the same thing in any process, different for whatever computes something else."""

from __future__ import annotations

import copy
import functools
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gae_cases import Remembering, Tiny, input_x_gradient, tiny
from torch import Tensor, nn

import fxlrp
from fxlrp import FxlrpError
from fxlrp.gae.methods import identify
from fxlrp.identity import digest
from fxlrp.rules.registry import find_rulebook

SCALE = 2


def scaled(x: Tensor) -> Tensor:
    return SCALE * x


def power(exponent: float) -> Any:
    return lambda model, x, target: x**exponent


class Times:
    def __init__(self, factor: float) -> None:
        self.factor, self.lock, self.itself = factor, threading.Lock(), self

    def __call__(self, model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        return self.factor * x


def changed_model(change: Any) -> nn.Module:
    model = tiny()
    change(model)
    return model


def twin(**functions: Any) -> type:
    """A class of the same name as Tiny's with other methods."""
    return type("Tiny", (Tiny,), {"__module__": Tiny.__module__, "__qualname__": "Tiny", **functions})


CHANGES: dict[str, Any] = {
    "a weight": lambda m: m.head.weight.data.view(-1)[3].add_(1e-12),
    "a stride": lambda m: setattr(m.first, "stride", (1, 1)),
    "an activation": lambda m: setattr(m, "act1", nn.ReLU6()),
    "a buffer": lambda m: m.register_buffer("mean", torch.zeros(1), persistent=False),
    "a type of number": lambda m: m.float(),
    "a tensor that is no buffer": lambda m: setattr(m, "shift", torch.ones(1)),
    "a hook": lambda m: m.head.register_forward_hook(lambda module, args, out: out * 2),
    "its forward": lambda m: setattr(m, "forward", lambda x: nn.functional.gelu(m.first(x)).mean((2, 3))),
    "its class": lambda m: setattr(m, "__class__", twin(forward=lambda self, x: self.head(x))),
    "code its forward calls": lambda m: setattr(m, "__class__", twin(helper=lambda self, x: x)),
}


@pytest.mark.parametrize("what", CHANGES)
def test_models_differ_by(what: str) -> None:
    assert digest(changed_model(CHANGES[what])) != digest(tiny())


def test_two_models_alike_are_one() -> None:
    model = tiny()
    assert digest(model) == digest(tiny()) == digest(copy.deepcopy(model))
    model(torch.zeros(1, 3, 16, 16, dtype=torch.float64))
    model.head.weight.grad = torch.ones_like(model.head.weight)
    assert digest(model) == digest(tiny())
    assert digest(torch.compile(model)) == digest(torch.compile(tiny())) != digest(model)


def test_traced_models() -> None:
    x = (torch.zeros(2, 3, 16, 16, dtype=torch.float64),)
    other = changed_model(CHANGES["an activation"])
    for trace in (
        lambda m: torch.export.export(m, x).module(),
        lambda m: torch.jit.trace(m, x),
        torch.fx.symbolic_trace,
    ):
        assert digest(trace(tiny())) == digest(trace(tiny())) != digest(trace(other))


def test_methods_differ_by_what_they_do(monkeypatch: pytest.MonkeyPatch) -> None:
    methods = {
        "abslrp": "abslrp",
        "a rulebook with a parameter": "gamma:gamma=0.1",
        "another parameter": "gamma:gamma=0.2",
        "another name for a baseline": "gradient",
        "a baseline": "random",
        "a rulebook": find_rulebook("gamma").extend(name="gamma"),
        "a rulebook with another rule": find_rulebook("gamma").extend(
            [(fxlrp.rules.registry.Rule(lambda g, z, x: g), torch.ops.aten.relu.default)], name="gamma"
        ),
        "an explainer": fxlrp.convert(tiny(), rules="epsilon"),
        "a function": input_x_gradient,
        "a closure": power(2),
        "another closure": power(3),
        "an object": Times(2),
        "another object": Times(3),
        "a partial": functools.partial(power, 2),
        "another partial": functools.partial(power, exponent=2),
    }
    digests = {what: identify(method) for what, method in methods.items()}
    assert len(set(digests.values())) == len(methods)
    assert identify(power(2)) == digests["a closure"]
    assert identify(Times(2)) == digests["an object"]
    monkeypatch.setitem(
        fxlrp.rules.registry._USER, (torch.ops.aten.relu.default, None), fxlrp.rules.registry.Rule(scaled)
    )
    assert identify("abslrp") != digests["abslrp"]
    assert identify("random") == digests["a baseline"]


def test_what_a_function_refers_to(monkeypatch: pytest.MonkeyPatch) -> None:
    before = digest(scaled)
    monkeypatch.setitem(globals(), "SCALE", 3)
    assert digest(scaled) != before
    assert digest(lambda x: scaled(x)) != before


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, True),
        (1, "1"),
        (0.0, -0.0),
        ([1, 2], (1, 2)),
        (["ab", "c"], ["a", "bc"]),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        (torch.zeros(2, 3), torch.zeros(3, 2)),
        (torch.zeros(2), torch.zeros(2, dtype=torch.int32)),
        (torch.zeros(2), torch.zeros(2, device="meta")),
        (torch.eye(2).to_sparse(), (2 * torch.eye(2)).to_sparse()),
        (np.zeros(2), np.ones(2)),
        (torch.float16, torch.bfloat16),
        (torch.ops.aten.add.Tensor, torch.ops.aten.sub.Tensor),
        (torch.sin, torch.cos),
    ],
)
def test_values_that_differ(one: Any, other: Any) -> None:
    assert digest(one) == digest(copy.deepcopy(one))
    assert digest(one) != digest(other)


def test_the_same_in_every_process() -> None:
    code = (
        "import gae_cases, fxlrp; from fxlrp.identity import digest; from fxlrp.gae.methods import identify;"
        "print(digest(gae_cases.tiny()), identify('abslrp-hybrid'), identify(gae_cases.input_x_gradient),"
        "identify('gradcam'), digest({'ab', 'cd', 'ef'}), digest(gae_cases.Remembering('a')))"
    )
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(fxlrp.__file__).parents[1])])
    said = [
        subprocess.check_output(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": s}
        )
        for s in ("1", "2")
    ]
    assert said[0] == said[1]
    assert digest(Remembering("a")) != digest(Remembering("b"))
    assert said[0].decode().split()[:3] == [digest(tiny()), identify("abslrp-hybrid"), identify(input_x_gradient)]


def test_nested_too_deeply() -> None:
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(FxlrpError, match="nested too deeply"):
        digest(deep)
