"""What is measured on texts, against its definition written anew, and scikit-learn's and SciPy's."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from text_cases import TEXTS, WORTH, bag
from torch import Tensor, nn

from fxlrp import FxlrpError
from fxlrp.gae.texts import Case, Sample
from fxlrp.gae.texts.case import make_case
from fxlrp.gae.texts.data import Texts
from fxlrp.gae.texts.rationales import agreement, by_word
from fxlrp.gae.texts.removal import SHARES, removal, worth_without
from fxlrp.gae.texts.stability import DRAWS, RADIUS, Shadow, change, correlation, embedding_of
from tests.text.models import T, bert, build, byte_level, decoder_only, encoder_decoder, wordpiece

TEXT = "it is a gripping film, but a mess."


@pytest.fixture(scope="module")
def known() -> tuple[nn.Module, Any]:
    return bag()


def case_of(made: tuple[nn.Module, Any], text: str = TEXT, **more: Any) -> Case:
    return make_case(*made, Sample(text, **more), 0)


def noise(case: Case, seed: int = 0) -> Tensor:
    return torch.randn(len(case.free), generator=torch.Generator().manual_seed(seed))


def test_a_bag_of_words_loses_what_its_words_are_worth(known: tuple[nn.Module, Any]) -> None:
    case = case_of(known)
    tokens = case.text.pieces
    worth = torch.tensor([WORTH.get(p.token, 0.0) if f else 9.0 for p, f in zip(tokens, case.free, strict=True)])
    assert case.predicted == "class 1"
    n, logit = int(case.free.sum()), 2.0 - 1.0
    found = removal(known[0], case, worth, steps=n)
    by = sorted(worth[case.free].tolist(), reverse=True)
    for way in ("hidden", "dropped", "replaced"):
        for name, order in (("morf", by), ("lerf", by[::-1])):
            left = [1 / (1 + math.exp(-(logit - sum(order[:k])))) for k in range(n + 1)]
            assert found[f"{way}_{name}"] == pytest.approx(left)
            area = (sum(left) - (left[0] + left[-1]) / 2) / n
            assert found[f"{way}_{name}_auc"] == pytest.approx(area)
        assert found[f"{way}_abpc"] == pytest.approx(found[f"{way}_lerf_auc"] - found[f"{way}_morf_auc"])

    def p(z: float) -> float:
        return 1 / (1 + math.exp(-z))

    tops = [sum(by[: math.ceil(share * n)]) for share in SHARES]
    assert found["comprehensiveness"] == pytest.approx(np.mean([p(logit) - p(logit - top) for top in tops]))
    assert found["sufficiency"] == pytest.approx(np.mean([p(logit) - p(top) for top in tops]))


NETWORKS: dict[str, Any] = {
    "bert": lambda: (bert("SequenceClassification", t := wordpiece(), num_labels=3), t),
    "gpt2": lambda: (decoder_only("gpt2", t := byte_level()), t),
    "t5": lambda: (encoder_decoder("t5", t := byte_level(eos="</s>")), t),
}


@pytest.fixture(scope="module", params=NETWORKS)
def network(request: pytest.FixtureRequest) -> tuple[nn.Module, Any]:
    model, tokenizer = NETWORKS[request.param]()
    return model.double(), tokenizer


def likelihood(model: nn.Module, tokenizer: Any, ids: list[int], mask: list[int], case: Case) -> float:
    """The class's probability, or the continuation's log-probability, of token ids."""
    inputs = {"input_ids": torch.tensor([ids]), "attention_mask": torch.tensor([mask])}
    new = tokenizer(" Paris, and", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        if case.at is None:
            return float(model(**inputs).logits.softmax(-1)[0, case.target[0]])
        if case.decodes:
            begin = model.config.decoder_start_token_id
            rows = model(**inputs, decoder_input_ids=torch.tensor([[begin, *new[:-1]]])).logits[0]
        else:
            rows = model(**inputs).logits[0, -len(new) - 1 : -1]
        return float(sum(row.log_softmax(0)[token] for row, token in zip(rows, new, strict=True)))


def test_networks_are_asked_about_what_is_left(network: tuple[nn.Module, Any]) -> None:
    model, tokenizer = network
    writes = model.config.model_type != "bert"
    case = case_of(network, continuation=" Paris, and" if writes else None)
    assert case.predicted == (" Paris, and" if writes else f"LABEL_{int(case.target)}")
    ids, free = case.inputs["input_ids"][0].tolist(), case.free.tolist()
    gone = torch.stack([torch.rand(len(free), generator=torch.Generator().manual_seed(i)) < i / 16 for i in range(8)])
    gone &= case.free
    every = list(range(len(ids)))
    for way in ("hidden", "dropped", "replaced"):
        found = worth_without(model, case, gone, way, 3)
        for row, value in zip(gone.tolist(), found, strict=True):
            kept = [i for i in every if way != "dropped" or not row[i]]
            new = [tokenizer.mask_token_id if way == "replaced" and row[i] else ids[i] for i in kept]
            seen = [0 if way == "hidden" and row[i] else 1 for i in kept]
            assert float(value) == pytest.approx(likelihood(model, tokenizer, new, seen, case), abs=1e-9)


def test_of_nothing_one_blank_token_is_left() -> None:
    model, tokenizer = decoder_only("gpt2", t := byte_level()).double(), t
    case = case_of((model, tokenizer), "once upon", continuation=" Paris, and")
    new = tokenizer(" Paris, and", add_special_tokens=False)["input_ids"]
    count = len(case.free) - len(new)
    ids = case.inputs["input_ids"][0].tolist()
    blank, gone = tokenizer.bos_token_id, case.free[None]
    expected = likelihood(model, tokenizer, [blank, *new], [1] * (1 + len(new)), case)
    assert float(worth_without(model, case, gone, "dropped", 4)) == pytest.approx(expected)
    mask = [1, *[0] * (count - 1), *[1] * len(new)]
    expected = likelihood(model, tokenizer, [blank, *ids[1:]], mask, case)
    assert float(worth_without(model, case, gone, "hidden", 4)) == pytest.approx(expected)


def test_cases_of_every_model_and_those_that_are_refused(known: tuple[nn.Module, Any]) -> None:
    case = case_of(known, "a b " * 60, rationale=tuple([True, False] * 60))
    assert case.text.dropped > 0
    assert int(case.truth.sum()) * 2 == int(case.free.sum())
    single = bert("SequenceClassification", wordpiece(), num_labels=1), wordpiece()
    logit = single[0](**single[1](TEXT, return_tensors="pt")).logits
    assert float(case_of(single).worth(logit)) == pytest.approx(float(logit.double().sigmoid()))
    gpt = decoder_only("gpt2", t := byte_level()), t
    likeliest = gpt[0](**t(TEXT, return_tensors="pt")).logits[0, -1].argmax()
    assert case_of(gpt).target.tolist() == [int(likeliest)]
    pair = make_case(*known, Sample("a dull", pair="mess, nobody"), 0)
    assert pair.words[pair.free].tolist()[:2] == [0, 1]
    assert max(pair.words.tolist()) == 3
    for made, more, said in (
        (known, {"continuation": " x"}, "Sample 0: it has a continuation, and the model writes none"),
        (gpt, {"continuation": ""}, "Sample 0: the continuation is empty"),
        (gpt, {"continuation": " a" * 70}, "the model takes 64; shorten it"),
        ((bert("TokenClassification", wordpiece()), wordpiece()), {}, "texts are evaluated by classes"),
    ):
        with pytest.raises(FxlrpError, match=said):
            case_of(made, **more)


@pytest.mark.parametrize("seed", range(6))
def test_agreement_equals_scikit_learns(seed: int, known: tuple[nn.Module, Any]) -> None:
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed (extra `data`)")
    generator = torch.Generator().manual_seed(seed)
    text = "the little dog who lived in Paris isn't nobody's favourite, but gripping"
    marks = tuple((torch.rand(len(text.split()), generator=generator) < 0.4).tolist())
    case = case_of(known, text, rationale=marks)
    heat = torch.randint(-3, 4, (len(case.free),), generator=generator).float()  # with many ties
    scores, truth = by_word(case, heat)
    sums = [float(heat[(case.words == w) & case.free].sum()) for w in range(len(marks))]
    assert scores.tolist() == sums
    assert truth.tolist() == list(marks)
    found = agreement(case, heat, 0.3)
    precision, recall, _ = metrics.precision_recall_curve(truth, scores)
    assert found["auprc"] == pytest.approx(metrics.auc(recall, precision), abs=1e-12)
    assert found["average_precision"] == pytest.approx(metrics.average_precision_score(truth, scores), abs=1e-12)
    picked = np.zeros(len(marks))
    picked[np.argsort(-scores.numpy(), kind="stable")[: round(0.3 * len(marks))]] = 1
    assert found["token_f1"] == pytest.approx(metrics.f1_score(truth, picked), abs=1e-12)


def test_words_out_of_sight_and_those_of_a_pair_are_no_words_to_rank(known: tuple[nn.Module, Any]) -> None:
    case = case_of(known, "dull " * 100, rationale=tuple([False] * 90 + [True] * 10))
    assert agreement(case, noise(case), 0.1) == {}
    assert agreement(case_of(known), torch.zeros(1), 0.1) == {}
    pair = case_of(known, "a dull mess", pair="nobody lives", rationale=(False, True, False))
    scores, truth = by_word(pair, noise(pair))
    assert truth.tolist() == [False, True, False]
    assert len(scores) == 3


def test_correlation_and_change() -> None:
    stats = pytest.importorskip("scipy.stats", reason="SciPy is not installed")
    a, b = torch.tensor([1.0, 2, 2, 5, 0]), torch.tensor([3.0, 1, 1, 4, 2])
    assert correlation(a, b) == pytest.approx(stats.spearmanr(a, b).statistic)
    assert correlation(a, a) == pytest.approx(1)
    assert correlation(a, torch.ones(5)) is None
    assert change(torch.tensor([3.0, 4]), [torch.tensor([3.0, 3]), torch.tensor([0.0, 4])]) == pytest.approx(3 / 5)
    assert change(torch.zeros(2), [torch.ones(2)]) is None


def test_a_shadow_is_changed_and_put_back_and_the_model_never_is() -> None:
    tokenizer = byte_level()
    config = T.GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=32)
    model = build(T.GPT2LMHeadModel, config)
    assert model.lm_head.weight is model.transformer.wte.weight
    inputs = dict(tokenizer("once upon", return_tensors="pt"))
    before, logits = copy.deepcopy(model.state_dict()), model(**inputs).logits
    shadow = Shadow(model, 3, inputs)
    table = shadow.model.transformer.wte.weight
    clean, sigma = table.detach().clone(), float(table.std())
    draws = [(table.detach() - clean).clone() for _ in shadow.noisy()]
    assert len(draws) == DRAWS
    assert all(0.9 < float(d.abs().max()) / (RADIUS * sigma) <= 1 + 1e-6 for d in draws)
    assert not torch.equal(draws[0], draws[1])
    assert torch.equal(shadow.model.lm_head.weight, model.lm_head.weight)  # what the model shares is not noisy
    torch.testing.assert_close(shadow.model(**inputs).logits, logits, rtol=0, atol=0)
    with shadow.randomized():
        for name, p in shadow.model.named_parameters():
            mean, spread = p.mean(), p.std()
            there = model.get_parameter(name)
            assert torch.equal(p, there) == (p.ndim < 2)
            torch.testing.assert_close((mean, spread), (there.mean(), there.std()), rtol=0.3, atol=0.1)
        once = shadow.model(**inputs).logits.detach()
    with shadow.randomized():
        assert torch.equal(shadow.model(**inputs).logits, once)
    torch.testing.assert_close(shadow.model(**inputs).logits, logits, rtol=0, atol=0)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    with pytest.raises(ZeroDivisionError), shadow.randomized():
        raise ZeroDivisionError
    torch.testing.assert_close(shadow.model(**inputs).logits, logits, rtol=0, atol=0)


class Untabled(nn.Module):
    def forward(self, input_ids: Tensor) -> Tensor:
        return input_ids


def test_the_table_is_the_one_that_is_asked(network: tuple[nn.Module, Any]) -> None:
    model, case = network[0], case_of(network)
    kept = {id(m): dict(m._forward_hooks) for m in model.modules()}
    found = embedding_of(model, case.inputs)
    assert found.weight.shape[0] == model.config.vocab_size
    assert {id(m): dict(m._forward_hooks) for m in model.modules()} == kept
    with pytest.raises(FxlrpError, match="no table"):
        embedding_of(Untabled(), {"input_ids": torch.zeros(1, 2)})


def test_texts_of_the_cases_can_be_read() -> None:
    assert all(s.rationale is not None for s in map(Texts(TEXTS).__getitem__, range(4)))
