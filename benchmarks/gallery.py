"""Draw the pictures of the README: photographs explained, and a page.

    python -m benchmarks.gallery --kit DIR [--out docs/images]

The photographs come with scikit-image, scikit-learn and matplotlib (`benchmarks/photographs.py` says whose they are);
the network that looks at them is the kit's MobileNetV2.  The page is drawn by Chromium.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

import fxlrp
from benchmarks.faithfulness import load_kit
from benchmarks.photographs import photographs
from benchmarks.recipes import keep
from fxlrp.inputs import LoadedModel, Preprocess, imagenet_labels
from fxlrp.show.parts import heat_of, parts_of

SHOWN = ("chelsea", "coffee", "rocket", "camera", "motorcycle_left", "china")
SIDE, GAP, HEAD = 208, 6, 24


def mobilenet(kit: Path) -> LoadedModel:
    """The kit's MobileNetV2, with what it takes and says."""
    model, _, _ = load_kit(kit).load("mobilenetv2")
    return LoadedModel(model, "mobilenetv2", Preprocess(), imagenet_labels())


def strip(loaded: LoadedModel) -> Image.Image:
    """Photographs in a row, with the class above and what spoke for it below."""
    every = photographs()
    a = fxlrp.explain(loaded, [every[name] for name in SHOWN])
    sheet = Image.new("RGB", ((SIDE + GAP) * len(SHOWN) - GAP, HEAD + 2 * SIDE + GAP), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for i in range(len(SHOWN)):
        x, part = i * (SIDE + GAP), parts_of(a, i)[0]
        name = a.labels[int(a.target[i])].split(",")[0]
        pen.text((x + SIDE / 2, HEAD / 2), f"why {name}?", fill="black", font=font, anchor="mm")
        for row, tile in enumerate((part.values, heat_of(part.relevance[0]))):
            image = Image.fromarray((np.clip(tile, 0, 1) * 255).astype(np.uint8)).resize((SIDE, SIDE))
            sheet.paste(image, (x, HEAD + row * (SIDE + GAP)))
    return sheet


def page(loaded: LoadedModel, out: Path) -> None:
    """A screenshot of a page in Chromium."""
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        file = Path(folder) / "why.html"
        fxlrp.explain(loaded, photographs()["camera"], at=["blocks.2", "blocks.4", "blocks.6"], html=file)
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        shown = browser.new_page(viewport={"width": 860, "height": 700})
        shown.goto(file.as_uri())
        shown.wait_for_timeout(500)
        shown.screenshot(path=out, full_page=True)
        browser.close()
    keep(Image.open(out), out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kit", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs" / "images")
    args = parser.parse_args()
    torch.set_num_threads(1)
    loaded = mobilenet(args.kit)
    strip(loaded).save(args.out / "photographs.jpg", quality=85, optimize=True)
    page(loaded, args.out / "page.png")


if __name__ == "__main__":
    main()
