"""Measures beside GAE: masking curves by a method's own map, and where its relevance lies."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from fxlrp.gae.masking import filled, predict, stand_in


def curves(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    heat: Tensor,
    *,
    steps: int = 10,
    batch_size: int = 16,
    ways: Sequence[str] = ("zero",),
    keys: Sequence[object] | None = None,
) -> dict[str, list]:
    """Mask inputs by the map itself, and follow the probability of the target, and its logit.

    Returns for each sample: `morf` and `lerf`, the probability after 0, 1/steps, … 1 of all patches are set to 0, most
    and least relevant first, steps + 1 values each; `morf_auc` and `lerf_auc`, the areas under them by the trapezoid
    rule in 0…1; and `abpc`, the second area less the first; `srg`, the same of the logit, and its two curves
    `morf_logit` and `lerf_logit`.  Of another way of masking, `_mean` and so on stands behind each name.

    x [n, C, H, W], target [n], heat [n, H, W], channels summed.  Patches are squares of a 14th of the shorter side, at
    least a pixel, ranked by their mean relevance.  ways: of `fxlrp.gae.masking.MASKINGS`, all by the same two orders.
    keys [n]: what noise is drawn by.  MoRF and LeRF: Samek et al. 2017, 1509.06321; ABPC: Schulz et al. 2020,
    2001.00396; SRG: Blücher et al. 2024, 2401.06654.
    """
    n, side = len(x), max(1, min(x.shape[-2:]) // 14)
    patches = avg_pool2d(heat[:, None], side, ceil_mode=True)
    rows, columns = patches.shape[-2:]
    flat = patches.flatten(1)
    wide, at = x.repeat(steps + 1, 1, 1, 1), target.repeat(steps + 1)[:, None]
    named = range(n) if keys is None else keys
    fixed = {way: stand_in(x, way, named).repeat(steps + 1, 1, 1, 1) for way in ways if way != "fill"}
    measured: dict[str, list] = {}
    for name, most in (("morf", True), ("lerf", False)):
        rank = flat.sort(dim=1, descending=most, stable=True).indices.argsort(1)
        shut = torch.cat([rank < round(k * rank.shape[1] / steps) for k in range(steps + 1)]).view(-1, rows, columns)
        pixels = shut[:, None].repeat_interleave(side, -2).repeat_interleave(side, -1)
        pixels = pixels[..., : x.shape[-2], : x.shape[-1]]
        for way in ways:
            behind = "" if way == "zero" else f"_{way}"
            inputs = torch.where(pixels, fixed[way] if way in fixed else filled(wide, shut, side), wide)
            logits = predict(model, inputs, batch_size)
            for values, what in ((logits.softmax(1), ""), (logits, "_logit")):
                curve = values.gather(1, at).view(steps + 1, n).T.double()
                measured[f"{name}{what}{behind}"] = curve.tolist()
                area = (curve[:, 1:] + curve[:, :-1]).sum(1) / (2 * steps)
                if not what:
                    measured[f"{name}_auc{behind}"] = area.tolist()
                gap = f"{'srg' if what else 'abpc'}{behind}"
                measured[gap] = (-area if most else area + torch.tensor(measured[gap], dtype=area.dtype)).tolist()
    return measured


def ranks(values: Tensor) -> Tensor:
    """The ranks of values [k] from 1 on, equal ones the mean of theirs."""
    below, level = (values[:, None] > values).sum(1), (values[:, None] == values).sum(1)
    return below + (level + 1) / 2


def spearman(a: Tensor, b: Tensor) -> float | None:
    """The rank correlation of two lists [k]; None where one of them is constant."""
    x, y = (r - r.mean() for r in (ranks(a).double(), ranks(b).double()))
    norm = x.norm() * y.norm()
    return float((x * y).sum() / norm) if norm > 0 else None


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
