"""Which explanations are good, by every measure: all methods on the shapes networks, and on the kit's if it is given.

    python -m benchmarks.evaluation --workers 2 --kit PATH --out FOLDER --docs docs/evaluation.md

Prints the tables, and with --docs writes them there.  A run that was stopped goes on, and FOLDER/NETWORK/report.html
shows the best and worst maps.  PATH holds models/kit_models.py, images/localization and images/cifar10_test500.npz.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

import fxlrp
from fxlrp.gae import BASELINES, Report, evaluate, quantus
from fxlrp.gae.report import MEASURES

sys.path.insert(0, str(Path(__file__).parent))
import localization

OURS = ("abslrp", "abslrp-2024-12", "abslrp-hybrid")
RANKED = {
    "gae": True,
    "lc": True,
    "contrastiveness": True,
    "abpc": True,
    "rank_accuracy": True,
    "max_sensitivity": False,
}
OPEN, CLOSE = "<!-- benchmarks/evaluation.py writes from here -->\n", "<!-- to here -->\n"
Network = tuple[str, nn.Module, list[Any]]


def shapes(count: int, names: Sequence[str] = ("cnn", "vit")) -> Iterator[Network]:
    """Example networks, each with the first pictures of two objects of which it names one."""
    for name in names:
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
    """The CIFAR-10 transformer, and MobileNetV2 on photographs with masks of what it names first in them."""
    spec = importlib.util.spec_from_file_location("kit_models", path / "models" / "kit_models.py")
    assert spec is not None
    assert spec.loader is not None
    models = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(models)
    folder = path / "images" / "localization"

    def pixels(name: str) -> Tensor:
        return torch.from_numpy(np.array(Image.open(folder / name)))

    model, preprocess, _ = models.load("vit_cifar10")
    with np.load(path / "images" / "cifar10_test500.npz") as cifar:
        rgb = torch.from_numpy(cifar["x"][:count]).permute(0, 3, 1, 2) / 255
        yield "CIFAR-10 ViT", model, list(zip(preprocess(rgb), cifar["y"][:count].tolist(), strict=True))
    model, preprocess, _ = models.load("mobilenetv2")
    index = [i for i in json.loads((folder / "index.json").read_text()) if i["rank"] == 0][:photos]
    rgb = torch.stack([pixels(i["file"])[..., :3].permute(2, 0, 1) for i in index]) / 255
    masks = [pixels(i["mask"]) for i in index]
    masks = [m.amax(-1) if m.ndim == 3 else m for m in masks]
    labels = [i["target"] for i in index]
    yield "MobileNetV2", model, list(zip(preprocess(rgb), labels, masks, strict=True))


def verdict(report: Report, method: str) -> str:
    """How many methods one is above, level with and below, by paired intervals that leave out 0, the last by name."""
    said = []
    for measure in (m for m in RANKED if m in report.measures):
        above, below = 0, []
        for pair, e in report.differences(measure).items():
            if method in pair and (e.low > 0 or e.high < 0):
                better = ((e.mean > 0) == (pair[0] == method)) == RANKED[measure]
                above += better
                below += [] if better else [f"`{pair[1 - pair.index(method)]}`"]
        level = len(report.methods) - 1 - above - len(below)
        names = f" ({', '.join(below)})" if below else ""
        said.append(f"{MEASURES[measure]} {above}/{level}/{len(below)}{names}")
    return f"- `{method}`: {'; '.join(said)}."


def section(name: str, report: Report) -> str:
    """A network's table, what could not run, and how absLRP fares."""
    made = report.settings
    lines = [f"### {name}, {made['samples']} pictures, {made['steps']} steps", "", report.markdown(), ""]
    lines += [f"`{method}` is left out: {error}\n" for method, error in report.errors.items()]
    lines += ["Better than, level with and worse than so many others (the last by name):", ""]
    lines += [verdict(report, method) for method in OURS if method in report.methods]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=24)
    parser.add_argument("--kit", type=Path)
    parser.add_argument("--photos", type=int, default=12)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--methods")
    parser.add_argument("--workers", type=int, default=0, help="actors of Ray")
    parser.add_argument("--only", help="one network by name")
    parser.add_argument("--docs", type=Path, help="a Markdown file whose part between the marks is to be these tables")
    args = parser.parse_args()
    torch.set_num_threads(1)
    start = time.perf_counter()
    networks = list(shapes(args.pictures)) + (list(kit(args.kit, args.photos, 2 * args.pictures)) if args.kit else [])
    sections = []
    for name, model, data in networks:
        if args.only not in (None, name):
            continue
        methods = args.methods.split(",") if args.methods else list(dict.fromkeys([*fxlrp.rulebooks(), *BASELINES]))
        methods = [m for m in methods if len(data[0]) == 3 or m != "ground-truth"]
        out = args.out and args.out / name.replace(" ", "-")
        big = data[0][0].shape[-1] > 64
        how = {"steps": 5, "batch_size": 4} if big else {"batch_size": 8}  # small chunks: processes end together
        report = evaluate(model, methods, data, out=out, device="cpu", workers=args.workers, **how)
        sections.append(section(name, report))
        print(f"\n{sections[-1]}\n\n{time.perf_counter() - start:.0f} s so far", flush=True)
    if args.docs:
        made = f"{date.today()}, {max(1, args.workers)} processes of one thread each on {platform.machine()}, torch "
        made += f"{torch.__version__}, captum {version('captum')}, Quantus {quantus.version()}.\n\n"
        before, rest = args.docs.read_text().split(OPEN)
        args.docs.write_text(before + OPEN + made + "\n\n".join(sections) + "\n" + CLOSE + rest.split(CLOSE)[1])


if __name__ == "__main__":
    main()
