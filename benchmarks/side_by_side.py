"""Draw what methods say of pictures of two objects, side by side.

    python -m benchmarks.side_by_side --network deep_vit

A row a question: the picture, where the object asked for is, and the map of each method, red for the class and blue
against it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch.nn.functional import interpolate

import fxlrp
from benchmarks import localization
from benchmarks.faithfulness import Task, heatmaps
from fxlrp.attribution import diverging
from fxlrp.cli.loading import split_names

METHODS = (fxlrp.DEFAULT, "attnlrp", "gradcam", "integrated-gradients")
SIDE, GAP, HEAD = 128, 4, 18


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="deep_vit")
    parser.add_argument("--pictures", type=int, default=10)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    shown = localization.two_objects(args.pictures)
    target = shown.labels[:, 0]
    task = Task(args.network, localization.load(args.network), shown.x, target, shown.masks[:, 0].bool(), 8)
    explainer = fxlrp.convert(task.model, task.x[:2])
    methods = split_names(args.methods)
    maps = {method: heatmaps(task, method, explainer) for method in methods}
    width, step = SIDE + GAP, SIDE + GAP + HEAD
    sheet = Image.new("RGB", (width * (2 + len(methods)) - GAP, HEAD + step * args.pictures - GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for column, name in enumerate(["picture", "object", *methods]):
        draw.text((column * width, 2), name, fill="black")
    for row in range(args.pictures):
        top = HEAD + row * step
        draw.text((0, top), f"why {localization.models.CLASSES[int(target[row])]}?", fill="black")
        picture = task.x[row].permute(1, 2, 0).numpy() / 2 + 0.5
        mask = np.repeat(shown.masks[row, 0].numpy()[..., None], 3, 2).astype(float)
        tiles = [picture, 1 - 0.7 * mask]
        for method in methods:
            heat = maps[method][row]
            scale = heat.abs().flatten().quantile(0.999).clamp(min=1e-30)
            tiles.append(diverging((heat / scale).clamp(-1, 1).numpy()))
        for column, tile in enumerate(tiles):
            pixels = torch.from_numpy(np.ascontiguousarray(tile)).permute(2, 0, 1)[None].float()
            large = interpolate(pixels, size=(SIDE, SIDE), mode="nearest")[0].permute(1, 2, 0)
            image = Image.fromarray((large.clamp(0, 1) * 255).byte().numpy())
            sheet.paste(image, (column * width, top + HEAD - 4))
    out = args.out or Path(__file__).parents[1] / "docs" / "images" / f"{args.network}_side_by_side.png"
    sheet.save(out, optimize=True)
    print(out)


if __name__ == "__main__":
    main()
