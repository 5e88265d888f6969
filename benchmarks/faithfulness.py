"""Which rulebook explains best?  Every one on trained models: the shapes networks, and the kit where it is at hand.

    python -m benchmarks.faithfulness [--kit DIR] [--rules abslrp,gamma] [--pictures 60] [--out table.md]

ABPC: the area between the curves of the class's probability while patches are greyed out, least relevant first and most
relevant first (10 steps).  Pointing: how often the strongest place lies on the object asked for.  Inside: the part of
positive relevance on it.  ± is one standard error.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate

import fxlrp
from benchmarks import localization

CONTRASTS = (None, "others", "softmax")


class Task(NamedTuple):
    """A trained model and pictures x [N, C, H, W] with the classes to explain; masks [N, H, W] of them, if known."""

    name: str
    model: nn.Module
    x: Tensor
    target: Tensor
    masks: Tensor | None
    patch: int
    masking: bool = True


def shapes_tasks(count: int) -> Iterator[Task]:
    """The example networks on pictures of two objects, each asked for in turn."""
    pictures = localization.two_objects(count)
    x, target = pictures.x.repeat(2, 1, 1, 1), pictures.labels.T.flatten()
    masks = pictures.masks.transpose(0, 1).flatten(0, 1).bool()
    for name in ("cnn", "vit"):
        yield Task(f"shapes {name}", localization.load(name), x, target, masks, 8, masking=False)


def kit_tasks(kit: Path, count: int) -> Iterator[Task]:
    """MobileNetV2 on ImageNet crops with masks; ResNet-20 and a ViT on CIFAR-10, their own predictions explained."""
    models = _kit_models(kit)
    model, preprocess, _ = models.load("mobilenetv2")
    folder = kit / "images" / "localization"
    index = json.loads((folder / "index.json").read_text())[:count]
    x = torch.stack([_pixels(folder / d["file"], "RGB").permute(2, 0, 1) / 255 for d in index])
    masks = torch.stack([_pixels(folder / d["mask"], "L") > 0 for d in index])
    yield Task("MobileNetV2", model, preprocess(x), torch.tensor([d["target"] for d in index]), masks, 16)
    with np.load(kit / "images" / "cifar10_test500.npz") as stored:
        pixels = torch.from_numpy(stored["x"][:count]).permute(0, 3, 1, 2).float() / 255
    for name in ("resnet20_cifar10", "vit_cifar10"):
        model, preprocess, _ = models.load(name)
        with torch.no_grad():
            target = torch.cat([model(part) for part in preprocess(pixels).split(50)]).argmax(1)
        yield Task(name.replace("_", " "), model, preprocess(pixels), target, None, 4)


def _kit_models(kit: Path) -> Any:
    spec = importlib.util.spec_from_file_location("kit_models", kit / "models" / "kit_models.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _pixels(file: Path, mode: str) -> Tensor:
    return torch.from_numpy(np.asarray(Image.open(file).convert(mode)).copy()).float()


@torch.no_grad()
def abpc(task: Task, heat: Tensor, steps: int = 10) -> Tensor:
    """Area between least- and most-relevant-first curves of each picture [N]."""
    score = avg_pool2d(heat[:, None], task.patch).flatten(1)
    side = heat.shape[-1] // task.patch
    areas = []
    for sign in (-1, 1):  # most relevant first, then least
        rank = (score * sign).argsort(1).argsort(1)
        curve = []
        for k in range(1, steps):
            kept = (rank >= round(score.shape[1] * k / steps)).float().view(-1, 1, side, side)
            masked = task.x * interpolate(kept, scale_factor=task.patch)
            p = torch.cat([task.model(part) for part in masked.split(32)]).softmax(1)
            curve.append(p.gather(1, task.target[:, None])[:, 0])
        areas.append(torch.stack(curve).mean(0))
    return areas[1] - areas[0]


def scores(task: Task, heatmap: Callable[[Tensor, Tensor], Tensor]) -> dict[str, Tensor]:
    """Each measure for each picture."""
    parts = zip(task.x.split(32), task.target.split(32), strict=True)
    heat = torch.cat([heatmap(x, t) for x, t in parts])
    out = {"ABPC": abpc(task, heat)} if task.masking else {}
    if task.masks is not None:
        window = 3 if heat.shape[-1] < 100 else 17
        at = avg_pool2d(heat[:, None], window, 1, window // 2).flatten(1).argmax(1, keepdim=True)
        out["pointing"] = task.masks.flatten(1).gather(1, at)[:, 0].float()
        positive = heat.clamp(min=0)
        out["inside"] = (positive * task.masks).sum((1, 2)) / positive.sum((1, 2)).clamp(min=1e-30)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kit", type=Path)
    parser.add_argument("--rules", default=",".join(fxlrp.rulebooks()))
    parser.add_argument("--pictures", type=int, default=60)
    parser.add_argument("--contrast", default="none,others,softmax")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    tasks = [*shapes_tasks(args.pictures), *(kit_tasks(args.kit, 2 * args.pictures) if args.kit else ())]
    print(f"{date.today()}, torch {torch.__version__}", flush=True)
    print("| rulebook | contrast | " + " | ".join(t.name for t in tasks) + " |\n|---|---|" + "---|" * len(tasks))
    for rules in args.rules.split(","):
        for contrast in args.contrast.split(","):
            cells = []
            for task in tasks:
                explainer = functools.partial(
                    fxlrp.convert(task.model, rules=rules), contrast=None if contrast == "none" else contrast
                )
                found = scores(task, lambda x, t, run=explainer: run(x, target=t).heatmap().detach())
                said = [f"{k} {v.mean():.3f} ± {v.std() / len(v) ** 0.5:.3f}" for k, v in found.items()]
                cells.append("; ".join(said))
            row = f"| `{rules}` | {contrast} | " + " | ".join(cells) + " |"
            print(row, flush=True)
            if args.out:
                with args.out.open("a") as table:
                    table.write(row + "\n")


if __name__ == "__main__":
    main()
