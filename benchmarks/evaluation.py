"""Which explanations are good, by every measure: all methods on the shapes networks, and on the kit's if it is given.

    python benchmarks/evaluation.py [--pictures 24] [--kit PATH] [--photos 8] [--out FOLDER] [--methods A,B,…]

Prints the tables of docs/evaluation.md.  With --out a run that was stopped goes on, and FOLDER/NETWORK/report.html
shows the best and worst maps.  PATH holds models/kit_models.py, images/localization and images/cifar10_test500.npz.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import sys
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

import fxlrp
from fxlrp.gae import BASELINES, evaluate

sys.path.insert(0, str(Path(__file__).parent))
import localization

SLOW = ("integrated-gradients", "smoothgrad")  # 20 and 16 gradients a map
Network = tuple[str, nn.Module, list[Any]]


def shapes(count: int) -> Iterator[Network]:
    """The two example networks, each with the first pictures of two objects of which it names one."""
    for name in ("cnn", "vit"):
        model = localization.load(name)
        shown = localization.two_objects(2 * count)
        with torch.no_grad():
            named = (model(shown.x).argmax(1)[:, None] == shown.labels).any(1)
        data = [
            (x, None, dict(zip(labels.tolist(), masks, strict=True)))
            for x, labels, masks, right in zip(shown.x, shown.labels, shown.masks, named, strict=True)
            if right
        ]
        yield f"shapes {name}", model, data[:count]


def kit(path: Path, photos: int, count: int) -> Iterator[Network]:
    """MobileNetV2 on photographs with masks of what it sees first in them, and the CIFAR-10 transformer."""
    spec = importlib.util.spec_from_file_location("kit_models", path / "models" / "kit_models.py")
    assert spec is not None
    assert spec.loader is not None
    models = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(models)
    folder = path / "images" / "localization"

    def pixels(name: str) -> Tensor:
        return torch.from_numpy(np.array(Image.open(folder / name)))

    model, preprocess, _ = models.load("mobilenetv2")
    index = [i for i in json.loads((folder / "index.json").read_text()) if i["rank"] == 0][:photos]
    rgb = torch.stack([pixels(i["file"])[..., :3].permute(2, 0, 1) for i in index]) / 255
    masks = [pixels(i["mask"]) for i in index]
    masks = [m.amax(-1) if m.ndim == 3 else m for m in masks]
    labels = [i["target"] for i in index]
    yield "MobileNetV2", model, list(zip(preprocess(rgb), labels, masks, strict=True))
    model, preprocess, _ = models.load("vit_cifar10")
    with np.load(path / "images" / "cifar10_test500.npz") as cifar:
        rgb = torch.from_numpy(cifar["x"][:count]).permute(0, 3, 1, 2) / 255
        yield "CIFAR-10 ViT", model, list(zip(preprocess(rgb), cifar["y"][:count].tolist(), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=24)
    parser.add_argument("--kit", type=Path)
    parser.add_argument("--photos", type=int, default=8)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--methods")
    parser.add_argument("--only", help="one network by name")
    args = parser.parse_args()
    torch.set_num_threads(1)
    networks = list(shapes(args.pictures)) + (list(kit(args.kit, args.photos, args.pictures)) if args.kit else [])
    print(f"{date.today()}, torch {torch.__version__}, one thread of {platform.machine()}")
    for name, model, data in networks:
        if args.only not in (None, name):
            continue
        masked = len(data[0]) == 3
        methods = args.methods.split(",") if args.methods else list(dict.fromkeys([*fxlrp.rulebooks(), *BASELINES]))
        methods = [m for m in methods if masked or m != "ground-truth"]
        if data[0][0].shape[-1] > 64 and not args.methods:
            methods = [m for m in methods if m not in SLOW]
        out = args.out and args.out / name.replace(" ", "-")
        start = time.perf_counter()
        report = evaluate(model, methods, data, out=out)
        print(
            f"\n### {name}: {len(data)} samples, {time.perf_counter() - start:.0f} s\n\n{report.markdown()}", flush=True
        )
        for method, error in report.errors.items():
            print(f"\n`{method}`: {error}")


if __name__ == "__main__":
    main()
