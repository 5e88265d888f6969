"""The metric: each mend on what was broken, and the published definition on the authors' own values."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gae_cases import input_x_gradient, pictures, tiny
from torch import Tensor, nn

from fxlrp import FxlrpError
from fxlrp.gae import Trial, explain_by, fixed_trial, published_trial, score
from fxlrp.gae.methods import run
from fxlrp.gae.metric import FIXED, PUBLISHED, dice, halve, overlap, quadrant_scores, stepwise

ORACLES = Path(__file__).parents[3] / "shared" / "oracles"
OWN_NAMES = {"local_consistency": "lc"}


@pytest.fixture
def model() -> nn.Module:
    return tiny()


def trial(model: nn.Module, definition: str, count: int = 8) -> Trial:
    x = torch.stack([p[0] for p in pictures(count)])
    if definition == PUBLISHED:
        return published_trial(model, x, torch.arange(count) % 5, positives=torch.zeros(count // 4, dtype=torch.long))
    own = torch.arange(count)
    members = torch.stack([(own + k) % count for k in (1, 2, 3)], 1)[None]
    return fixed_trial(model, x, members, ids=range(count), places=own[None] % 4)


def quarter(mosaic: Tensor, place: int) -> Tensor:
    h, w = mosaic.shape[-2] // 2, mosaic.shape[-1] // 2
    return mosaic[..., place // 2 * h : place // 2 * h + h, place % 2 * w : place % 2 * w + w]


def test_the_scored_picture_stands_in_its_mosaic(model: nn.Module) -> None:
    t = trial(model, FIXED)
    for i in range(8):
        torch.testing.assert_close(quarter(t.mosaics[i], i % 4), halve(t.x)[i])
    t = trial(model, PUBLISHED)
    assert not any(torch.equal(quarter(t.mosaics[1], place), halve(t.x)[1]) for place in range(4))


def test_own_quadrant_is_worth_one_and_no_other_more(model: nn.Module) -> None:
    t = trial(model, FIXED)
    for i in range(8):
        assert (quarter(t.score[i], i % 4) == 1).all()
    assert t.score.min() >= -1
    assert t.score.max() <= 1
    probability = torch.tensor([[0.98, 0.01, 0.01]])
    label = torch.tensor([1])  # not the prediction, 0
    assert quadrant_scores(probability, torch.tensor([[0, 1, 2, 2]]), label).max() > 100
    assert quadrant_scores(probability, torch.tensor([[0, 1, 2, 2]]), torch.tensor([0])).max() == 1


def test_labels_play_no_part(model: nn.Module) -> None:
    x = torch.stack([p[0] for p in pictures(8)])
    a, b = (
        published_trial(model, x, y, positives=torch.tensor([1, 2])).score
        for y in (torch.arange(8) % 5, torch.arange(8) % 3)
    )
    assert not torch.equal(a, b)  # as published; fixed_trial takes no labels


def test_schedules_are_symmetric(model: nn.Module) -> None:
    def fractions(definition: str) -> list[list[float]]:
        return [
            [round((step == 0).double().mean().item(), 2) for step in order]
            for order in trial(model, definition).masked
        ]

    tenths = [k / 10 for k in range(1, 10)]
    assert fractions(FIXED) == [tenths, tenths]
    assert fractions(PUBLISHED) == [[0.1, 0.3, 0.6, 1, 1, 1, 1, 1, 1], tenths]


def test_what_is_masked_stays_masked_and_is_the_most_or_least_relevant(model: nn.Module) -> None:
    t = trial(model, FIXED)
    shut = t.masked == 0
    assert (shut[:, 1:] | ~shut[:, :-1]).all()
    for order, picks_most in zip(shut, (True, False), strict=True):
        r = input_x_gradient(model, t.x.clone(), t.target).abs()
        for ri, si in zip(r, order[0], strict=True):
            assert ri[si].min() >= ri[~si].max() if picks_most else ri[si].max() <= ri[~si].min()


def test_the_cross_is_a_cross(model: nn.Module) -> None:
    for definition, ones in ((FIXED, True), (PUBLISHED, False)):
        s = trial(model, definition).score
        assert bool((s[..., 7:9, :] == 1).all() and (s[..., 7:9] == 1).all()) == ones
        assert (s[..., 7:9, 7:9] == 1).all()


@pytest.mark.parametrize(("definition", "same"), [(FIXED, True), (PUBLISHED, False)])
def test_one_channel_counts_as_three(model: nn.Module, definition: str, same: bool) -> None:
    t = trial(model, definition)
    heat = input_x_gradient(model, t.views().x.clone(), t.views().target).sum(1, keepdim=True)
    one, three = score(t, heat), score(t, heat.expand(-1, 3, -1, -1))
    for name in ("faithfulness", "contrastiveness"):
        assert torch.allclose(one[name], three[name]) == same
    torch.testing.assert_close(one["robustness"], three["robustness"])


@pytest.mark.parametrize(("definition", "same"), [(FIXED, True), (PUBLISHED, False)])
def test_the_scale_of_a_map_is_nothing(model: nn.Module, definition: str, same: bool) -> None:
    t = trial(model, definition)
    r = input_x_gradient(model, t.views().x.clone(), t.views().target)
    a, b = score(t, r), score(t, r * 1e-20)
    assert all(torch.allclose(a[k], b[k], atol=1e-9) for k in a) == same


def test_each_measure_by_hand(model: nn.Module) -> None:
    assert dice(torch.tensor([[1.0, 0]]), torch.tensor([[0.0, 1]])).item() == 1
    assert dice(torch.tensor([[1.0, 3]]), torch.tensor([[1.0, 1]])).item() == pytest.approx(2 / 6)
    assert overlap(torch.tensor([[1.0, 3]]), torch.tensor([[1.0, -1]])).item() == -0.5
    t = trial(model, FIXED)
    r = input_x_gradient(model, t.views().x.clone(), t.views().target)
    s = score(t, r)
    r = r.relu()
    units = r / r.flatten(1).amax(1).view(-1, 1, 1, 1)
    n = 8
    x, mosaic, masked = units[:n], units[n : 2 * n], units[2 * n :].view(2, 9, n, 3, 16, 16)
    for i in range(n):
        dr = torch.stack(
            [dice(x[i][None], masked[0, k, i][None]) - dice(x[i][None], masked[1, k, i][None]) for k in range(9)]
        )
        df = torch.stack([(t.outputs[1, k + 1, i] - t.outputs[0, k + 1, i]) / t.outputs[0, 0, i] for k in range(9)])
        robustness = 1 - 2 * (dr[:, 0] - df).abs().sum() / (dr.abs().sum() + df.abs().sum())
        faithfulness = (x[i] * t.impact[i]).sum() / x[i].sum()
        contrastiveness = ((mosaic[i] * t.score[i]).sum() / mosaic[i].sum()).clamp(min=0)
        lc = max(0.0, (robustness + faithfulness).item() / 2)
        assert s["gae"][i].item() == pytest.approx(lc * contrastiveness.item(), abs=1e-9)


def test_a_picture_of_odd_sides() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    x = torch.randn(4, 1, 15, 13)
    members = torch.tensor([[[1, 2, 3], [2, 3, 0], [3, 0, 1], [0, 1, 2]]])
    t = fixed_trial(net, x, members, ids=range(4), places=torch.tensor([[0, 1, 2, 3]]))
    assert t.mosaics.shape == x.shape
    assert t.score.shape[-2:] == x.shape[-2:]


@pytest.mark.parametrize(
    ("count", "size", "label", "said"),
    [
        (6, (16, 16), 0, "multiple of four; this one has 6"),
        (4, (15, 16), 0, "15 × 16; give even sides"),
        (4, (16, 16), 5, "classes 0 to 4"),
    ],
)
def test_what_the_published_definition_cannot_score(
    model: nn.Module, count: int, size: tuple[int, int], label: int, said: str
) -> None:
    x = torch.randn(count, 3, *size, dtype=torch.float64)
    with pytest.raises(FxlrpError, match=said):
        published_trial(model, x, torch.full((count,), label))


@pytest.mark.parametrize("count", [4, 12, 16])
def test_published_batches_of_other_sizes(model: nn.Module, count: int) -> None:
    """Mosaic i holds i, n + i, 2n + i, 3n + i, and scores of labels go where `split` puts them, as in their code."""
    n, x = count // 4, torch.randn(count, 3, 16, 24, dtype=torch.float64)
    labels, places = torch.arange(count) * 2 % 5, torch.arange(n) % 4
    t = published_trial(model, x, labels, positives=places)
    p = model(x).softmax(1)
    worth = torch.stack(
        [
            2 * p[4 * g + k, labels[4 * g + i]] / p[4 * g + k, labels[4 * g + k]] - 1
            for g, k in enumerate(places)
            for i in range(4)
        ]
    )
    for i in range(n):
        for place in range(4):
            torch.testing.assert_close(quarter(t.mosaics[i], place), halve(x)[place * n + i])
            torch.testing.assert_close(quarter(t.score[i], place)[0, 2, 2], worth[place * n + i])


def test_masking_needs_no_gradient_of_the_weights(model: nn.Module) -> None:
    x = torch.stack([p[0] for p in pictures(4)])
    with torch.no_grad():
        stepwise(model.requires_grad_(False), x, torch.zeros(4, dtype=torch.long), 3, FIXED)


@pytest.fixture(scope="module")
def published() -> tuple[nn.Module, Trial, dict[str, np.ndarray]]:
    if not ORACLES.exists():
        pytest.skip("the oracle tensors are not part of the repository")
    pytest.importorskip("timm")
    spec = importlib.util.spec_from_file_location("oracle_build", ORACLES / "oracle_build.py")
    ob = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(ob)
    with np.load(ORACLES / "2024-12" / "gae_b8.npz") as data:
        values = {k: data[k] for k in data.files}
    net = ob.build("resnet18").double()
    x = ob.gae_images()[torch.from_numpy(values["perm"])].double()
    positives = torch.from_numpy(values["mosaic_positive_indices"])
    return net, published_trial(net, x, torch.from_numpy(values["y_batch"]), positives=positives), values


def test_published_masks_and_scores(published: tuple[nn.Module, Trial, dict[str, np.ndarray]]) -> None:
    _, t, values = published
    assert list(t.ids) == values["positive_indices"].tolist()
    assert (t.impact.numpy() == values["combined_impact_map"]).all()
    np.testing.assert_allclose(t.score[:, 0].numpy(), values["score_mosaic"], atol=1e-6)
    for order, name in enumerate(("morf", "lerf")):
        np.testing.assert_allclose(t.outputs[order].numpy(), values[f"{name}_o"], rtol=1e-9)
        for k in range(1, 10):
            bits = np.unpackbits(values[f"{name}_mask_bits"][k], axis=-1).astype(bool)
            assert ((t.masked[order, k - 1] == 0).flatten(1).numpy() == bits).all()


@pytest.mark.parametrize(
    ("method", "key"), [pytest.param(input_x_gradient, "ixg", marks=pytest.mark.whole), ("abslrp-2024-12", "abslrp")]
)
def test_published_scores(published: tuple[nn.Module, Trial, dict[str, np.ndarray]], method: Any, key: str) -> None:
    net, t, values = published
    found = score(t, run(explain_by(method, net, definition=PUBLISHED), t.views(), 8))
    for name in ("robustness", "faithfulness", "local_consistency", "contrastiveness", "gae"):
        np.testing.assert_allclose(found[OWN_NAMES.get(name, name)].numpy(), values[f"{key}/{name}"], atol=1e-5)
