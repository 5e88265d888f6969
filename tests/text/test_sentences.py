"""The embedded text network: relevance must land on the words that make the label."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

import fxlrp
from fxlrp.inputs import load_model
from fxlrp.text import explain
from fxlrp.text.command import load_tokenizer

EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))
sentences = pytest.importorskip("sentences")

FIRST_SEED = 10_000_000  # training takes smaller ones


def test_the_same_sentence_every_time() -> None:
    assert sentences.sentence(7) == sentences.sentence(7) != sentences.sentence(8)


def test_relevance_finds_the_words_that_matter() -> None:
    folder = str(EXAMPLES / "text")
    model, tokenizer = load_model(folder).module, load_tokenizer(folder)
    made = [sentences.sentence(FIRST_SEED + i) for i in range(60)]
    labels = [sentences.LABELS[s.label] for s in made]
    found = {}
    for rules in ("abslrp-hybrid", "gradient-input"):
        explainer = fxlrp.convert(model, rules=rules)
        hits, right = [], []
        for a, s, label in zip(explain(explainer, tokenizer, [s.text for s in made]), made, labels, strict=True):
            right.append(a.asked[0].target == label)
            words, scores = [w for w, _ in a.words], torch.tensor([r for _, r in a.words])
            assert words == list(s.words)
            important = torch.tensor(s.important)
            hits.append(bool(important[scores.abs().argmax()]))
        assert sum(right) >= 0.95 * len(right)
        found[rules] = sum(hits) / len(hits)
    assert found["abslrp-hybrid"] >= 0.8
    assert found["abslrp-hybrid"] >= found["gradient-input"]
