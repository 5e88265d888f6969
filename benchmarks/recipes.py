"""Draw what the recipes of the documents end in.

    python -m benchmarks.recipes [--out docs/images/recipes]

Each recipe runs in a folder of its own.  A figure is kept as it is; of a page, Chromium takes a picture.
"""

from __future__ import annotations

import argparse
import os
import runpy
import shutil
import tempfile
from pathlib import Path

import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
WIDTH, HEIGHT = 800, 900
"""The most pixels of a picture."""


def run(recipe: Path, folder: Path) -> Path | None:
    """Run a recipe in a folder; returns the first figure that it wrote, or else a picture of its first page."""
    (folder / "out" / "recipes").mkdir(parents=True)
    before = Path.cwd()
    os.chdir(folder)
    try:
        runpy.run_path(str(recipe), run_name="__main__")
    finally:
        os.chdir(before)
    written = sorted((folder / "out" / "recipes").iterdir())
    if figure := next((f for f in written if f.suffix == ".png"), None):
        return figure
    return next((screenshot(f) for f in written if f.suffix == ".html"), None)


def screenshot(file: Path) -> Path:
    """A picture of a page, as Chromium shows it."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": 300})
        page.goto(file.as_uri())
        page.wait_for_timeout(300)
        page.screenshot(path=file.with_suffix(".png"), full_page=True)
        browser.close()
    return file.with_suffix(".png")


def keep(image: Image.Image, file: Path) -> None:
    """Save a picture of the documents in few colours, a fifth as large."""
    image.convert("RGB").quantize(256, Image.Quantize.FASTOCTREE).save(file, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images" / "recipes")
    parser.add_argument("names", nargs="*", help="of recipes; all")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    for recipe in sorted((ROOT / "docs" / "recipes").glob("*.py")):
        if args.names and recipe.stem not in args.names:
            continue
        with tempfile.TemporaryDirectory() as folder:
            if drawn := run(recipe, Path(folder)):
                image = Image.open(drawn).convert("RGB")
                image.thumbnail((WIDTH, 10_000))
                image = image.crop((0, 0, image.width, min(image.height, HEIGHT)))
                keep(image, args.out / f"{recipe.stem}.png")
        print(recipe.stem, "drawn" if drawn else "ends in no picture")


if __name__ == "__main__":
    main()
