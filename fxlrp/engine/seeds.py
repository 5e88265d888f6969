"""Turns a question about the output into the seed that the relevance pass starts with.

A target and a contrast define a direction v over the logits [B, K]: one-hot(target) on one side and, with a contrast,
the weights of the classes it is set against on the other.  The rulebook's `seed` says how v becomes relevance.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fxlrp.errors import FxlrpError
from fxlrp.rules.per_sample import SampleAxis, along_samples, sample_sum
from fxlrp.rules.quantities import ratio

Target = None | int | Sequence[int] | Tensor | Callable[[Any], Tensor]
Contrast = None | int | str
Position = None | int | Sequence[int] | Tensor
Given = None | Mapping[str, Any] | Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Question:
    """A question about the output: why `target` and not `contrast`?

    position: the position in a sequence of logits [B, T, K] (one for all or one per sample [B], from the end if
    negative), or (y, x) in a map of logits [B, K, H, W].  A contrast of "default": see `Rulebook.resolve`.
    given: what relevance has to pass inside: a condition, or a list of K of them, which are asked apart; of these,
    at_once: how many go through one pass, which bounds its memory."""

    target: Target = None
    contrast: Contrast = "default"
    position: Position = None
    given: Given = None
    at_once: int | None = None


def at_position(rows: Tensor, position: Position) -> Tensor:
    """The logits [B, K] at a position of a sequence [B, T, K] or map [B, K, H, W] of logits; unchanged if `position` is
    None.

    Raises FxlrpError if there is no such position, or no sequence or map.
    """
    if position is None:
        return rows
    batch, *places = rows.shape[:2] if rows.ndim == 3 else (len(rows), *rows.shape[2:])
    index = torch.as_tensor(position, device=rows.device)
    if rows.ndim < 3:
        shape = tuple(rows.shape)
        raise FxlrpError(
            f"position={position} is one in a sequence, but the explained output has shape {shape}, whose rows are "
            "explained each by itself: leave it out, or, if they are places of one sample, convert(…, batch=None)."
        )
    if rows.ndim == 3:
        index = index[..., None] if index.ndim == 0 or len(index) == batch else index
    if index.dtype.is_floating_point or index.shape not in ((len(places),), (batch, len(places))):
        one = "a position" if len(places) == 1 else f"{len(places)} numbers, one for each of its axes {tuple(places)},"
        raise FxlrpError(f"position must be None, {one} or a tensor of one position per sample.")
    sizes = torch.tensor(places, device=rows.device)
    if ((index < -sizes) | (index >= sizes)).any():
        available = f"{places[0]} positions" if len(places) == 1 else f"positions {tuple(places)}"
        raise FxlrpError(f"position={position} is out of range: the explained output has {available}.")
    indices = (torch.arange(batch, device=rows.device), *index.long().expand(batch, -1).unbind(1))
    return (rows if rows.ndim == 3 else rows.movedim(1, -1))[indices]


def directions(
    logits: Tensor, target: int | Sequence[int] | Tensor | None, contrast: Contrast
) -> tuple[list[tuple[Tensor, Tensor | None]], Tensor | None]:
    """The weights of the logits for and against each requested class of a sample; and the class indices, or None.

    Raises FxlrpError for a target or contrast that does not fit the logits.
    """
    logits = logits.detach()
    if isinstance(target, Tensor) and target.is_floating_point():
        return [(_weights_of(logits, target), None)], None
    index = _index(logits, target)
    if isinstance(contrast, int | np.integer) and not isinstance(contrast, bool):
        contrast = int(_index(logits, int(contrast))[0])
        if (index == contrast).any():
            raise FxlrpError(f"Target and contrast are both class {contrast}; set the target against another class.")
    elif contrast not in (None, "others", "softmax"):
        raise FxlrpError(f"contrast={contrast!r} is not None, 'others', 'softmax' or a class index.")
    columns = index.unbind(1) if index.ndim == 2 else (index,)
    return [sides(logits, column, contrast) for column in columns], index


def by_classes(target: Target) -> bool:
    """Whether a target is one or more classes, or the top one."""
    return not (callable(target) or (isinstance(target, Tensor) and target.is_floating_point()))


def class_numbers(target: object) -> Tensor:
    """A target of classes as a tensor.  Raises FxlrpError for names."""
    try:
        return torch.as_tensor(target)
    except (TypeError, ValueError, RuntimeError) as error:
        raise FxlrpError(
            f"target={target!r} is no number of a class, nor several; give the class as a number."
        ) from error


def sides(logits: Tensor, index: Tensor, contrast: Contrast) -> tuple[Tensor, Tensor | None]:
    """One-hot(index) [B, K], and the weights of the classes it is set against."""
    classes = torch.arange(logits.shape[1], device=index.device)
    onehot = (index[:, None] == classes).to(logits.dtype)  # F.one_hot would leave its index check in traces
    if contrast is None:
        return onehot, None
    if contrast == "others":  # CLRP: the mean of all other classes
        return onehot, (1 - onehot) / max(logits.shape[1] - 1, 1)
    if contrast == "softmax":  # SGLRP: all other classes by their probability
        return onehot, logits.masked_fill(onehot.bool(), float("-inf")).softmax(1).nan_to_num(0)
    return onehot, (classes == int(contrast)).to(logits.dtype).expand_as(onehot)


def _index(logits: Tensor, target: int | Sequence[int] | Tensor | None) -> Tensor:
    if logits.ndim != 2:
        where = {
            3: "position=0 (the row that is asked about) and a class, or by ",
            4: "position=(0, 0) (a point of the map) and a class, or by ",
        }
        raise FxlrpError(
            f"The explained output has shape {tuple(logits.shape)}, not [batch, classes]: say what to explain by "
            f"{where.get(logits.ndim, '')}a callable target that returns a score per sample, as "
            "lambda out: out[:, 0].flatten(1).mean(1) does."
        )
    if logits.is_complex():
        raise FxlrpError(
            "The explained output is complex, and of complex numbers none is the largest: convert a module that calls "
            "this one and returns real numbers, as its output's .abs(), .real or .angle()."
        )
    if target is None:
        return logits.argmax(1)
    index = class_numbers(target).to(logits.device)
    if index.dtype.is_floating_point or index.dtype in (torch.bool, torch.complex64) or index.ndim > 2:
        raise FxlrpError(
            "target must be None, a class index, a list of them, a tensor of one index per sample [B] or several "
            "[B, K], or a callable."
        )
    if isinstance(target, Sequence):
        index = index.expand(len(logits), -1)
    if index.ndim and len(index) != len(logits):
        raise FxlrpError(f"target has {len(index)} entries for a batch of {len(logits)}.")
    index = index.long() if index.ndim else index.long().expand(len(logits))
    if ((index < 0) | (index >= logits.shape[1])).any():
        wrong = next(i for i in index.tolist() if not 0 <= i < logits.shape[1])
        raise FxlrpError(
            f"Target {wrong} is out of range: the model has {logits.shape[1]} classes, 0 to {logits.shape[1] - 1}."
        )
    return index


def _weights_of(logits: Tensor, v: Tensor) -> Tensor:
    if v.shape != logits.shape:
        raise FxlrpError(
            f"The target's weights have shape {tuple(v.shape)}, the explained output {tuple(logits.shape)}."
        )
    return v.to(logits.dtype)


def relevance_at_output(kind: str, logits: Tensor, v: Tensor) -> Tensor:
    """The cotangent g at the logits, R = z g, for a direction v.

    "relevance": R = v (published).  "share": R = |z| v, scaled to Σ|R| = Σ|v| for each sign of v, so that no class
    weighs more for having a logit near zero.  "gradient": g = v.
    """
    logits = logits.detach()
    if kind == "gradient":
        return v
    s = v if kind == "share" else ratio(v, logits.abs())
    if kind == "relevance":
        return s * logits.sign()
    batch = SampleAxis(0)
    total = torch.zeros_like(v)
    for part in (v.clamp(min=0), v.clamp(max=0)):
        size = ratio(sample_sum(part.abs(), batch), sample_sum((part * logits).abs(), batch))
        total = total + part * along_samples(size, part, batch)
    return total * logits.sign()
