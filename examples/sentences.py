"""Short reviews whose important words are known: `sentence(seed)`.

Each says something of one or two things, by a word that is good or bad, which a negation in front of it turns around.
All else says nothing about the label.
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
DEGREES = ("very", "truly", "extremely", "quite", "", "", "")
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
    label = rng.randrange(2)
    words: list[tuple[str, bool]] = [(w, False) for w in rng.choice(OPENINGS).split()]
    words += [(".", False)] * bool(words)
    for clause in range(rng.choice((1, 1, 2))):
        words += [("and", False)] * clause + _clause(rng, label)
    closing = rng.choice(CLOSINGS).split()
    words += [(".", False), *((w, False) for w in closing), *[(".", False)] * bool(closing)]
    return Sentence(tuple(w for w, _ in words), label, tuple(i for _, i in words))


def _clause(rng: random.Random, label: int) -> list[tuple[str, bool]]:
    """Its words, each with whether it matters."""
    negation = rng.choice(NEGATIONS) if rng.random() < 0.4 else ""
    word = rng.choice((BAD, GOOD)[label ^ bool(negation)])
    degree = rng.choice(DEGREES)
    verb = [] if negation.endswith("n't") else [(rng.choice(("is", "was", "seemed")), False)]
    middle = [(negation, True)] * bool(negation) + [(degree, False)] * bool(degree)
    return [("the", False), (rng.choice(THINGS), False), *verb, *middle, (word, True)]
