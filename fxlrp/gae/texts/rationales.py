"""How relevance agrees with what people marked, as ERASER measures it (DeYoung et al. 2020, 1911.03429)."""

from __future__ import annotations

import torch
from torch import Tensor

from fxlrp.gae.texts.case import Case


def by_word(case: Case, heat: Tensor) -> tuple[Tensor, Tensor]:
    """Return the relevance of each word that the model saw [W], and whether people marked it.

    heat [T]: of tokens, which are summed over each word of the first text.
    """
    assert case.truth is not None
    inside = case.free & (case.words >= 0) & torch.tensor(_first_text(case), device=heat.device)
    words, place = case.words[inside].unique(return_inverse=True)
    sums = torch.zeros(len(words), dtype=torch.float64, device=heat.device).index_add(0, place, heat[inside].double())
    marks = torch.zeros_like(sums).index_add(0, place, case.truth[inside].double())
    return sums, marks > 0


def _first_text(case: Case) -> list[bool]:
    pieces = case.text.pieces
    return [i < len(pieces) and pieces[i].segment == 0 for i in range(len(case.free))]


def agreement(case: Case, heat: Tensor, share: float) -> dict[str, float]:
    """Measure how a map [T] ranks and picks the words that people marked, each in 0…1; nothing if none is seen.

    auprc: the area under the curve of precision by recall, by trapezoids, as ERASER's; average_precision: the same by
    steps, scikit-learn's; token_f1: F1 of as many of the strongest words as people mark on average, a share of all.
    """
    if case.truth is None:
        return {}
    scores, marks = by_word(case, heat)
    if not marks.any():
        return {}
    precision, recall = precision_recall(scores, marks)
    picked = scores.sort(descending=True, stable=True).indices[: max(1, round(share * len(scores)))]
    return {
        "auprc": float(torch.trapezoid(precision, recall)),
        "average_precision": float((recall.diff() * precision[1:]).sum()),
        "token_f1": 2 * float(marks[picked].sum()) / (len(picked) + float(marks.sum())),
    }


def precision_recall(scores: Tensor, marks: Tensor) -> tuple[Tensor, Tensor]:
    """Return precision and recall as more and more of the strongest scores [N] are taken, from (1, 0) on; equal scores
    are taken together."""
    order = scores.sort(descending=True, stable=True).indices
    ranked, hits = scores[order], marks[order].double().cumsum(0)
    ends = torch.cat([ranked[1:] != ranked[:-1], marks.new_ones(1)]).nonzero()[:, 0]
    one, zero = hits.new_ones(1), hits.new_zeros(1)
    return torch.cat([one, hits[ends] / (ends + 1)]), torch.cat([zero, hits[ends] / hits[-1]])
