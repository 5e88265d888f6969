"""Short reviews whose important words are known: `sentence(seed)`.

Each says something of one or two things, by a word that is good or bad; a negation in front of it turns it around, an
adverb of degree makes it weigh more or less.  The label is the sign of the sum.  All else says nothing about the label.
"""

from __future__ import annotations

import random
from dataclasses import dataclass


def _words(text: str) -> list[str]:
    return text.split()


LABELS = ("negative", "positive")
GOOD = _words(
    """
    good great lovely charming brilliant wonderful delightful moving gripping excellent funny clever
    warm fresh memorable beautiful superb enjoyable honest thoughtful graceful tender inventive dazzling
    """
)
BAD = _words(
    """
    bad awful dull boring terrible tedious clumsy shallow weak bland annoying ugly predictable stale
    lifeless hollow horrible messy pointless dreadful forgettable tiresome sloppy cold
    """
)
NEGATIONS = ("not", "never", "hardly", "isn't", "wasn't")
DEGREES = {"very": 2.0, "truly": 2.0, "extremely": 2.0, "slightly": 0.5, "somewhat": 0.5, "": 1.0}
THINGS = _words(
    """
    film story plot music acting cast script ending dialogue song book novel chapter concert play scene
    meal soup service room hotel garden view trip show series camera picture
    """
)
OPENINGS = (
    "yesterday we went to town and saw it", "my brother gave it to me in march", "i had read about it in the paper",
    "we were four at the table", "it was raining when we arrived", "the tickets came by post", "",
    "a friend from the office told me about it", "it lasts two hours and ten minutes", "we sat in the third row",
    "", "",
)  # fmt: skip
CLOSINGS = (
    "we took the bus home", "the shop is on the corner", "it was late by then", "my sister came along", "", "",
    "the others had left before us", "i wrote this on the train", "it costs nine pounds", "we will see what comes next",
    "",
)  # fmt: skip


@dataclass(frozen=True)
class Sentence:
    """words: of the text, parted by spaces in it.  important: which of them make the label (sentiment and negation)."""

    words: tuple[str, ...]
    label: int
    important: tuple[bool, ...]

    @property
    def text(self) -> str:
        return " ".join(self.words)


def sentence(seed: int) -> Sentence:
    """The same one every time for a seed."""
    rng = random.Random(seed)
    while True:
        words: list[tuple[str, bool]] = [(w, False) for w in rng.choice(OPENINGS).split()]
        words += [(".", False)] * bool(words)
        total = 0.0
        for clause in range(rng.choice((1, 1, 2))):
            said, value = _clause(rng)
            words += [(rng.choice(("and", "but")), False)] * clause + said
            total += value
        closing = rng.choice(CLOSINGS).split()
        words += [(".", False), *((w, False) for w in closing), *[(".", False)] * bool(closing)]
        if total:
            return Sentence(tuple(w for w, _ in words), int(total > 0), tuple(i for _, i in words))


def _clause(rng: random.Random) -> tuple[list[tuple[str, bool]], float]:
    """Its words, each with whether it matters, and what it adds."""
    sign = rng.choice((-1.0, 1.0))
    word = rng.choice(GOOD if sign > 0 else BAD)
    degree = rng.choice(list(DEGREES))
    negation = rng.choice(NEGATIONS) if rng.random() < 0.35 else ""
    start = [("the", False), (rng.choice(THINGS), False)]
    verb = [] if negation.endswith("n't") else [(rng.choice(("is", "was", "seemed")), False)]
    middle = [(negation, True)] * bool(negation) + [(degree, False)] * bool(degree)
    return [*start, *verb, *middle, (word, True)], sign * DEGREES[degree] * (-1 if negation else 1)
