"""Questions: what is asked about one text, by what the model says of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fxlrp.errors import FxlrpError
from fxlrp.text.attribution import WAYS, Asked
from fxlrp.text.encode import Encoded
from fxlrp.text.tasks import Task, best_span, find_label, find_vocabulary_word, labels_of
from fxlrp.text.words import words_of

Name = str | int
Score = Callable[[Any], Tensor]
OF_CLASSES = (Task.CLASSES, Task.TOKEN_CLASSES)
NOT_NAMED = (None, "default", *WAYS)
"""What a target may be set against that is no class, word or token."""
AT_TOKENS = (Task.TOKEN_CLASSES, Task.MASKED)


@dataclass(frozen=True)
class Row:
    """One question about one text.

    target, contrast: class indices, or what `fxlrp.Explainer` takes.  at: the position in the output, None for all.
    asked: the same by names.  output: the name of the output that is asked about, where the model has several.
    """

    target: Any
    contrast: Any
    at: int | None
    asked: Asked
    output: str | None = None


def rows_of(
    task: Task,
    model: nn.Module,
    tokenizer: Any,
    text: Encoded,
    outputs: Mapping[str, Tensor],
    target: Any,
    contrast: Any,
    position: Name | None,
) -> list[Row]:
    """Return what is asked about one text.

    outputs: what the model says of it, without the axis of the batch.  The others are as in `fxlrp.text.explain`.

    Raises FxlrpError for names that the model does not know, and for a position that is not in the text.
    """
    if position is not None and (callable(target) or task in (Task.CLASSES, Task.SPAN)):
        what = "a target that is a callable" if callable(target) else f"this model, which gives {task.value}"
        raise FxlrpError(f"position={position!r} is for a score at each token, not for {what}; leave it out.")
    if callable(target):
        return [Row(target, None, None, Asked("a score", None, None))]
    targets = list(target) if isinstance(target, list | tuple) else [target]
    if not targets:
        raise FxlrpError("target is an empty list; give at least one, or None for what the model says itself.")
    if task is Task.SPAN:
        return [row for t in targets for row in _span_rows(text, outputs, t, contrast)]
    logits = outputs["logits"]
    size = logits.shape[-1]
    labels = labels_of(model, size) if task in OF_CLASSES else None

    def index(wanted: Name) -> int:
        return find_label(wanted, labels) if labels else find_vocabulary_word(wanted, tokenizer, size)

    def name(i: int) -> str:
        return labels[i] if labels else word_of(tokenizer, i)

    rows = []
    for at in [None] if task is Task.CLASSES else _places(task, tokenizer, text, position):
        scores = logits if at is None else logits[at]
        for wanted in targets:
            i = int(scores.argmax()) if wanted is None else index(wanted)
            against = contrast if contrast in NOT_NAMED else index(contrast)
            if isinstance(against, int) and against == i and wanted is None:  # "why not this?" when it is the top one
                i = int(scores.masked_fill(torch.arange(size, device=scores.device) == i, float("-inf")).argmax())
            token, against_name = at if task in AT_TOKENS else None, contrast_name(against, name)
            rows.append(Row(i, against, at, Asked(name(i), against_name, token=token)))
    return rows


def contrast_name(contrast: Any, name: Callable[[int], str]) -> str | None:
    """Return the name of a contrast: that of a class, or "default", "others", "softmax" or None as they are."""
    return name(contrast) if isinstance(contrast, int) else contrast


def word_of(tokenizer: Any, token: int) -> str:
    """Return what a token of the vocabulary stands for, or its name where that can't be seen."""
    word = str(tokenizer.decode([token])).strip()
    return word if word.isprintable() and word else str(tokenizer.convert_ids_to_tokens(token))


def _places(task: Task, tokenizer: Any, text: Encoded, position: Name | None) -> list[int | None]:
    """Return the positions in the output that are asked about.  Raises FxlrpError for one that is not in the text."""
    n = len(text.ids)
    if task is Task.DECODED:
        if position is not None:
            raise FxlrpError("position is for outputs with a score per token of the text; the decoder has only begun.")
        return [0]
    if isinstance(position, str):
        span = text.find(position, range(len(text.segments)))
        if span is None:
            raise FxlrpError(f"position={position!r} is not in the text.")
        return [span[0]]
    if position is not None:
        if not -n <= position < n:
            raise FxlrpError(f"position={position} is out of range: the text has {n} tokens.")
        return [position % n]
    if task is Task.NEXT:
        return [n - 1]
    if task is Task.MASKED:
        masked = [i for i, token in enumerate(text.ids) if token == tokenizer.mask_token_id]
        if not masked:
            raise FxlrpError(
                f"The model fills in masked words and the text has no {tokenizer.mask_token or 'mask'}: write it where "
                "the word in question stands, or give position."
            )
        return list(masked)
    words = words_of(text.segments, text.pieces)
    return [i for i, word in enumerate(words) if word is not None and word not in words[:i]]


def _span_rows(text: Encoded, outputs: Mapping[str, Tensor], target: Any, contrast: Any) -> list[Row]:
    """Ask why the answer starts where it does, and why it ends there: two rows.

    Raises FxlrpError for an answer, or another to set it against, that is not in the text.
    """
    segments = [*range(1, len(text.segments)), 0]  # the context first

    def place(wanted: Any) -> tuple[int, int]:
        if isinstance(wanted, int):
            if not 0 <= wanted < len(text.ids):
                raise FxlrpError(f"There is no token {wanted}: the text has {len(text.ids)}.")
            return wanted, wanted
        if (span := text.find(str(wanted), segments)) is None:
            raise FxlrpError(f"The answer {wanted!r} is not in the text.")
        return span

    ends = best_span(outputs["start_logits"], outputs["end_logits"], text) if target is None else place(target)
    against = (contrast,) * 2 if contrast in NOT_NAMED else place(contrast)
    rows = []
    for side, i, other in zip(("start", "end"), ends, against, strict=True):
        if isinstance(other, int) and other == i:
            raise FxlrpError(f"The answer and what it is set against {side} at the same token; give others.")
        asked = Asked(f"{side}: {text.text_of(i)}", contrast_name(other, text.text_of), token=i)
        rows.append(Row(i, other, None, asked, f"{side}_logits"))
    return rows
