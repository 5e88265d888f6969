"""A small network, its pictures and their maps, as the tests of data sets share them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

import fxlrp
from fxlrp.inputs import LoadedModel, Preprocess

LABELS = ["up", "down", "left"]
SIDE = 12


def network() -> nn.Module:
    torch.manual_seed(3)
    layers = nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3), nn.Flatten(), nn.Linear(6 * 16, 3)
    return nn.Sequential(*layers).eval()


def loaded() -> LoadedModel:
    half = (0.5, 0.5, 0.5)
    return LoadedModel(network(), "small", Preprocess((SIDE, SIDE), half, half, 1.0), LABELS)


def load() -> tuple[LoadedModel, None]:
    """What a run, or a process of Ray's, loads."""
    return loaded(), None


def picture(i: int, side: int = SIDE) -> np.ndarray:
    return np.random.default_rng(i).integers(0, 256, (side, side, 3), dtype=np.uint8)


def pictures(folder: Path, count: int = 10) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.fromarray(picture(i)).save(folder / f"{i:03d}.png")
    return folder


class Tensors:
    """A data set of tensors, as a user's own."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return torch.from_numpy(picture(i)).permute(2, 0, 1) / 255, i % 3


def maps_by_hand(count: int, batch: int, **question: Any) -> Tensor:
    """Relevance [N, 3, H, W] of the first pictures, by the explainer called in batches."""
    model = loaded()
    explainer = fxlrp.convert(model.module)
    x = torch.stack([model.preprocess(Image.fromarray(picture(i)))[0] for i in range(count)])
    return torch.cat([explainer(part, **question).relevance for part in x.split(batch)])


def files(out: Path) -> dict[str, bytes]:
    """Everything that is in a folder, hidden files too."""
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}


def all_decoded(page: Any, which: str) -> None:
    """Waits until all pictures of a page are decoded; raises where one can't be."""
    page.evaluate(f"Promise.all([...document.querySelectorAll('{which}')].map(i => i.decode()))")
