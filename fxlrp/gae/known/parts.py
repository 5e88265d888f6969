"""Part-based measures of Hesse et al., "FunnyBirds", ICCV 2023 (2308.06248), on pictures whose parts can be removed.

How relevant a part is to a method: the sum of relevance on it.  Important by a threshold is what has more than that
part of all relevance; the threshold of a method is the one, of 80, that is best for it.  As in the authors' framework:

CSDC: how much of a smallest set of parts that determines the class is important.  PC: whether the important parts alone
keep the prediction.  DC: whether the others alone do not.  D: how many of what does not matter are not important.
SD: the rank correlation of relevance and of what the score loses without each part, from 0 to 1.  TS: whether the parts
of two other classes are more relevant for their own.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fxlrp.gae.known import creatures
from fxlrp.gae.known.cases import Case, Known, Row, generator, joined, views
from fxlrp.gae.known.creatures import OTHERS, PARTS
from fxlrp.gae.known.training import Recipe, accuracy, those_right, trained
from fxlrp.gae.measures import spearman

THRESHOLDS = torch.linspace(0.01, 0.5, 80, dtype=torch.float64)
SUBSETS = torch.tensor(list(itertools.product([0.0, 1.0], repeat=PARTS)))  # which parts are there
STEPS = 700
LITTLE = 0.05  # of the score: what changes it by less does not matter
BY_THRESHOLD = ("csdc", "pc", "dc", "distractibility")


class Measured(NamedTuple):
    """What the network does to n pictures, and where their parts are.

    whole [n, K]: scores.  subsets [n, 32, K]: those with some parts alone, as `SUBSETS`.  without [n, 4, K]: those
    without one of the other objects.  masks [n, 9, H, W]: of parts, then others.  rivals [n, 2]: two other classes.
    """

    codes: Tensor
    target: Tensor
    whole: Tensor
    subsets: Tensor
    without: Tensor
    masks: Tensor
    rivals: Tensor

    def losses(self, cls: Tensor) -> Tensor:
        """What the score of a class [n] loses without each part, then each other object, [n, 9]."""
        single = torch.cat([self.subsets[:, _number(1 - torch.eye(PARTS))], self.without], 1)
        at = cls[:, None, None].expand(-1, single.shape[1], 1)
        return (self.whole.gather(1, cls[:, None]) - single.gather(2, at)[..., 0]).double()


def _number(kept: Tensor) -> Tensor:
    """The number of a set of parts [..., 5] in `SUBSETS`."""
    return (kept * 2.0 ** torch.arange(PARTS - 1, -1, -1)).sum(-1).long()


def network() -> nn.Module:
    """Four convolutions, whose last map's mean is classified, so that it takes pictures of any size."""
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 48, 3, padding=1), nn.ReLU(), nn.Conv2d(48, 64, 3, padding=1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, creatures.CLASSES)),
    )


def classifier(seed: int, folder: Path | None, steps: int) -> tuple[nn.Module, Tensor]:
    """The network that tells creatures apart, and what their classes are."""
    codes = creatures.classes(seed)
    recipe = Recipe("creatures cnn", network, lambda g: creatures.draw(codes, 64, g), steps)
    return trained(recipe, seed, folder), codes


def observe(model: nn.Module, codes: Tensor, scene: creatures.Scene) -> Measured:
    """Ask a network about pictures, about each set of their parts, and without each other object."""
    n = len(scene.target)

    @torch.no_grad()
    def scores(parts: Tensor | None = None, others: Tensor | None = None) -> Tensor:
        return model(creatures.picture(scene, parts, others))

    subsets = torch.stack([scores(parts=kept.expand(n, -1)) for kept in SUBSETS], 1)
    without = torch.stack([scores(others=(1 - row).expand(n, -1)) for row in torch.eye(OTHERS)], 1)
    masks = torch.cat([creatures.part_masks(scene), creatures.other_masks(scene)], 1)
    rivals = torch.tensor([creatures.rivals(codes, c) for c in scene.target.tolist()])
    return Measured(codes, scene.target, scores(), subsets, without, masks.double(), rivals)


def sufficient(codes: Tensor, cls: int) -> list[Tensor]:
    """The smallest sets of parts, bool [5], whose kinds no other class has all of."""
    same = (codes == codes[cls])[[c for c in range(len(codes)) if c != cls]]
    enough = [s.bool() for s in SUBSETS[1:] if not same[:, s.bool()].all(1).any()]
    return [s for s in enough if not any((o <= s).all() and (o != s).any() for o in enough)]


