"""Take tokens out of a text, and follow what the model says.

In three ways: hidden (no other token attends to them), dropped (as if they had not been written), or replaced by the
tokenizer's mask.  What is left out of a text altogether is one blank token.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fxlrp.gae.texts.case import Case, said

WAYS = ("hidden", "dropped", "replaced")
SHARES = (0.01, 0.05, 0.1, 0.2, 0.5)
"""The shares of a text that ERASER takes out, or leaves."""


def ways_of(case: Case) -> list[str]:
    """Return the ways in which a case's tokens can be taken out."""
    there = {"hidden": "attention_mask" in case.inputs, "dropped": True, "replaced": case.mask is not None}
    return [way for way in WAYS if there[way]]


def order_of(case: Case, heat: Tensor) -> Tensor:
    """Return the free tokens [F] by relevance [T], most relevant first, of equal ones the first."""
    free = case.free.nonzero()[:, 0]
    return free[heat[free].sort(descending=True, stable=True).indices]


def removal(
    model: nn.Module, case: Case, heat: Tensor, *, steps: int = 10, batch_size: int = 16
) -> dict[str, list[float] | float]:
    """Measure a map by what removal does to the class's probability, or to the continuation's log-probability.

    For each way: `WAY_morf` and `WAY_lerf`, what is left after 0, 1/steps, … 1 of all tokens are gone, most and least
    relevant first, steps + 1 values each; `WAY_morf_auc` and `WAY_lerf_auc`, the areas under them by the trapezoid rule
    in 0…1; `WAY_abpc`, the second area less the first (Samek et al. 2017, 1509.06321; Schulz et al. 2020, 2001.00396).
    `comprehensiveness`: what is lost when the most relevant 1, 5, 10, 20 and 50 % are dropped, the mean of the five;
    `sufficiency`: what is lost when all others are (DeYoung et al. 2020, 1911.03429): low is good.

    heat [T]: relevance of all tokens.
    """
    order = order_of(case, heat)
    n = len(order)
    counts = [round(k * n / steps) for k in range(steps + 1)]
    orders = (order, order_of(case, -heat))
    most, least = (torch.stack([_gone(case, line[:c]) for c in counts]) for line in orders)
    measures: dict[str, list[float] | float] = {}
    for way in ways_of(case):
        curves = worth_without(model, case, torch.cat([most, least]), way, batch_size).view(2, -1)
        for name, curve in zip(("morf", "lerf"), curves, strict=True):
            measures[f"{way}_{name}"] = curve.tolist()
            measures[f"{way}_{name}_auc"] = float((curve[1:] + curve[:-1]).sum() / (2 * steps))
        measures[f"{way}_abpc"] = float(measures[f"{way}_lerf_auc"]) - float(measures[f"{way}_morf_auc"])  # type: ignore[arg-type]
    top = [math.ceil(share * n) for share in SHARES]
    cut = torch.stack([_gone(case, part) for t in top for part in (order[:t], order[t:])])
    left = worth_without(model, case, torch.cat([most[:1], cut]), "dropped", batch_size)
    lost = (left[0] - left[1:]).view(-1, 2).mean(0)
    return {**measures, "comprehensiveness": float(lost[0]), "sufficiency": float(lost[1])}


def _gone(case: Case, tokens: Tensor) -> Tensor:
    """Return which of all tokens these are, bool [T]."""
    return torch.zeros_like(case.free).index_fill(0, tokens, True)


def worth_without(model: nn.Module, case: Case, gone: Tensor, way: str, batch_size: int) -> Tensor:
    """Return what a case is worth [M] without some of its free tokens, bool [M, T], each of M times anew."""
    worth = torch.empty(len(gone), dtype=torch.float64, device=gone.device)
    counts = gone.sum(1)
    if way != "dropped":
        return _worth(model, case, _hidden(case, gone) if way == "hidden" else _replaced(case, gone), 0, batch_size)
    for count in counts.unique().tolist():  # of one length, so that nothing is padded
        rows = (counts == count).nonzero()[:, 0]
        inputs, shift = _dropped(case, gone[rows])
        worth[rows] = _worth(model, case, inputs, shift, batch_size)
    return worth


def _emptied(case: Case, gone: Tensor) -> Tensor:
    """Return where nothing is left in front of what is said, bool [M]."""
    front = gone if case.at is None or case.decodes else gone[:, : int(case.at[0]) + 1]
    return front.all(1)


def _copies(case: Case, count: int) -> dict[str, Tensor]:
    return {n: t.repeat(count, *[1] * (t.ndim - 1)) for n, t in case.inputs.items()}


def _hidden(case: Case, gone: Tensor) -> dict[str, Tensor]:
    inputs, empty = _copies(case, len(gone)), _emptied(case, gone)
    inputs["attention_mask"] = inputs["attention_mask"].masked_fill(gone, 0)
    inputs["attention_mask"][empty, 0] = 1
    inputs["input_ids"][empty, 0] = case.blank
    return inputs


def _replaced(case: Case, gone: Tensor) -> dict[str, Tensor]:
    inputs = _copies(case, len(gone))
    assert case.mask is not None
    inputs["input_ids"] = inputs["input_ids"].masked_fill(gone, case.mask)
    return inputs


def _dropped(case: Case, gone: Tensor) -> tuple[dict[str, Tensor], int]:
    """Return inputs without tokens, as many of each row [M, T], and by how many places what is said moves."""
    inputs, empty = _copies(case, len(gone)), _emptied(case, gone)
    inputs["input_ids"][empty, 0] = case.blank
    kept = ~gone
    kept[empty, 0] = True
    length = gone.shape[1]
    along = {n for n in ("input_ids", *case.text.fields) if inputs[n].shape[1] == length}
    cut = {n: t[kept].view(len(gone), -1) if n in along else t for n, t in inputs.items()}
    return cut, 0 if case.decodes else length - int(kept[0].sum())


def _worth(model: nn.Module, case: Case, inputs: Mapping[str, Tensor], shift: int, batch_size: int) -> Tensor:
    """Return what inputs [M, …] are worth [M], computed in batches; what is said stands `shift` places earlier."""
    moved = case.moved(shift)
    with torch.no_grad():
        return torch.cat(
            [
                moved.worth(said(model(**{n: t[i : i + batch_size] for n, t in inputs.items()})))
                for i in range(0, len(inputs["input_ids"]), batch_size)
            ]
        )
