"""Baselines of captum's that set parts of an input to 0 and see what the score does, each on a copy of the model.

The parts are entries where an input has few of them, tokens of a sequence [T, C], and else cells of equal size: 7 × 7
squares of a picture, with all its channels.  What a part is due is divided among its entries.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

FEW = 64  # entries that are taken one by one
DRAWS = 200


def parts_of(x: Tensor) -> Tensor:
    """The number of the part that each entry of a sample is in, int [1, …], for inputs x [n, …]."""
    shape = tuple(x.shape[1:])
    if math.prod(shape) <= FEW:
        return torch.arange(math.prod(shape), device=x.device).view(1, *shape)
    if len(shape) == 2 and shape[0] > 1:
        return torch.arange(shape[0], device=x.device)[None, :, None].expand(1, *shape)
    axes = shape if len(shape) == 1 else shape[1:]
    cells = int(49 ** (1 / len(axes)) + 1e-9)
    part = torch.zeros(axes, dtype=torch.long, device=x.device)
    for axis, size in enumerate(axes):
        row = torch.arange(size, device=x.device) * min(cells, size) // size
        part = part * min(cells, size) + row.view([-1 if a == axis else 1 for a in range(len(axes))])
    return part.expand(1, *shape)


def occlusion(captum: Any, model: nn.Module, seed: int) -> Callable[..., Tensor]:
    """Make Occlusion (Zeiler and Fergus 2014, 1311.2901): what the score loses when a square is set to 0.

    Squares are a seventh of the shorter side, and move by half of theirs; where an input has few entries, and in a
    sequence, what `parts_of` says.
    """
    made = captum.Occlusion(model)

    def attribute(x: Tensor, target: Tensor) -> Tensor:
        _, first, *axes = x.shape
        side = max(1, min(axes, default=1) // 7)
        square, steps = (first, *[side] * len(axes)), (first, *[max(1, side // 2)] * len(axes))
        if not axes or x[0].numel() <= FEW:
            square = steps = (1,) * (x.ndim - 1)
        elif len(axes) == 1 and first > 1:
            square = steps = (1, *axes)
        return made.attribute(x, square, strides=steps, target=target).to(x)

    return attribute


def feature_ablation(captum: Any, model: nn.Module, seed: int) -> Callable[..., Tensor]:
    """Make FeatureAblation: what the score loses when a part is set to 0."""
    made = captum.FeatureAblation(model)

    def attribute(x: Tensor, target: Tensor) -> Tensor:
        parts = parts_of(x)
        return _divided(made.attribute(x, target=target, feature_mask=parts), parts).to(x)

    return attribute


def kernel_shap(captum: Any, model: nn.Module, seed: int) -> Callable[..., Tensor]:
    """Make KernelSHAP (Lundberg and Lee 2017, 1705.07874) from 200 draws of parts set to 0."""
    return _drawn(captum.KernelShap(model), seed)


def lime(captum: Any, model: nn.Module, seed: int) -> Callable[..., Tensor]:
    """Make LIME (Ribeiro et al. 2016, 1602.04938) from 200 draws of parts set to 0, by ridge regression as theirs."""
    from captum._utils.models.linear_model import SkLearnRidge

    return _drawn(captum.Lime(model, interpretable_model=SkLearnRidge(alpha=1.0)), seed)


def _drawn(method: Any, seed: int) -> Callable[..., Tensor]:
    """Samples go one at a time, each with the same draws."""

    def one(x: Tensor, target: Tensor) -> Tensor:
        parts = parts_of(x)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            how = {"feature_mask": parts, "n_samples": DRAWS, "perturbations_per_eval": 50}
            return _divided(method.attribute(x, target=target, **how), parts).to(x)

    return lambda x, target: torch.cat([one(x[i : i + 1], target[i : i + 1]) for i in range(len(x))])


def _divided(relevance: Tensor, parts: Tensor) -> Tensor:
    """What each part is due, which captum gives to each of its entries, divided among them."""
    return relevance / torch.bincount(parts.flatten())[parts]
