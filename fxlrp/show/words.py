"""What an attribution is of, in words: the class, its probability, what it was set against, the rulebook."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from fxlrp.attribution import Attribution

AGAINST = {"others": "against the others", "softmax": "against the others by probability"}


def name_of(labels: Sequence[str], k: int) -> str:
    """The name of class k, or `class 7`."""
    return labels[k] if k < len(labels) else f"class {k}"


def probabilities(logits: Tensor) -> Tensor:
    """The softmax of logits [K], or what they are if they add up to 1; of a single logit its sigmoid."""
    logits = logits.float()
    if len(logits) == 1:
        return logits.sigmoid()
    are_probabilities = bool((logits >= 0).all()) and abs(float(logits.sum()) - 1) < 1e-4
    return logits if are_probabilities else logits.softmax(0)


def likeliest(a: Attribution, index: int = 0, most: int = 5) -> list[tuple[int, str, float]]:
    """The likeliest classes of a sample with logits [B, K]: their places, names and probabilities."""
    chances = probabilities(a.logits[index])
    best = chances.topk(min(most, len(chances))).indices.tolist()
    return [(k, name_of(a.labels, k), float(chances[k])) for k in best]


def classes_of(a: Attribution, index: int) -> list[int]:
    """The classes that were explained of a sample; none where the target was no class."""
    return [] if a.target is None else a.target[index].reshape(-1).tolist()


def headline(a: Attribution, index: int = 0, k: int = 0) -> str:
    """The class and its probability: `ring, 97.5 %`, or `the score` of a target that is no class."""
    if a.given:
        through = a.given[k] if isinstance(a.given, tuple) else a.given
        return f"{headline(replace(a, given=''), index)}, through {through}"
    classes = classes_of(a, index)
    if not classes:
        return "the score"
    name = name_of(a.labels, classes[k])
    if a.logits.ndim != 2 or index >= len(a.logits):
        return name
    return f"{name}, {100 * float(probabilities(a.logits[index])[classes[k]]):.1f} %"


def against(a: Attribution) -> str:
    """What the target was set against; nothing where there was no contrast, or no other class."""
    contrast = a.contrast
    if contrast is None or a.target is None or a.logits.shape[-1] == 1:
        return ""
    return AGAINST[contrast] if isinstance(contrast, str) else f"against {name_of(a.labels, contrast)}"


def small_print(a: Attribution) -> str:
    """The contrast and the rulebook in a line."""
    return " · ".join(filter(None, (against(a), a.rules)))
