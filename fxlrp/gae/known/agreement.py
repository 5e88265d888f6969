"""Agreement of subject and verb: a small causal language model of a generated grammar, "the keys near the cabinet are".

Nouns between subject and verb (attractors) have any number; the subject's is the only cause of the verb's (Linzen et
al. 2016, 1611.01368).  Tokens are read as one-hot vectors, so that what explains numbers explains this model.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot, scaled_dot_product_attention

from fxlrp.gae.known.cases import Case, Known, Row, generator, views
from fxlrp.gae.known.training import Recipe, those_right, trained

NOUNS = ("key", "cabinet", "author", "pilot", "lamp", "river", "horse", "clerk")
VERBS = (("is", "are"), ("runs", "run"), ("falls", "fall"), ("sees", "see"))
PLACES = ("near", "behind", "of", "with")
WORDS = ["<s>", "the", "that", ".", *PLACES]
WORDS += [form for noun in NOUNS for form in (noun, f"{noun}s")]
WORDS += [form for pair in VERBS for form in pair]
NUMBER = {word: i for i, word in enumerate(WORDS)}
FIRST_NOUN, FIRST_VERB = NUMBER["key"], NUMBER["is"]
LONGEST = 16
IGNORED = -100


class Sentence(NamedTuple):
    """A sentence up to its verb, as words' numbers; where its subject and attractors stand; whether it is plural."""

    words: list[int]
    subject: int
    attractors: list[int]
    plural: bool


def _pick(g: torch.Generator, count: int) -> int:
    return int(torch.randint(count, (1,), generator=g))


def _noun(g: torch.Generator, plural: bool) -> int:
    return FIRST_NOUN + 2 * _pick(g, len(NOUNS)) + plural


def sentence(g: torch.Generator, phrases: int, clause: bool = False, opposed: bool = False) -> Sentence:
    """A sentence whose subject is followed by so many phrases "near the NOUN" and, it may be, "that the NOUN VERBs".

    opposed: every noun between has the other number.
    """
    plural = bool(_pick(g, 2))
    words, attractors = [NUMBER["<s>"], NUMBER["the"], _noun(g, plural)], []
    for _ in range(phrases):
        words += [NUMBER[PLACES[_pick(g, len(PLACES))]], NUMBER["the"]]
        attractors.append(len(words))
        words.append(_noun(g, not plural if opposed else bool(_pick(g, 2))))
    if clause:
        inner = bool(_pick(g, 2))
        words += [NUMBER["that"], NUMBER["the"]]
        attractors.append(len(words))
        words += [_noun(g, inner), FIRST_VERB + 2 * _pick(g, len(VERBS)) + inner]
    return Sentence(words, 2, attractors, plural)


def draw(n: int, g: torch.Generator) -> tuple[Tensor, Tensor]:
    """n sentences as one-hot words [n, T, words], and the word that comes next at each place [n, T]."""
    x, following = torch.zeros(n, LONGEST, dtype=torch.long), torch.full((n, LONGEST), IGNORED)
    for row in range(n):
        made = sentence(g, _pick(g, 4), clause=not _pick(g, 4))
        verb = FIRST_VERB + 2 * _pick(g, len(VERBS)) + made.plural
        whole = torch.tensor([*made.words, verb, NUMBER["."]])[: LONGEST + 1]
        x[row, : len(whole) - 1], following[row, : len(whole) - 1] = whole[:-1], whole[1:]
    return one_hot(x, len(WORDS)).float(), following


