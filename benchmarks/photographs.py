"""Photographs that may be shipped: those that come with scikit-image, scikit-learn and matplotlib."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import skimage
import sklearn.datasets
from PIL import Image

CREDITS = {
    "chelsea.png": "a cat, by Stéfan van der Walt, CC0",
    "coffee.png": "by Rachel Michetti, CC0",
    "rocket.jpg": "by SpaceX, CC0",
    "motorcycle_left.png": "by Daniel Scharstein, CC0",
    "camera.png": "by Lav Varshney, CC0",
    "astronaut.png": "Eileen Collins, by NASA, public domain",
    "coins.png": "Greek coins from Pompeii, Brooklyn Museum, no known restrictions",
    "grace_hopper.jpg": "by the US Navy, public domain",
    "china.jpg": "by danielbuechele, CC BY 2.0",
    "flower.jpg": "by vultilion, CC BY 2.0",
}
FOLDERS = (
    Path(skimage.__file__).parent / "data",
    Path(sklearn.datasets.__file__).parent / "images",
    Path(matplotlib.get_data_path()) / "sample_data",
)


def photographs() -> dict[str, Image.Image]:
    """The photographs, in colour, by their names."""
    files = {name: next(f / name for f in FOLDERS if (f / name).exists()) for name in CREDITS}
    return {name.partition(".")[0]: Image.open(file).convert("RGB") for name, file in files.items()}
