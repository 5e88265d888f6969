"""Networks trained to be known: measures against scipy's and scikit-learn's, the truth above chance, the same bits."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fxlrp import FxlrpError
from fxlrp.gae.known import agreement, creatures, grids, parts, suppressors
from fxlrp.gae.known.cases import generator
from fxlrp.gae.known.run import known
from fxlrp.gae.known.training import train, trained
from fxlrp.gae.measures import spearman


def test_areas_under_curves_are_those_of_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    g = torch.Generator().manual_seed(0)
    for levels in (2, 5, 1000):  # with ties and without
        score = torch.randint(levels, (60,), generator=g).double()
        truth = torch.rand(60, generator=g) > 0.7
        auroc, auprc = suppressors.ranking(score, truth)
        assert auroc == pytest.approx(metrics.roc_auc_score(truth, score), abs=1e-12)
        assert auprc == pytest.approx(metrics.average_precision_score(truth, score), abs=1e-12)


def test_rank_correlation_is_that_of_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    g = torch.Generator().manual_seed(0)
    for levels in (3, 100):
        a, b = torch.randint(levels, (2, 9), generator=g).double()
        assert spearman(a, b) == pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-12)
    assert spearman(torch.ones(4), torch.arange(4.0)) is None


def test_suppressors_help_and_say_nothing() -> None:
    """Pixels outside the patterns tell nothing alone, and a linear filter of all is better than one of the patterns."""
    x, target = suppressors.draw(suppressors.SCENARIOS["linear, smooth"], 4000, generator(0))
    flat, signs, inside = x.flatten(1).double(), 2.0 * target - 1, suppressors.important().flatten()
    alone = np.corrcoef(torch.cat([flat.T, signs[None].double()]).numpy())[-1, :-1]
    assert np.abs(alone[~inside.numpy()]).max() < 0.06  # 4 deviations of what 4000 draws give

    def rights(columns: Tensor) -> float:
        solution = torch.linalg.lstsq(flat[:2000, columns], signs[:2000, None].double()).solution
        return float(((flat[2000:, columns] @ solution)[:, 0].sign() == signs[2000:]).double().mean())

    assert rights(inside | True) > rights(inside) + 0.05


def small(cases: Any, **how: Any) -> Any:
    """A suite of small pictures, whose networks are hardly trained."""
    return lambda seed, folder=None, **_: cases(seed, folder, **how)


SMALL = {
    "suppressors": small(lambda s, f, **h: suppressors.cases(s, f, **h)[-2:-1], steps=30, samples=6),
    "agreement": small(lambda s, f, **h: agreement.cases(s, f, **h)[1:2], steps=10, samples=8),
    "parts": small(parts.cases, steps=40, samples=3),
    "grids": small(grids.cases, steps=40, samples=1),
}


def test_the_same_bits_again_and_the_truth_above_chance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyarrow")
    for name, cases in SMALL.items():
        monkeypatch.setitem(known.__globals__["SUITES"], name, cases)
    runs = [known(["ground-truth", "random", "epsilon"], suites=list(SMALL), out=tmp_path / n) for n in ("a", "b")]
    assert runs[0].rows == runs[1].rows
    for a in sorted((tmp_path / "a" / "networks").glob("*.safetensors")):
        assert a.read_bytes() == (tmp_path / "b" / "networks" / a.name).read_bytes()
    for suite, measure in (("suppressors", "auroc"), ("agreement", "mass"), ("grids", "localisation")):
        means = runs[0].means(suite, measure)
        assert means["ground-truth"].mean == pytest.approx(1)
        assert means["random"].mean < 0.8
        assert "epsilon" in means
    rows = {r["method"]: r for r in runs[0].rows if r["suite"] == "parts" and r["sample"] == 0}
    assert {"csdc", "pc", "dc", "distractibility", "sd", "ts"} <= rows["epsilon"].keys()
    assert rows["ground-truth"]["sd"] == pytest.approx(1)
    assert not runs[0].errors
    assert "SD" in (tmp_path / "a" / "report.html").read_text()


def test_a_network_is_kept_and_damage_is_seen(tmp_path: Path) -> None:
    x = torch.randn(8, 3)
    drawn = []

    def draw(g: torch.Generator) -> tuple[Tensor, Tensor]:
        drawn.append(float(torch.rand(1, generator=g)))
        return x, torch.arange(8) % 2

    recipe = parts.Recipe("tiny", lambda: torch.nn.Linear(3, 2), draw, 5)
    made, kept = trained(recipe, 0, tmp_path), trained(recipe._replace(steps=9), 0, tmp_path)
    torch.testing.assert_close(made.weight, kept.weight, rtol=0, atol=0)  # read, not trained again
    torch.testing.assert_close(made.weight, train(recipe, 0).weight, rtol=0, atol=0)
    assert not torch.equal(made.weight, train(recipe, 1).weight)
    assert drawn[:5] == drawn[5:10]
    assert len(set(drawn)) == 10  # other data by another seed
    path = tmp_path / "tiny.safetensors"
    path.write_bytes(path.read_bytes()[:-70] + b"?" + path.read_bytes()[-69:])
    with pytest.raises(FxlrpError, match="changed since"):
        trained(recipe, 0, tmp_path)


def test_a_creature_without_a_part_differs_there_alone() -> None:
    codes = creatures.classes(0)
    scene = creatures.scene(codes, 6, generator(1))
    whole, masks = creatures.picture(scene), creatures.part_masks(scene)
    assert masks.sum(1).max() == 1  # no part is over another
    assert not (masks.sum(1) * creatures.other_masks(scene).sum(1)).any()
    for part in range(creatures.PARTS):
        kept = torch.ones(6, creatures.PARTS).index_fill(1, torch.tensor([part]), 0.0)
        changed = (creatures.picture(scene, kept) != whole).any(1)
        assert torch.equal(changed, masks[:, part] > 0)


def observed() -> parts.Measured:
    """A network whose score for a class is the number of its parts that are there, each worth what it is worth."""
    codes = torch.tensor([[0, 0, 0, 0, 0], [0, 0, 1, 1, 1], [1, 1, 0, 0, 1], [2, 2, 2, 2, 2]])
    worth = torch.tensor([5.0, 4, 3, 2, 1])
    parts_, others = parts.SUBSETS, torch.eye(creatures.OTHERS)

    def scores(kept: Tensor) -> Tensor:
        return torch.stack([(kept * worth * (codes[c] == codes[0])).sum(-1) for c in range(4)], -1)

    whole, masks = scores(torch.ones(1, 5)), torch.eye(9, dtype=torch.float64).view(1, 9, 3, 3)
    without = whole.expand(len(others), -1)[None]
    return parts.Measured(codes, torch.tensor([0]), whole, scores(parts_)[None], without, masks, torch.tensor([[1, 2]]))


def maps(of_class: list[float], of_one: list[float], of_two: list[float]) -> Tensor:
    return torch.tensor([of_class, of_one, of_two], dtype=torch.float64).view(3, 1, 3, 3)


def test_part_measures_by_hand() -> None:
    m = observed()
    nothing = [0.0] * 4
    right = maps([5, 4, 3, 2, 1, *nothing], [5, 4, 0, 0, 0, *nothing], [0, 0, 3, 2, 0, *nothing])
    (row,) = parts.at_best_threshold(parts.measure(m, right))
    assert (row["sd"], row["ts"], row["distractibility"]) == (pytest.approx(1), 1.0, 1.0)
    # with classes 1 and 2 sharing parts 0, 1 and 2, 3 with class 0, {4}, or one part of each, determines it
    assert [s.nonzero()[:, 0].tolist() for s in parts.sufficient(m.codes, 0)] == [[4], [1, 3], [1, 2], [0, 3], [0, 2]]
    assert row["csdc"] == 1.0
    assert row["pc"] == 1.0
    upside_down = maps([1, 2, 3, 4, 5, *nothing], [0, 0, 3, 2, 0, *nothing], [5, 4, 0, 0, 0, *nothing])
    (row,) = parts.at_best_threshold(parts.measure(m, upside_down))
    assert row["sd"] == pytest.approx(0)
    assert row["ts"] == 0
    elsewhere = maps([0, 0, 0, 0, 0, 4, 3, 2, 1], [0.0] * 9, [0.0] * 9)
    row = parts.measure(m, elsewhere)[0]
    assert row["csdc"] == [0.0] * 80  # no part is important
    assert row["dc"] == [0.0] * 80  # without nothing, it is the same class
    assert row["sd"] is None
    assert row["distractibility"][0] == 0  # and all four that do not matter are
    assert row["distractibility"][-1] == 1
    m.without[0, 0, 0] += 5  # the score is higher without one of them, which does not matter either
    assert parts.measure(m, maps([0, 0, 0, 0, 0, 1, 0, 0, 0], [0.0] * 9, [0.0] * 9))[0]["distractibility"][0] == 0.75


def test_grids_and_agreement_by_hand() -> None:
    cell = grids.cells(4)
    relevance = torch.zeros(2, 3, 4, 4)
    relevance[0, 0, 0, 0], relevance[0, 1, 3, 3], relevance[0, 2, 0, 3] = 3.0, 1.0, -5.0
    assert [r["localisation"] for r in grids.measure(relevance, cell[:2])] == [0.75, 0.0]
    words = torch.zeros(1, 4, 2)
    words[0, 2], words[0, 3, 0], words[0, 1, 1] = torch.tensor([1.0, 2.0]), 1.0, -1.0
    (row,) = agreement.measure(words, torch.tensor([2]), torch.tensor([[3]]))
    assert (row["pointing"], row["mass"], row["above"]) == (1.0, 0.75, 1.0)
    (row,) = agreement.measure(words, torch.tensor([3]), torch.tensor([[1, 2]]))
    assert (row["pointing"], row["mass"], row["above"]) == (0.0, 0.25, 0.0)  # above one attractor, not the other


def test_sentences_agree_and_the_number_alone_is_changed() -> None:
    g = generator(0)
    for _ in range(50):
        made = agreement.sentence(g, 3, clause=True, opposed=True)
        nouns = [agreement.WORDS[made.words[i]] for i in (made.subject, *made.attractors)]
        assert nouns[0].endswith("s") == made.plural
        assert all(noun.endswith("s") != made.plural for noun in nouns[1:4])
        inner, verb = made.attractors[-1], agreement.WORDS[made.words[-1]]
        assert agreement.WORDS[made.words[inner]].endswith("s") == (verb in [pair[1] for pair in agreement.VERBS])
        swapped = agreement._swapped(torch.tensor([made.words]), torch.tensor([[made.subject]]))[0].tolist()
        assert [i for i, (a, b) in enumerate(zip(made.words, swapped, strict=True)) if a != b] == [made.subject]
        assert agreement.WORDS[swapped[2]].removesuffix("s") == nouns[0].removesuffix("s")
    x, following = agreement.draw(3, g)
    language_model = agreement.LanguageModel().eval()
    with torch.no_grad():
        last = language_model(x)[:, -1]
        gap = (last[:, agreement.NUMBER["is"]] - last[:, agreement.NUMBER["are"]])[:, None]
        torch.testing.assert_close(agreement.NumberOfVerb(language_model)(x), torch.cat([gap, -gap], 1))
    seen = following[0][following[0] != agreement.IGNORED]
    assert x[0].argmax(1)[1 : len(seen)].tolist() == seen[:-1].tolist()
    assert partial(agreement.next_word, following=following)(x).item() > 0
