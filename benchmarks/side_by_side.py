"""Draw what methods say of pictures, side by side.

    python -m benchmarks.side_by_side --network deep_vit        pictures of two objects, one of which is asked for
    python -m benchmarks.side_by_side --kit DIR                 photographs, by the kit's MobileNetV2, its top class

A row a question: the picture, where the object asked for is if that is known, and the map of each method, red for the
class and blue against it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.transforms.functional import center_crop, resize

import fxlrp
from benchmarks import localization
from benchmarks.faithfulness import Task, heatmaps, load_kit
from benchmarks.photographs import photographs
from benchmarks.recipes import keep
from fxlrp.cli.loading import split_names
from fxlrp.inputs import imagenet_labels
from fxlrp.show.colours import diverging

METHODS = (fxlrp.DEFAULT, "attnlrp", "gradcam", "integrated-gradients")
GAP, HEAD = 4, 18


class Sheet(NamedTuple):
    """Questions to a model: what was asked, and the pictures [N, H, W, 3] in 0..1 as they are shown."""

    task: Task
    questions: Sequence[str]
    pictures: Tensor


def two_objects(network: str, count: int) -> Sheet:
    """Pictures of two objects, of which the first is asked for."""
    shown = localization.two_objects(count)
    target = shown.labels[:, 0]
    task = Task(network, localization.load(network), shown.x, target, shown.masks[:, 0].bool(), 8)
    questions = [f"why {localization.models.CLASSES[t]}?" for t in target.tolist()]
    return Sheet(task, questions, shown.x.permute(0, 2, 3, 1) / 2 + 0.5)


@torch.no_grad()
def of_photographs(kit: Path, count: int) -> Sheet:
    """Photographs, of which the top class by MobileNetV2 is asked for."""
    model, preprocess, _ = load_kit(kit).load("mobilenetv2")
    tensors = [torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1) for image in photographs().values()]
    x = torch.stack([center_crop(resize(t, 224, antialias=True), [224, 224]) for t in tensors[:count]]) / 255
    chance, target = model(preprocess(x)).softmax(1).max(1)
    labels: Any = imagenet_labels()
    questions = [f"{labels[t].split(',')[0]}, {p:.0%}" for t, p in zip(target.tolist(), chance.tolist(), strict=True)]
    return Sheet(Task("mobilenetv2", model, preprocess(x), target, None, 16), questions, x.permute(0, 2, 3, 1))


def draw(sheet: Sheet, methods: Sequence[str], side: int) -> Image.Image:
    """A row for each question, with tiles of `side` pixels."""
    task = sheet.task
    explainer = fxlrp.convert(task.model, task.x[:2])
    tiles = {"picture": sheet.pictures.numpy()}
    if task.masks is not None:
        tiles["object"] = 1 - 0.7 * np.repeat(task.masks.numpy()[..., None], 3, 3)
    for method in methods:
        heat = heatmaps(task, method, explainer)
        scale = heat.abs().flatten(1).quantile(0.999, 1).clamp(min=1e-30)[:, None, None]
        tiles[method] = diverging((heat / scale).clamp(-1, 1).numpy())
    width, step = side + GAP, side + GAP + HEAD
    image = Image.new("RGB", (width * len(tiles) - GAP, HEAD + step * len(task.x) - GAP), "white")
    pen = ImageDraw.Draw(image)
    for column, (name, pictures) in enumerate(tiles.items()):
        pen.text((column * width, 2), name, fill="black")
        for row, pixels in enumerate(pictures):
            values = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None].float()
            sized = interpolate(values, size=(side, side), mode="nearest")[0].permute(1, 2, 0)
            tile = Image.fromarray((sized.clamp(0, 1) * 255).byte().numpy())
            image.paste(tile, (column * width, HEAD * 2 - 4 + row * step))
    for row, question in enumerate(sheet.questions):
        pen.text((0, HEAD + row * step), question, fill="black")
    return image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="deep_vit")
    parser.add_argument("--kit", type=Path)
    parser.add_argument("--pictures", type=int, default=10)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    sheet = of_photographs(args.kit, args.pictures) if args.kit else two_objects(args.network, args.pictures)
    image = draw(sheet, split_names(args.methods), 192 if args.kit else 128)
    name = f"{sheet.task.name}_side_by_side.{'jpg' if args.kit else 'png'}"
    out = args.out or Path(__file__).parents[1] / "docs" / "images" / name
    if args.kit:
        image.save(out, optimize=True, quality=70)
    else:
        keep(image, out)
    print(out)


if __name__ == "__main__":
    main()
