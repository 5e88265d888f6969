"""Does relevance land on the object asked for?  Every rulebook on pictures of two objects, where the answer is known.

    python benchmarks/localization.py [--pictures 200]

For each object in turn as the target: the share of positive relevance inside its mask, inside the other object's mask,
the first of these as a part of both, and how often the strongest 3 × 3 pixels lie on it (the pointing game).
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import fxlrp

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import models
import shapes

FIRST_SEED = 10_000_000  # the networks were trained on seeds below 50 000


class Pictures(NamedTuple):
    """x [N, 3, 64, 64] as the networks take it; labels [N, 2]; masks [N, 2, 64, 64]."""

    x: Tensor
    labels: Tensor
    masks: Tensor


class Scores(NamedTuple):
    """Parts of positive relevance on the target and on the other object, the first of both; the pointing game."""

    target: float
    other: float
    share: float
    pointing: float


def two_objects(count: int) -> Pictures:
    """The first `count` test pictures that show two objects."""
    found: list[shapes.Picture] = []
    seed = FIRST_SEED
    while len(found) < count:
        picture = shapes.picture(seed)
        if len(picture.labels) == 2:
            found.append(picture)
        seed += 1
    x = torch.stack([torch.from_numpy(p.image).permute(2, 0, 1) / 255 for p in found])
    masks = torch.stack([torch.from_numpy(p.masks) for p in found])
    return Pictures((x - 0.5) / 0.5, torch.tensor([p.labels for p in found]), masks)


def load(name: str) -> nn.Module:
    """One of the two example networks, `cnn` or `vit`, trained."""
    model = getattr(models, name)()
    model.load_state_dict(load_file(Path(models.__file__).with_name(f"{name}.safetensors")))
    return model.eval()


def gradient_x_input(model: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """The baseline: heatmaps [N, H, W] of input times gradient of the target's logit."""

    def heatmap(x: Tensor, target: Tensor) -> Tensor:
        leaf = x.clone().requires_grad_()
        score = model(leaf).gather(1, target[:, None]).sum()
        return (torch.autograd.grad(score, leaf)[0] * x).sum(1)

    return heatmap


def score(heatmap: Callable[[Tensor, Tensor], Tensor], pictures: Pictures) -> Scores:
    """Mean scores of heatmap(x, target) over both objects of every picture."""
    rows = []
    for own in (0, 1):
        heat = heatmap(pictures.x, pictures.labels[:, own])
        smooth = nn.functional.avg_pool2d(heat[:, None], 3, 1, 1).flatten(1)
        positive = heat.clamp(min=0)
        total = positive.sum((1, 2)).clamp(min=1e-30)
        mask, other = (pictures.masks[:, i] for i in (own, 1 - own))
        on, off = ((positive * m).sum((1, 2)) for m in (mask, other))
        hit = mask.flatten(1).gather(1, smooth.argmax(1, keepdim=True))[:, 0].float()
        rows.append(torch.stack([on / total, off / total, on / (on + off).clamp(min=1e-30), hit], 1))
    return Scores(*torch.cat(rows).mean(0).tolist())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=200)
    pictures = two_objects(parser.parse_args().pictures)
    area = pictures.masks.float().mean().item()
    print(f"{date.today()}, {len(pictures.x)} pictures of two objects, each covering {area:.0%} on average\n")
    print(
        "| network | method | on target | on the other | target's part of both | pointing |\n|---|---|---|---|---|---|"
    )
    for name in ("cnn", "vit"):
        model = load(name)
        rows = {"gradient × input": score(gradient_x_input(model), pictures)}
        for book in fxlrp.rulebooks():
            explainer = fxlrp.convert(model, rules=book)
            for contrast in (None, "others"):
                run = functools.partial(explainer, contrast=contrast)
                rows[f"`{book}`, contrast {contrast}"] = score(
                    lambda x, target, run=run: run(x, target=target).heatmap(), pictures
                )
        for method, s in rows.items():
            print(f"| {name} | {method} | " + " | ".join(f"{v:.3f}" for v in s) + " |", flush=True)


if __name__ == "__main__":
    main()
