"""Texts: tokens and words, every task, padding, names, and several questions from one forward pass."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

import fxlrp
from fxlrp.text import TextAttribution, explain, generate
from fxlrp.text.words import find_words

from .models import bert, byte_level, decoder_only, encoder_decoder, wordpiece

TEXTS = ["A dull mess!", "It isn't a gripping film, but it is unforgettably acted.", "Ada lives in Paris"]
LABELS = {0: "bad", 1: "good", 2: "so so"}


@pytest.fixture(scope="module")
def words():
    return wordpiece()


@pytest.fixture(scope="module")
def classifier(words):
    return fxlrp.convert(bert("SequenceClassification", words, id2label=LABELS).double(), rules="abslrp-hybrid")


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool((a - b).abs().max() <= 1e-5 * b.abs().max())


def test_words_whatever_the_tokenizer() -> None:
    text = "It isn't state-of-the-art, “naïve” 東京 हिन्दी 3.5 'quoted'"
    assert [text[a:b] for a, b in find_words(text)] == [
        *("It", "isn't", "state", "-", "of", "-", "the", "-", "art", ",", "“", "naïve", "”", "東", "京", "हिन्दी"),
        *("3", ".", "5", "'", "quoted", "'"),
    ]


@pytest.mark.parametrize("kind", ["wordpiece", "byte level"])
def test_words_are_sums_of_their_tokens(kind: str, words, classifier) -> None:
    tokenizer = words if kind == "wordpiece" else byte_level()
    model = classifier if kind == "wordpiece" else decoder_only("gpt2", tokenizer)
    a = explain(model, tokenizer, TEXTS[1])
    shown = [w for w, _ in a.words]
    assert shown == [TEXTS[1][i:j] for i, j in find_words(TEXTS[1])]
    inside = [i for i, p in enumerate(a.pieces) if p.end > p.start]
    assert len(inside) > len(shown)  # some word has several tokens
    assert close(sum(r for _, r in a.words), a.scores[inside].sum())
    assert len(a.tokens) == len(a.scores)


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama", "t5", "bart"])
def test_padded_batch_equals_each_alone(kind: str, words, classifier) -> None:
    tokenizer = words if kind == "bert" else byte_level(bos="<s>" if kind == "llama" else None)
    if kind == "bert":
        model = classifier
    elif kind in ("gpt2", "llama"):
        model = fxlrp.convert(decoder_only(kind, tokenizer), rules="attnlrp")
    else:
        model = fxlrp.convert(encoder_decoder(kind, tokenizer), rules="attnlrp")
    together = explain(model, tokenizer, TEXTS)
    assert len({len(a.tokens) for a in together}) > 1
    for text, a in zip(TEXTS, together, strict=True):
        alone = explain(model, tokenizer, text)
        assert alone.tokens == a.tokens
        assert alone.asked[0].target == a.asked[0].target
        assert close(a.scores, alone.scores)
        assert a.scores.abs().max() > 0


def test_any_length_goes_through_one_graph(words, classifier) -> None:
    explain(classifier, words, TEXTS[1])
    latest = classifier.latest
    for text in ("dull dull dull film", " ".join(TEXTS)):
        explain(classifier, words, text)
        assert classifier.latest is latest


@pytest.mark.every(3)
@pytest.mark.parametrize("rules", ["abslrp", "attnlrp"])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_any_length_gives_what_each_gives(kind: str, rules: str) -> None:
    """Where a length is folded into the batch (GPT-2's products), there is a graph for each."""
    tokenizer = byte_level()
    model = decoder_only(kind, tokenizer)
    several = fxlrp.convert(model, rules=rules)
    for text in TEXTS[:2]:
        fresh = explain(model, tokenizer, text, rules=rules)
        assert close(explain(several, tokenizer, text).scores, fresh.scores)


def test_labels_by_name(words, classifier) -> None:
    a = explain(classifier, words, TEXTS[0], target=["GOOD", "so so", 0], contrast="softmax")
    assert [q.target for q in a.asked] == ["good", "so so", "bad"]
    assert sum(q.probability or 0 for q in a.asked) == pytest.approx(1, rel=1e-5)
    assert [q.score for q in a.asked] == [None] * 3
    assert a.matrix.shape == (3, len(a.tokens))
    one = explain(classifier, words, TEXTS[0], target="so so", contrast="softmax")
    assert close(one.scores, a["so so"].scores)
    x = words(TEXTS[0], return_tensors="pt")
    direct = classifier(**x, target=2, contrast=1)
    assert close(explain(classifier, words, TEXTS[0], target=2, contrast="good").scores, _ids(direct)[0])
    with pytest.raises(fxlrp.FxlrpError, match=r"no label 'goood' \(did you mean good\?\); .* bad, good, so so"):
        explain(classifier, words, TEXTS[0], target="goood")
    with pytest.raises(fxlrp.FxlrpError, match="both class 1"):
        explain(classifier, words, TEXTS[0], target="good", contrast="good")
    with pytest.raises(fxlrp.FxlrpError, match="there are good, so so, bad"):
        a["ugly"]


def _ids(a: fxlrp.Attribution) -> torch.Tensor:
    every = a.relevance if isinstance(a.relevance, tuple) else (a.relevance,)
    return next(r for name, r in zip(a.names, every, strict=True) if "input_ids" in name)


def test_pair_and_callable(words, classifier) -> None:
    a = explain(classifier, words, "a dull mess", pair="Paris!", target=lambda out: out.logits[:, 1])
    assert a.asked[0].target == "a score"
    assert [w for w, _ in a.words] == ["a", "dull", "mess", "Paris", "!"]


def test_token_classification(words) -> None:
    model = fxlrp.convert(bert("TokenClassification", words, id2label=LABELS), rules="attnlrp")
    every = explain(model, words, TEXTS[2])
    assert [every.tokens[q.token] for q in every.asked] == ["ada", "lives", "in", "paris"]
    one = explain(model, words, TEXTS[2], position="Paris", target=every.asked[3].target)
    assert close(one.scores, every[3].scores)
    with pytest.raises(fxlrp.FxlrpError, match="not in the text"):
        explain(model, words, TEXTS[2], position="Rome")


def test_question_answering(words) -> None:
    model = bert("QuestionAnswering", words)
    a = explain(model, words, "Where does Ada live?", pair="Ada lives in Paris!", target="in Paris", contrast="Ada")
    assert [q.target for q in a.asked] == ["start: in", "end: Paris"]
    x = words("Where does Ada live?", "Ada lives in Paris!", return_tensors="pt")
    direct = fxlrp.convert(model, rules="abslrp-hybrid", output="end_logits")(**x, target=a.asked[1].token, contrast=7)
    assert close(a.matrix[1], _ids(direct)[0])
    best = explain(model, words, "Where does Ada live?", pair="Ada lives in Paris!")
    assert all(best.pieces[q.token].segment == 1 for q in best.asked)
    with pytest.raises(fxlrp.FxlrpError, match="'Rome' is not in the text"):
        explain(model, words, "Where?", pair="Ada lives in Paris!", target="Rome")


def test_masked_words(words) -> None:
    """Why Paris and not London."""
    model = fxlrp.convert(bert("MaskedLM", words), rules="abslrp-hybrid")
    text = "The capital of France is [MASK]."
    a = explain(model, words, text, target="Paris", contrast="London")
    b = explain(model, words, text, target="London", contrast="Paris")
    assert a.asked[0].title.startswith("paris, not london")
    assert a.tokens[a.asked[0].token] == "[MASK]"
    assert close(a.scores, -b.scores)  # what spoke for the one spoke against the other
    with pytest.raises(fxlrp.FxlrpError, match=r"has no \[MASK\]"):
        explain(model, words, "The capital of France is Paris.")
    with pytest.raises(fxlrp.FxlrpError, match="not one token"):
        explain(model, words, text, target="parisian")


@pytest.mark.parametrize("kind", ["gpt2", "llama", "t5", "bart"])
def test_generation_is_what_separate_explanations_give(kind: str) -> None:
    tokenizer = byte_level()
    decodes = kind in ("t5", "bart")
    model = fxlrp.convert((encoder_decoder if decodes else decoder_only)(kind, tokenizer), rules="attnlrp")
    a = generate(model, tokenizer, "The capital of France", continuation=" is Paris, and")
    assert [q.target for q in a.asked] == ["is", "Paris", ",", "and"]
    ids = tokenizer(" is Paris, and", add_special_tokens=False)["input_ids"]
    prompt = tokenizer("The capital of France", return_tensors="pt")
    start = getattr(model.model.config, "decoder_start_token_id", None)
    for k, row in enumerate(a.matrix):
        if decodes and k < 2:  # a decoder's text of one or two tokens would want a graph of its own
            continue
        assert a.asked[k].token == len(a.tokens) - 4 + k
        assert not row[a.asked[k].token :].any()  # nothing looks ahead
        before = torch.tensor([ids[:k]], dtype=torch.int64)
        x = {n: prompt[n] for n in ("input_ids", "attention_mask")}
        if decodes:
            x["decoder_input_ids"] = torch.cat([torch.tensor([[start]]), before], 1)
        else:
            x = {n: torch.cat([t, before if n == "input_ids" else torch.ones_like(before)], 1) for n, t in x.items()}
        alone = model(**x, target=ids[k], position=-1)
        every = alone.relevance if isinstance(alone.relevance, tuple) else (alone.relevance,)
        relevance = torch.cat([r[0] for r in every])
        assert close(row[: len(relevance)], relevance)


def test_what_it_writes_itself() -> None:
    tokenizer = byte_level()
    model = fxlrp.convert(decoder_only("llama", tokenizer), rules="attnlrp")
    a = generate(model, tokenizer, TEXTS[2], max_new_tokens=3)
    first = explain(model, tokenizer, TEXTS[2])
    assert 1 <= len(a) <= 3
    assert a.asked[0].probability == pytest.approx(first.asked[0].probability, rel=1e-4)
    assert close(a.scores[: len(first.tokens)], first.scores)


def test_limits(words, classifier) -> None:
    long = "dull " * 100
    with pytest.raises(fxlrp.FxlrpError, match=r"has 102 tokens, the model takes 64: .*truncate"):
        explain(classifier, words, long)
    with pytest.warns(UserWarning, match="38 tokens are left out"):
        a = explain(classifier, words, long, truncate=True)
    assert (len(a.tokens), a.dropped) == (64, 38)
    assert "38 tokens" in a._repr_html_()


def test_errors(words, classifier) -> None:
    for text, said in (("", "empty"), (7, "a text or a list"), (["a", 7], "a str, not int"), ([], "at least one")):
        with pytest.raises(fxlrp.FxlrpError, match=said):
            explain(classifier, words, text)
    with pytest.raises(fxlrp.FxlrpError, match="fast tokenizer"):
        explain(classifier, object(), "a")
    with pytest.raises(fxlrp.FxlrpError, match="2 texts and 1 pairs"):
        explain(classifier, words, ["a", "film"], pair=["dull"])
    with pytest.raises(fxlrp.FxlrpError, match="no logits"):
        explain(bert("SequenceClassification", words).bert, words, "a film")
    with pytest.raises(fxlrp.FxlrpError, match="writes no text"):
        generate(classifier, words, "a film")


def test_html_needs_nothing_else(words, classifier, tmp_path: Path) -> None:
    a = explain(classifier, words, 'a <b>"dull"</b> & gripping film', target=["good", "bad"])
    page = a.to_html(tmp_path / "new" / "a.html").read_text(encoding="utf-8")
    assert not re.search(r"https?:|//[a-z]|\bsrc=|\bhref=|@import|url\(", page)
    assert "<b>" not in page
    assert page.count("<button") == 2
    assert page.count('<span class="t') == len(a.tokens)
    data = json.loads(re.search(r'<script type="application/json">(.*?)</script>', page)[1])
    assert torch.allclose(torch.tensor(data["rows"]), a.matrix, rtol=1e-3, atol=1e-6)
    plain = json.loads(json.dumps(a.to_dict()))
    assert plain["questions"][1]["target"] == "bad"
    assert plain["words"] == [w for w, _ in a.words]
    with pytest.raises(fxlrp.FxlrpError, match="cannot be written"):
        a.to_html(tmp_path)


def test_show(words, classifier) -> None:
    from rich.console import Console

    console = Console(record=True, width=100, force_terminal=True, color_system="truecolor")
    a: TextAttribution = explain(classifier, words, TEXTS[1], target="good")
    a.show(console)
    said = console.export_text(styles=True)
    assert "48;2;" in said  # some background colour
    assert TEXTS[1] in re.sub("\x1b\\[[0-9;]*m", "", said)
