"""Mosaics of four pictures, and what relevance is worth where in them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from fxlrp.gae.definitions import PUBLISHED


def tile(quarters: Tensor) -> Tensor:
    """[4, n, C, h, w], top left, top right, bottom left, bottom right → [n, C, 2h, 2w]."""
    return torch.cat([torch.cat([*quarters[:2]], -1), torch.cat([*quarters[2:]], -1)], -2)


def halve(x: Tensor) -> Tensor:
    """Pictures at half their sides, by nearest neighbours as published."""
    return interpolate(x, (x.shape[-2] // 2, x.shape[-1] // 2))


def quadrant_scores(probability: Tensor, classes: Tensor, own: Tensor) -> Tensor:
    """2 p_c / p_own − 1 [n, 4]: what relevance in a quadrant is worth, where p [n, K] are the scored picture's own
    probabilities, c [n, 4] the classes of the quadrants and own [n] that of the scored picture.

    In −1…1 if `own` is the predicted class.
    """
    return 2 * probability.gather(1, classes) / probability.gather(1, own[:, None]) - 1


def cross(score: Tensor, definition: str) -> Tensor:
    """The two pixels either side of the mosaic's seams are worth 1, since nobody can say whose they are.

    2024-12 reaches only the square of 2 × 2 in the middle.
    """
    h, w = score.shape[-2] // 2, score.shape[-1] // 2
    score = score.clone()
    if definition == PUBLISHED:
        score[..., h - 1 : h + 1, w - 1 : w + 1] = 1
    else:
        score[..., h - 1 : h + 1, :] = 1
        score[..., w - 1 : w + 1] = 1
    return score


def fill(mosaic: Tensor, x: Tensor) -> Tensor:
    """A mosaic as large as the pictures were: of an odd side, the last line is repeated."""
    bottom, right = x.shape[-2] - mosaic.shape[-2], x.shape[-1] - mosaic.shape[-1]
    return nn.functional.pad(mosaic, (0, right, 0, bottom), "replicate") if bottom or right else mosaic