def measure(m: Measured, relevance: Tensor) -> list[Row]:
    """Every measure for relevance [3n, C, H, W], of the class and of both rivals; the first four at 80 thresholds."""
    n = len(m.target)
    on = torch.einsum("knhw,nphw->knp", relevance.double().sum(1).unflatten(0, (3, n)), m.masks)
    shares = on[0][..., None] > THRESHOLDS * relevance.double()[:n].flatten(1).sum(1)[:, None, None]  # [n, 9, 80]
    lost, score = m.losses(m.target), m.whole.gather(1, m.target[:, None]).double()
    idle = (lost.abs() < LITTLE * score.abs()) | (lost < 0)
    rows = []
    for i in range(n):
        kept = shares[i, :PARTS].T.float()  # [80, 5]
        sets = torch.stack(sufficient(m.codes, int(m.target[i]))).float()
        csdc = (kept @ sets.T / sets.sum(1)).amax(1)
        alone, rest = (m.subsets[i, _number(k)].argmax(1) == m.target[i] for k in (kept, 1 - kept))
        row: Row = {"sample": i, "csdc": csdc.tolist(), "pc": alone.float().tolist(), "dc": (~rest).float().tolist()}
        hit = (shares[i] & idle[i][:, None]).sum(0) / idle[i].sum().clamp(min=1)
        row["distractibility"] = (1 - hit).tolist() if idle[i].any() else None
        rho = spearman(on[0, i, :PARTS], lost[i, :PARTS])
        row["sd"] = None if rho is None else 0.5 + 0.5 * rho
        row["ts"] = _sensitive(m, on, i)
        rows.append(row)
    return rows


def _sensitive(m: Measured, on: Tensor, i: int) -> float | None:
    """TS of a picture; None where the network itself does not tell the rivals by the parts that they share with it."""
    one, two = m.rivals[i].tolist()
    shared = m.codes[m.rivals[i]] == m.codes[m.target[i]]  # [2, 5]
    gone = m.subsets[i, _number(1 - shared.float())]  # without the parts shared with either rival, [2, K]
    if not (gone[0, one] < gone[1, one] and gone[1, two] < gone[0, two]):
        return None
    first, second = ((on[1:, i, :PARTS] * part).sum(1) for part in shared)  # by the relevance for either rival
    return (float(first[0] > first[1]) + float(second[1] > second[0])) / 2


def at_best_threshold(rows: Sequence[Row]) -> list[Row]:
    """The rows of a method with the four measures at the threshold that is best for all of them together."""
    means = {}
    for name in BY_THRESHOLD:
        curves = [row[name] for row in rows if row[name] is not None]
        means[name] = torch.tensor(curves or [[0.0] * len(THRESHOLDS)], dtype=torch.float64).mean(0)
    best = int(((means["csdc"] + means["pc"] + means["dc"]) / 3 + means["distractibility"]).argmax())
    picked = [{name: None if row[name] is None else row[name][best] for name in BY_THRESHOLD} for row in rows]
    return [{**row, **p, "threshold": float(THRESHOLDS[best])} for row, p in zip(rows, picked, strict=True)]


def build(seed: int, folder: Path | None, steps: int, samples: int) -> Known:
    """The network, and pictures that it classifies right; each is asked about for its class and for two rivals."""
    model, codes = classifier(seed, folder, steps)
    scene = creatures.scene(codes, 4 * samples, generator(seed, "creatures", "test"))
    x = creatures.picture(scene)
    facts = {"accuracy": accuracy(model, x, scene.target)}
    right = those_right(model, x, scene.target, samples)
    scene, x = creatures.Scene(*(t[right] for t in scene)), x[right]
    m = observe(model, codes, scene)
    lost, score = m.losses(m.target)[:, PARTS:], m.whole.gather(1, m.target[:, None])
    facts["background independence"] = 1 - float((lost >= LITTLE * score.abs()).double().mean())
    asked = []
    for stage, cls in (("x", m.target), ("one", m.rivals[:, 0]), ("two", m.rivals[:, 1])):
        each = m.losses(cls) / m.masks.sum((2, 3))  # what the score loses without it, spread over a part
        truth = torch.einsum("np,nphw->nhw", each, m.masks)[:, None].expand_as(x).to(x) / x.shape[1]
        asked.append(views(x, cls, truth, stage))
    return Known(model, joined(asked), lambda relevance: measure(m, relevance), facts)


def cases(seed: int, folder: Path | None = None, samples: int = 30, steps: int = STEPS) -> list[Case]:
    """The creatures."""
    return [Case("parts", "creatures", lambda: build(seed, folder, steps, samples))]
