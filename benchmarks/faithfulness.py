"""Which method explains best?  Rulebooks and baselines on trained networks: those of shapes, and the kit's if given.

    python -m benchmarks.faithfulness [--methods abslrp-hybrid,attnlrp@none] [--networks deep_vit] [--pictures 50]
        [--kit DIR] [--out scores.jsonl] [--docs table.md]

A method is a rulebook, against what it is best with or, after an @, against none, others or softmax; or a baseline of
`fxlrp.gae`.  Every picture is masked patch by patch in ten steps, most and least relevant first, in three ways: by
grey, by a blurred copy, and by what fills the gap from the patches around it.

pointing: how often the strongest place lies on the object asked for.  inside: the part of positive relevance on it.
ABPC: the area between the two curves of the class's probability.  SRG: the same of its logit.  **Bold** is the best and
what is within one standard error of it, by differences on the same pictures.  Scores in --out are not computed again.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, conv2d, interpolate
from torchvision.transforms.functional import gaussian_blur

import fxlrp
from benchmarks import localization
from fxlrp.cli.loading import split_names
from fxlrp.gae import BASELINES
from fxlrp.gae.methods import explain_by
from fxlrp.gae.metric import Views

STEPS = 10
SHAPES = ("cnn", "vit", "deep_vit", "deep_convnext", "deep_swin")
METHODS = (
    *("abslrp-hybrid", "abslrp-hybrid:sum=0", "abslrp-hybrid:sum=1", "abslrp-hybrid@none", "abslrp", "abslrp-2024-12"),
    *("attnlrp", "reslrp", "reslrp@softmax", "zplus", "epsilon-plus", "gradient-input", "integrated-gradients"),
    *("gradcam", "attention-rollout", "chefer", "legrad", "libragrad", "occlusion", "kernel-shap", "random"),
)


class Task(NamedTuple):
    """A trained model and pictures x [N, C, H, W] with the classes to explain; masks [N, H, W] of them, if known."""

    name: str
    model: nn.Module
    x: Tensor
    target: Tensor
    masks: Tensor | None
    patch: int


def shapes_tasks(count: int) -> Iterator[Task]:
    """The example networks on pictures of two objects, each asked for in turn."""
    pictures = localization.two_objects(count)
    x, target = pictures.x.repeat(2, 1, 1, 1), pictures.labels.T.flatten()
    masks = pictures.masks.transpose(0, 1).flatten(0, 1).bool()
    for name in [n for n in SHAPES if Path(localization.models.__file__).with_name(f"{n}.safetensors").exists()]:
        yield Task(name, localization.load(name), x, target, masks, 8)


def kit_tasks(kit: Path, count: int) -> Iterator[Task]:
    """MobileNetV2 on ImageNet crops with masks; ResNet-20 and a ViT on CIFAR-10, their own predictions explained."""
    models = load_kit(kit)
    model, preprocess, _ = models.load("mobilenetv2")
    folder = kit / "images" / "localization"
    index = json.loads((folder / "index.json").read_text())[:count]
    x = torch.stack([_pixels(folder / d["file"], "RGB").permute(2, 0, 1) / 255 for d in index])
    masks = torch.stack([_pixels(folder / d["mask"], "L") > 0 for d in index])
    yield Task("mobilenetv2", model, preprocess(x), torch.tensor([d["target"] for d in index]), masks, 16)
    with np.load(kit / "images" / "cifar10_test500.npz") as stored:
        pixels = torch.from_numpy(stored["x"][:count]).permute(0, 3, 1, 2).float() / 255
    for name in ("resnet20_cifar10", "vit_cifar10"):
        model, preprocess, _ = models.load(name)
        with torch.no_grad():
            target = torch.cat([model(part) for part in preprocess(pixels).split(50)]).argmax(1)
        yield Task(name, model, preprocess(pixels), target, None, 4)


def load_kit(kit: Path) -> Any:
    """The kit's module of loaders."""
    spec = importlib.util.spec_from_file_location("kit_models", kit / "models" / "kit_models.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _pixels(file: Path, mode: str) -> Tensor:
    return torch.from_numpy(np.asarray(Image.open(file).convert(mode)).copy()).float()


@torch.no_grad()
def masked(task: Task, kept: Tensor, blurred: Tensor) -> dict[str, Tensor]:
    """Pictures whose patches are replaced where kept [N, 1, rows, columns] is 0, in each way.

    blurred: copies of the pictures.
    """
    keep = interpolate(kept, scale_factor=task.patch)
    colours, known, around = avg_pool2d(task.x, task.patch), kept, torch.ones(1, 1, 3, 3)
    while not known.all():  # from the edge of a gap inwards
        weight = conv2d(known, around, padding=1)
        n, c, *size = colours.shape
        sums = conv2d((colours * known).flatten(0, 1)[:, None], around, padding=1).view(n, c, *size)
        colours = torch.where(known > 0, colours, sums / weight.clamp(min=1))
        known = (weight > 0).float()
    filled = interpolate(colours, scale_factor=task.patch, mode="bilinear")
    ways = {"grey": torch.zeros_like(task.x), "blur": blurred, "fill": filled}
    return {way: task.x * keep + other * (1 - keep) for way, other in ways.items()}


@torch.no_grad()
def masking(task: Task, heat: Tensor) -> dict[str, Tensor]:
    """ABPC and SRG of each picture [N], by each way of masking."""
    score = avg_pool2d(heat[:, None], task.patch).flatten(1)
    side, pixels = heat.shape[-1] // task.patch, heat.shape[-1]
    blurred = gaussian_blur(task.x, [2 * (pixels // 8) + 1] * 2, [pixels / 16] * 2)
    areas: dict[str, Tensor] = {}
    for sign in (-1, 1):  # most relevant first, then least
        rank = (score * sign).argsort(1).argsort(1)
        for k in range(1, STEPS):
            kept = (rank >= round(score.shape[1] * k / STEPS)).float().view(-1, 1, side, side)
            for way, x in masked(task, kept, blurred).items():
                logits = torch.cat([task.model(part) for part in x.split(50)])
                for name, values in (("ABPC", logits.softmax(1)), ("SRG", logits)):
                    part = sign * values.gather(1, task.target[:, None])[:, 0] / (STEPS - 1)
                    areas[f"{name} {way}"] = areas.get(f"{name} {way}", torch.zeros(())) + part
    return areas


def localisation(task: Task, heat: Tensor) -> dict[str, Tensor]:
    """Pointing game and share of positive relevance inside the object, of each picture [N]."""
    if task.masks is None:
        return {}
    window = 3 if heat.shape[-1] < 100 else 17
    at = avg_pool2d(heat[:, None], window, 1, window // 2).flatten(1).argmax(1, keepdim=True)
    positive = heat.clamp(min=0)
    inside = (positive * task.masks).sum((1, 2)) / positive.sum((1, 2)).clamp(min=1e-30)
    return {"pointing": task.masks.flatten(1).gather(1, at)[:, 0].float(), "inside": inside}


def heatmaps(task: Task, method: str, explainer: fxlrp.Explainer) -> Tensor:
    """A method's maps [N, H, W]."""
    rules, _, contrast = method.partition("@")
    if rules in BASELINES:
        explain = explain_by(rules, task.model)
        parts = [explain(v) for v in Views(task.x, task.target, [str(i) for i in range(len(task.x))]).split(32)]
    else:
        by = explainer.by(rules)
        against = {"contrast": {"none": None}.get(contrast, contrast)} if contrast else {}
        parts = [
            by(x, target=t, **against).relevance for x, t in zip(task.x.split(32), task.target.split(32), strict=True)
        ]
    return torch.cat(parts).detach().sum(1)


def table(scores: dict[str, dict[str, Tensor]]) -> list[str]:
    """A Markdown table of methods' scores; bold is the best of a column and what is within one standard error of it."""
    columns = list(next(iter(scores.values())))
    best = {c: max((s[c] for s in scores.values()), key=lambda v: float(v.mean())) for c in columns}
    rows = ["| method | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    for method, by in scores.items():
        cells = []
        for c in columns:
            behind = best[c] - by[c]
            cell = f"{by[c].mean():.3f} ± {by[c].std() / len(by[c]) ** 0.5:.3f}"
            cells.append(f"**{cell}**" if behind.mean() <= behind.std() / len(behind) ** 0.5 else cell)
        rows.append(f"| `{method}` | " + " | ".join(cells) + " |")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--networks", help="of the tasks, those of these names")
    parser.add_argument("--pictures", type=int, default=50)
    parser.add_argument("--kit", type=Path)
    parser.add_argument("--out", type=Path, default=Path("out/faithfulness.jsonl"))
    parser.add_argument("--docs", type=Path, help="write the tables there")
    args = parser.parse_args()
    torch.set_num_threads(1)
    tasks = [*shapes_tasks(args.pictures), *(kit_tasks(args.kit, 2 * args.pictures) if args.kit else ())]
    tasks = [t for t in tasks if not args.networks or t.name in args.networks.split(",")]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    lines = args.out.read_text().splitlines() if args.out.exists() else []
    stored = {(r["network"], r["method"], r["pictures"]): r["scores"] for r in map(json.loads, lines)}
    pages = [f"{date.today()}, torch {torch.__version__}, one thread of {platform.machine()}."]
    for task in tasks:
        explainer = fxlrp.convert(task.model, task.x[:2])
        found: dict[str, dict[str, Tensor]] = {}
        for method in split_names(args.methods):
            key = (task.name, method, len(task.x))
            if key not in stored:
                began = time.time()
                try:
                    heat = heatmaps(task, method, explainer)
                except fxlrp.FxlrpError as error:
                    print(f"{task.name}  {method} is left out: {error}", flush=True)
                    continue
                took = time.time() - began
                scores = {**localisation(task, heat), **masking(task, heat)}
                stored[key] = {name: [round(v, 6) for v in values.tolist()] for name, values in scores.items()}
                record = {"network": task.name, "method": method, "pictures": len(task.x), "scores": stored[key]}
                with args.out.open("a") as file:
                    file.write(json.dumps(record | {"seconds": round(took, 2)}) + "\n")
            found[method] = {name: torch.tensor(values) for name, values in stored[key].items()}
            said = "  ".join(f"{name} {values.mean():.3f}" for name, values in found[method].items())
            print(f"{task.name}  {method}  {said}", flush=True)
        if found:
            pages += [f"### {task.name}, {len(task.x)} questions", "\n".join(table(found))]
    print("\n\n".join(pages))
    if args.docs:
        args.docs.write_text("\n\n".join(pages) + "\n")


if __name__ == "__main__":
    main()
