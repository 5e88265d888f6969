"""Make mosaics of four pictures, and say what relevance is worth where in them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from fxlrp.gae.definitions import PUBLISHED


def tile(quarters: Tensor) -> Tensor:
    """Join four quarters [4, n, C, h, w], top left, top right, bottom left, bottom right, to [n, C, 2h, 2w]."""
    return torch.cat([torch.cat([*quarters[:2]], -1), torch.cat([*quarters[2:]], -1)], -2)


def halve(x: Tensor) -> Tensor:
    """Shrink pictures [n, C, H, W] to half their sides, by nearest neighbours as published."""
    return interpolate(x, (x.shape[-2] // 2, x.shape[-1] // 2))


def quadrant_scores(probability: Tensor, classes: Tensor, own: Tensor) -> Tensor:
    """Return what relevance is worth in each quadrant, 2 p_c / p_own − 1 [n, 4].

    probability [n, K]: p, those of the scored picture.  classes [n, 4]: c, those of the quadrants.
    own [n]: the class of the scored picture; if it is the predicted class, the scores are in −1…1.
    """
    return 2 * probability.gather(1, classes) / probability.gather(1, own[:, None]) - 1


def cross(score: Tensor, definition: str) -> Tensor:
    """Set what relevance is worth beside the seams of a mosaic to 1, since nobody can say whose these pixels are.

    These are a pixel on each side of both seams; in 2024-12 only the square of 2 × 2 in the middle.
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
    """Make a mosaic as large as the pictures were: of an odd side, the last line is repeated."""
    bottom, right = x.shape[-2] - mosaic.shape[-2], x.shape[-1] - mosaic.shape[-1]
    return nn.functional.pad(mosaic, (0, right, 0, bottom), "replicate") if bottom or right else mosaic