class Block(nn.Module):
    """Attention to what came before, and two layers."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out, self.heads = nn.Linear(width, 3 * width), nn.Linear(width, width), heads
        self.layers = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.qkv(self.norm1(x)).chunk(3, -1))
        x = x + self.out(scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return x + self.layers(self.norm2(x))


class LanguageModel(nn.Module):
    """One-hot words [n, T, words] → the scores of the next word at each place [n, T, words]."""

    def __init__(self, width: int = 48, depth: int = 2) -> None:
        super().__init__()
        self.embed = nn.Linear(len(WORDS), width, bias=False)
        self.position = nn.Parameter(0.02 * torch.randn(LONGEST, width))
        self.blocks = nn.Sequential(*(Block(width, 4) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, len(WORDS))

    def body(self, x: Tensor) -> Tensor:
        """What the scores are read from, [n, T, width]."""
        return self.norm(self.blocks(self.embed(x) + self.position[: x.shape[1]]))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


class NumberOfVerb(nn.Module):
    """Which number the next verb has, [n, 2]: the score of "is" less that of "are", and the reverse.

    The difference is one of weights, so that no rule has to know what a subtraction of scores stands for.
    """

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.model, self.gap = model, nn.Linear(model.head.in_features, 2)
        with torch.no_grad():
            for ours, theirs in ((self.gap.weight, model.head.weight), (self.gap.bias, model.head.bias)):
                singular, plural = theirs[FIRST_VERB], theirs[FIRST_VERB + 1]
                ours.copy_(torch.stack([singular - plural, plural - singular]))

    def forward(self, x: Tensor) -> Tensor:
        return self.gap(self.model.body(x)[:, -1])


def next_word(scores: Tensor, following: Tensor) -> Tensor:
    """The loss of a language model."""
    return cross_entropy(scores.flatten(0, 1), following.flatten(), ignore_index=IGNORED)


def measure(relevance: Tensor, subject: Tensor, attractors: Tensor) -> list[Row]:
    """Of relevance [n, T, words]: whether the subject has most of all words, its part of all that is positive, and
    whether it has more than each attractor."""
    rows = []
    for i, r in enumerate(relevance.sum(2)):
        up, at = r.relu(), subject[i]
        mass = float(up[at] / up.sum()) if up.sum() else 0.0
        above = bool(r[at] > r[attractors[i]].max())
        rows.append({"sample": i, "pointing": float(r.argmax() == at), "mass": mass, "above": float(above)})
    return rows


def _swapped(ids: Tensor, places: Tensor) -> Tensor:
    """Sentences [n, T] in which the nouns at places [n, k] have the other number."""
    nouns = ids.gather(1, places)
    return ids.scatter(1, places, FIRST_NOUN + (nouns - FIRST_NOUN).bitwise_xor(1))


def build(phrases: int, seed: int, folder: Path | None, steps: int, samples: int) -> Known:
    """The language model, and sentences with so many attractors, all of the other number, that it gets right."""
    recipe = Recipe("agreement", LanguageModel, lambda g: draw(64, g), steps, loss=next_word)
    language_model = trained(recipe, seed, folder)
    assert isinstance(language_model, LanguageModel)
    model = NumberOfVerb(language_model).eval().requires_grad_(False)
    g = generator(seed, "agreement", phrases)
    made = [sentence(g, phrases, opposed=True) for _ in range(2 * samples)]
    ids = torch.tensor([s.words for s in made])
    target = torch.tensor([int(s.plural) for s in made])

    def named(words: Tensor) -> Tensor:
        with torch.no_grad():
            return model(one_hot(words, len(WORDS)).float()).argmax(1)

    subject, attractors = torch.tensor([[s.subject] for s in made]), torch.tensor([s.attractors for s in made])
    before = named(ids)
    facts = {
        "accuracy": float((before == target).double().mean()),
        "changed with the subject": float((named(_swapped(ids, subject)) != before).double().mean()),
        "changed with the attractors": float((named(_swapped(ids, attractors)) != before).double().mean()),
    }
    x = one_hot(ids, len(WORDS)).float()
    right = those_right(model, x, target, samples)
    x = x[right]
    truth = torch.zeros_like(x).scatter(1, subject[right, :, None].expand(-1, 1, x.shape[2]), 1.0) * x
    score = partial(measure, subject=subject[right, 0], attractors=attractors[right])
    return Known(model, views(x, target[right], truth), score, facts)


def cases(seed: int, folder: Path | None = None, samples: int = 50, steps: int = 700) -> list[Case]:
    """Sentences with one, two and three attractors."""
    names = {1: "one attractor", 2: "two attractors", 3: "three attractors"}
    return [Case("agreement", name, partial(build, k, seed, folder, steps, samples)) for k, name in names.items()]
