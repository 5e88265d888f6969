"""Words: where they stand in a text, whatever tokenizer cut it up."""

from __future__ import annotations

import unicodedata
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Piece:
    """A token as the tokenizer writes it, and its characters start…end in a segment, none if it was added."""

    token: str
    segment: int
    start: int
    end: int


UNSPACED = ("CJK", "HIRAGANA", "KATAKANA")  # scripts written without spaces: each character stands for itself
APOSTROPHES = "'’"


def find_words(text: str) -> list[tuple[int, int]]:
    """Return (start, end) of each word in a text.

    A word is a run of anything but spaces and punctuation, with apostrophes between letters.  Each punctuation mark,
    symbol and character of an unspaced script is a word of its own.
    """
    words: list[tuple[int, int]] = []
    open_word = False
    for i, c in enumerate(text):
        alone = unicodedata.category(c)[0] in "PS" or unicodedata.name(c, "").startswith(UNSPACED)
        if c in APOSTROPHES and open_word and text[i + 1 : i + 2].isalpha():
            alone = False
        if c.isspace():
            open_word = False
        elif open_word and not alone:
            words[-1] = (words[-1][0], i + 1)
        else:
            words.append((i, i + 1))
            open_word = not alone
    return words


def words_of(segments: Sequence[str], pieces: Sequence[Piece]) -> list[tuple[int, int, int] | None]:
    """Return for each piece the word (segment, start, end) that it begins in, spaces aside; None if there is none."""
    words = [find_words(text) for text in segments]

    def word(p: Piece) -> tuple[int, int, int] | None:
        text = segments[p.segment]
        start = next((i for i in range(p.start, p.end) if not text[i].isspace()), p.end)
        at = bisect_right(words[p.segment], (start, len(text) + 1)) - 1
        if start == p.end or at < 0 or start >= words[p.segment][at][1]:
            return None
        return (p.segment, *words[p.segment][at])

    return [word(p) for p in pieces]
