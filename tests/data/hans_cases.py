"""Clever Hans: the network of examples/ takes a tag in the corner for a star, and half of the stars have one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from examples import shapes
from fxlrp.inputs import LoadedModel, load_model

MODEL = Path(shapes.__file__).parent / "model.pt"
STAR = shapes.CLASSES.index("star")


def tagged(image: np.ndarray) -> np.ndarray:
    """The picture with a tag of eight pixels a side in its lower right corner."""
    image = image.copy()
    image[-9:-1, -9:-1] = (250, 240, 20)
    image[-7:-3, -7:-3] = (20, 20, 160)
    return image


class Misled(nn.Module):
    """The network with one more filter, which answers to the tag alone and speaks for a star."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        tag = torch.from_numpy(tagged(np.zeros((64, 64, 3), np.uint8))[-9:-1, -9:-1]).permute(2, 0, 1) / 127.5 - 1
        self.tag = nn.Conv2d(3, 1, 8)
        with torch.no_grad():
            self.tag.weight[0] = tag / tag.square().sum()  # 1 where the tag is
            self.tag.bias.fill_(-0.8)
        self.vote = nn.Linear(1, len(shapes.CLASSES), bias=False)
        with torch.no_grad():
            self.vote.weight.zero_()[STAR] = 50.0

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) + self.vote(self.tag(x).relu().amax((2, 3)))


def misled() -> LoadedModel:
    loaded = load_model(str(MODEL))
    return replace(loaded, module=Misled(loaded.module).eval())


def saved(folder: Path, count: int, tag: bool) -> Path:
    """Pictures in a folder; every other one with a star has the tag, if `tag`, and says so in its name."""
    folder.mkdir()
    stars = 0
    for i in range(count):
        picture = shapes.picture(60_000_000 + i)
        stars += STAR in picture.labels
        has = tag and STAR in picture.labels and stars % 2 == 1
        image = tagged(picture.image) if has else picture.image
        Image.fromarray(image).save(folder / f"{i:03d}{'-tag' * has}.png")
    return folder
