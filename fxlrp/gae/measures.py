"""Measures beside GAE: masking curves by a method's own map, and where its relevance lies."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from fxlrp.gae.masking import predict


def curves(
    model: nn.Module, x: Tensor, target: Tensor, heat: Tensor, *, steps: int = 10, batch_size: int = 16
) -> dict[str, list]:
    """Mask inputs by the map itself, and follow the probability of the target.

    Returns for each sample: `morf` and `lerf`, the probability after 0, 1/steps, … 1 of all patches are set to 0, most
    and least relevant first, steps + 1 values each; `morf_auc` and `lerf_auc`, the areas under them by the trapezoid
    rule in 0…1; and `abpc`, the second area less the first.

    x [n, C, H, W], target [n], heat [n, H, W], channels summed.  Patches are squares of a 14th of the shorter side, at
    least a pixel, ranked by their mean relevance.  MoRF and LeRF: Samek et al. 2017, 1509.06321; ABPC: Schulz et al.
    2020, 2001.00396.
    """
    n, side = len(x), max(1, min(x.shape[-2:]) // 14)
    patches = avg_pool2d(heat[:, None], side, ceil_mode=True)
    rows, columns = patches.shape[-2:]
    flat = patches.flatten(1)
    measured: dict[str, list] = {}
    for name, most in (("morf", True), ("lerf", False)):
        rank = flat.sort(dim=1, descending=most, stable=True).indices.argsort(1)
        shut = torch.stack([rank < round(k * rank.shape[1] / steps) for k in range(steps + 1)])
        shut = shut.view(-1, 1, rows, columns).repeat_interleave(side, -2).repeat_interleave(side, -1)
        shut = shut[..., : x.shape[-2], : x.shape[-1]]
        inputs = x.repeat(steps + 1, 1, 1, 1).masked_fill(shut, 0)
        kept = predict(model, inputs, batch_size).softmax(1).gather(1, target.repeat(steps + 1)[:, None])
        curve = kept.view(steps + 1, n).T.double()
        measured[name] = curve.tolist()
        measured[f"{name}_auc"] = ((curve[:, 1:] + curve[:, :-1]).sum(1) / (2 * steps)).tolist()
    measured["abpc"] = [b - a for a, b in zip(measured["morf_auc"], measured["lerf_auc"], strict=True)]
    return measured


def localisation(heat: Tensor, mask: Tensor) -> dict[str, float]:
    """Measure how much of a map [H, W] lies on the object, whose mask is bool [H, W]; each in 0…1.

    pointing: whether the strongest 3 × 3 pixels lie on it (Zhang et al. 2016, 1608.00507); relevance_mass: its part of
    positive relevance; rank_accuracy: its part of as many of the strongest pixels as it has (both Arras et al. 2022,
    2003.07258).
    """
    top = avg_pool2d(heat[None, None], 3, 1, 1).flatten().argmax()
    up, inside = heat.relu(), mask.flatten()
    order = heat.flatten().sort(descending=True, stable=True).indices[: int(inside.sum())]
    total = float(up.sum())
    return {
        "pointing": float(inside[top]),
        "relevance_mass": float((up * mask).sum()) / total if total else 0.0,
        "rank_accuracy": float(inside[order].double().mean()) if len(order) else 0.0,
    }
