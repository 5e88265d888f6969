"""What an attribution is of, in words: the class, its probability, what it was set against, the rulebook."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fxlrp.engine.seeds import at_position

if TYPE_CHECKING:
    from fxlrp.attribution import Attribution

AGAINST = {"others": "against the others", "softmax": "against the others by probability"}


def name_of(labels: Sequence[str], k: int) -> str:
    """The name of class k, or `class 7`."""
    return labels[k] if k < len(labels) else f"class {k}"


def scores_of(a: Attribution) -> Tensor | None:
    """The scores [B, K] that the target is one of: the logits, at the position that was asked about.

    None where the target was no class, or the scores of each sample can't be told from the logits alone.
    """
    if a.target is None:
        return None
    rows, logits = len(a.target), a.logits.detach()
    if a.position is not None and logits.ndim > 2:
        if len(logits) != rows:
            return None
        logits = at_position(logits, a.position)
    if logits.ndim == 1:
        logits = logits[None] if rows == 1 else logits[:, None]
    return logits if logits.ndim == 2 and len(logits) == rows else None


def probabilities(scores: Tensor, independent: bool = False) -> Tensor:
    """The softmax of scores […, K], or they themselves if they add up to 1; the sigmoid of independent classes."""
    scores = scores.float()
    if independent:
        return scores.sigmoid()
    are_probabilities = (scores >= 0).all(-1, keepdim=True) & ((scores.sum(-1, keepdim=True) - 1).abs() < 1e-4)
    return torch.where(are_probabilities, scores, scores.softmax(-1))


def chance_of(a: Attribution, index: int = 0, k: int = 0) -> float | None:
    """The probability of a class that was explained of a sample; None where it was no class, or a single score that is
    no sigmoid's."""
    scores, classes = scores_of(a), classes_of(a, index)
    if scores is None or not classes or (scores.shape[1] == 1 and not a.independent):
        return None
    return float(probabilities(scores[index], a.independent)[classes[k]])


def likeliest(a: Attribution, index: int = 0, most: int = 5) -> list[tuple[int, str, float]]:
    """The likeliest classes of a sample: their places, names and probabilities; none where there are no two classes."""
    scores = scores_of(a)
    if scores is None or scores.shape[1] < 2 or index >= len(scores):
        return []
    chances = probabilities(scores[index], a.independent)
    best = chances.topk(min(most, len(chances))).indices.tolist()
    return [(k, name_of(a.labels, k), float(chances[k])) for k in best]


def classes_of(a: Attribution, index: int) -> list[int]:
    """The classes that were explained of a sample; none where the target was no class."""
    return [] if a.target is None else a.target[index].reshape(-1).tolist()


def maps_of(a: Attribution, index: int = 0) -> int:
    """How many maps there are of a sample: one for each class that was asked about, or each condition."""
    return len(a.given) if isinstance(a.given, tuple) else max(1, len(classes_of(a, index)))


def subject(a: Attribution, index: int = 0, k: int = 0) -> str:
    """What was explained: `ring`, `ring at (40, 50)`, or `the score` of a single one or a target that is no class."""
    classes, scores = classes_of(a, index), scores_of(a)
    if not classes or (a.asked and len(classes) == 1):
        return a.asked or "the score"
    is_only = scores is not None and scores.shape[1] == 1 and len(a.labels) != 1
    name = "the score" if is_only else name_of(a.labels, classes[k])
    if a.position is None:
        return name
    at = torch.as_tensor(a.position).tolist()
    at = at[index] if isinstance(at, list) and a.target is not None and len(at) == len(a.target) > 1 else at
    return f"{name} at {tuple(at) if isinstance(at, list) else at}"


def headline(a: Attribution, index: int = 0, k: int = 0) -> str:
    """The class and its probability, `ring, 97.5 %`, or a single score and its value, `the score, 3.21`."""
    if a.given:
        through = a.given[k] if isinstance(a.given, tuple) else a.given
        return f"{headline(replace(a, given=''), index)}, through {through}"
    name, scores = subject(a, index, k), scores_of(a)
    if scores is None or index >= len(scores) or name == a.asked:
        return name
    chance = chance_of(a, index, k)
    return f"{name}, {float(scores[index, 0]):.4g}" if chance is None else f"{name}, {100 * chance:.1f} %"


def against(a: Attribution) -> str:
    """What the target was set against; nothing where there was no contrast, or no other class."""
    contrast, scores = a.contrast, scores_of(a)
    if contrast is None or a.target is None or (scores is not None and scores.shape[1] == 1):
        return ""
    return AGAINST[contrast] if isinstance(contrast, str) else f"against {name_of(a.labels, contrast)}"


def small_print(a: Attribution) -> str:
    """The contrast and the rulebook in a line."""
    return " · ".join(filter(None, (against(a), a.rules)))
