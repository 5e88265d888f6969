"""Suppressors: features that carry no information about the class but help a filter to cancel what is added to it.

After Clark et al., "XAI-TRIS", Machine Learning 2024 (2306.12816), in 8 × 8: two tetrominoes, T and L, at fixed places
in a background of noise that is white, or smooth (σ = 3), whose pixels beside the pattern then tell what to subtract
from it.  linear: one of the two is there, T or L.  xor: each is there with either sign, and the class is whether the
signs are equal.  Important are the pixels of both, since the absence of one is as informative as the other.
"""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fxlrp.gae.known.cases import Case, Known, Row, generator, views
from fxlrp.gae.known.training import Recipe, accuracy, those_right, trained
from fxlrp.gae.masking import blurred

SIDE = 8
T = torch.tensor([[1.0, 0], [1, 1], [1, 0]])
L = torch.tensor([[1.0, 0], [1, 0], [1, 1]])


class Scenario(NamedTuple):
    """What is told apart, the noise it is told apart in, and the pattern's part of the sum."""

    name: str
    smooth: bool
    alpha: float


SCENARIOS = {
    "linear, white": Scenario("linear", False, 0.18),
    "linear, smooth": Scenario("linear", True, 0.0125),
    "xor, smooth": Scenario("xor", True, 0.15),
}
NETWORKS = {"linear": ("linear", "mlp", "cnn"), "xor": ("mlp", "cnn")}


def patterns() -> Tensor:
    """T and L at their places, [2, 8, 8]."""
    both = torch.zeros(2, SIDE, SIDE)
    both[0, 1:4, 1:3], both[1, 4:7, 5:7] = T, L
    return both


def important() -> Tensor:
    """Where the class can be read, bool [8, 8]."""
    return patterns().sum(0) > 0


def draw(scenario: Scenario, n: int, g: torch.Generator) -> tuple[Tensor, Tensor]:
    """n pictures [n, 1, 8, 8] and their classes: patterns and noise, each divided by its norm, mixed by alpha."""
    shapes = patterns()
    if scenario.name == "xor":
        signs = 2.0 * torch.randint(2, (n, 2), generator=g) - 1
        target = (signs[:, 0] != signs[:, 1]).long()
        signal = (signs[:, :, None, None] * shapes).sum(1)
    else:
        target = torch.randint(2, (n,), generator=g)
        signal = shapes[target]
    noise = torch.randn(n, SIDE, SIDE, generator=g)
    noise = blurred(noise[:, None], 3.0)[:, 0] if scenario.smooth else noise
    scale = math.sqrt(n)  # norms are of all pictures together, as published
    mixed = scenario.alpha * signal / signal.norm() + (1 - scenario.alpha) * noise / noise.norm()
    return SIDE * scale * mixed[:, None], target


def network(kind: str) -> nn.Module:
    """A linear classifier, a multilayer perceptron or a convolutional network of 8 × 8 pictures."""
    if kind == "linear":
        return nn.Sequential(nn.Flatten(), nn.Linear(SIDE**2, 2))
    if kind == "mlp":
        return nn.Sequential(
            nn.Flatten(), nn.Linear(SIDE**2, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 2)
        )
    maps = (nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
    return nn.Sequential(*maps, nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 2))


def ranking(score: Tensor, truth: Tensor) -> tuple[float, float]:
    """The areas under the curves of false and true positives, and of recall and precision, of scores [N] for truth [N].

    Equal scores count half in the first, and make one step of the second (average precision), as in scikit-learn.
    """
    values, counts = score.unique(return_inverse=True)
    up = torch.zeros(len(values), dtype=torch.float64).index_add(0, counts, truth.double()).flip(0)
    all_ = torch.bincount(counts, minlength=len(values)).double().flip(0)
    hits, seen = up.cumsum(0), all_.cumsum(0)
    misses = all_ - up
    auroc = ((hits - up / 2) * misses).sum() / (hits[-1] * misses.sum())
    return float(auroc), float((up / hits[-1] * hits / seen).sum())


def measure(relevance: Tensor, truth: Tensor) -> list[Row]:
    """Of maps [n, …], by strength |R|: the part of the k strongest entries that is important, k being how many are;
    the areas under both curves; and the part of all |R|."""
    rows = []
    inside = truth.flatten()
    for i, r in enumerate(relevance.abs().flatten(1)):
        auroc, auprc = ranking(r, inside)
        strongest = r.sort(descending=True, stable=True).indices[: int(inside.sum())]
        kept = inside[strongest] & (r[strongest] > 0)
        mass = float(r[inside].sum() / r.sum()) if r.sum() else 0.0
        precision = float(kept.double().mean())
        rows.append({"sample": i, "precision": precision, "auroc": auroc, "auprc": auprc, "mass": mass})
    return rows


def build(name: str, kind: str, seed: int, folder: Path | None, steps: int, samples: int) -> Known:
    """A network that tells a scenario's classes apart, and pictures that it classifies right."""
    scenario = SCENARIOS[name]
    recipe = Recipe(f"suppressors {name} {kind}", partial(network, kind), lambda g: draw(scenario, 128, g), steps)
    model = trained(recipe, seed, folder)
    x, target = draw(scenario, 1000, generator(seed, name, "test"))
    facts = {"accuracy": accuracy(model, x, target)}
    right = those_right(model, x, target, samples)
    truth = important()
    asked = views(x[right], target[right], truth.to(x).expand(len(right), 1, SIDE, SIDE))
    return Known(model, asked, lambda relevance: measure(relevance, truth), facts)


def cases(seed: int, folder: Path | None = None, samples: int = 50, steps: int = 1500) -> list[Case]:
    """Each scenario by each network that can solve it."""
    pairs = [(name, kind) for name, scenario in SCENARIOS.items() for kind in NETWORKS[scenario.name]]
    return [
        Case("suppressors", f"{name}, {kind}", partial(build, name, kind, seed, folder, steps, samples))
        for name, kind in pairs
    ]
