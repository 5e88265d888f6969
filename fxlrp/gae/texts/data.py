"""Texts to evaluate on, and what people marked in them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fxlrp.errors import FxlrpError
from fxlrp.gae.data import count_of


@dataclass(frozen=True)
class Sample:
    """One text of a data set.

    pair: the second text, for models that read two.  label: of the text, if known.
    continuation: what comes behind the text, whose probability is explained, for models that write.
    rationale: which of the text's words, as spaces part them, people marked as the reason of its label.
    name: what it is called in the results, if anything.
    """

    text: str
    pair: str | None = None
    label: int | str | None = None
    continuation: str | None = None
    rationale: tuple[bool, ...] | None = None
    name: str | None = None


class Texts:
    """A data set of any kind as samples: of texts, (text, label), or dicts of what a `Sample` holds.

    A dict's `text` may be a list of words; `rationale` is a truth value for each word, or spans (see `marked`).

    Raises FxlrpError for a data set without length or items, and, at a sample, for one that is odd.
    """

    def __init__(self, dataset: Any, limit: int | None = None) -> None:
        self.dataset, self.count = dataset, count_of(dataset, limit)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> Sample:
        item = self.dataset[i]
        if isinstance(item, Sample):
            return item
        if not isinstance(item, Mapping):
            item = dict(zip(("text", "label"), item if isinstance(item, tuple | list) else (item,), strict=False))
        text, label = item.get("text"), item.get("label")
        if isinstance(text, list | tuple) and all(isinstance(word, str) for word in text):
            text = " ".join(text)
        for what, value in (("text", text), ("pair", item.get("pair")), ("continuation", item.get("continuation"))):
            if not isinstance(value, str) and (what == "text" or value is not None):
                raise FxlrpError(f"The {what} of sample {i} is a {type(value).__name__}; it should be a text.")
        assert isinstance(text, str)
        if not text.strip():
            raise FxlrpError(f"Sample {i} is empty; leave it out.")
        rationale, name = item.get("rationale"), item.get("name")
        try:
            marks = None if rationale is None else marked(rationale, text)
        except FxlrpError as error:
            raise FxlrpError(f"The rationale of sample {i} can't be read: {error}") from error
        label = label if isinstance(label, str | None) else int(label)
        name = None if name is None else str(name)
        return Sample(text, item.get("pair"), label, item.get("continuation"), marks, name)


def word_spans(text: str) -> list[tuple[int, int]]:
    """Return (start, end) of each word, as spaces part them, in characters."""
    return [m.span() for m in re.finditer(r"\S+", text)]


def marked(rationale: Any, text: str) -> tuple[bool, ...] | None:
    """Return which words of a text, as spaces part them, a rationale marks; None if it marks none.

    rationale: a truth value for each word; or a span or a list of spans, lists of which may be nested: {"start_token",
      "end_token"} in words, as ERASER's evidences (DeYoung et al. 2020, 1911.03429); {"start", "end"} or [start, end]
      in characters; or words of the text.  Ends are behind the last.

    Raises FxlrpError for anything else, and for spans that are not in the text.
    """
    spans = word_spans(text)
    if isinstance(rationale, list | tuple) and rationale and all(type(m) in (int, bool, float) for m in rationale):
        marks = all(0 <= m <= 1 for m in rationale)
        if marks and len(rationale) == len(spans):
            return _unless_empty(tuple(m >= 0.5 for m in rationale))
        if len(rationale) != 2:
            raise FxlrpError(f"it has {len(rationale)} marks for {len(spans)} words.")
    words = [False] * len(spans)
    for start, end in _intervals(rationale, text, spans):
        for k, (a, b) in enumerate(spans):
            words[k] |= max(a, start) < min(b, end)
    return _unless_empty(tuple(words))


def _unless_empty(marks: tuple[bool, ...]) -> tuple[bool, ...] | None:
    return marks if any(marks) else None


def _intervals(rationale: Any, text: str, spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the (start, end) in characters of all spans of a rationale."""
    if isinstance(rationale, str):
        at = text.find(rationale)
        if at < 0 or not rationale:
            raise FxlrpError(f"{rationale!r} is not in the text.")
        return [(at, at + len(rationale))]
    if isinstance(rationale, Mapping):
        if {"start_token", "end_token"} <= rationale.keys():
            first, last = rationale["start_token"], rationale["end_token"]
            if not all(type(v) is int for v in (first, last)):
                raise FxlrpError(f"words {first!r} to {last!r} are no numbers of words.")
            if not 0 <= first < last <= len(spans):
                raise FxlrpError(f"words {first} to {last} are not among its {len(spans)}.")
            return [(spans[first][0], spans[last - 1][1])]
        if {"start", "end"} <= rationale.keys():
            rationale = [rationale["start"], rationale["end"]]
    if isinstance(rationale, list | tuple):
        if len(rationale) == 2 and all(type(v) is int for v in rationale):
            start, end = rationale
            if not 0 <= start < end <= len(text):
                raise FxlrpError(f"characters {start} to {end} are not among its {len(text)}.")
            return [(start, end)]
        return [interval for part in rationale for interval in _intervals(part, text, spans)]
    raise FxlrpError(f"a {type(rationale).__name__} is neither marks of words nor spans.")
