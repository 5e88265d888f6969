"""What stands in the place of what is masked, and the curves: by slow loops, torchvision, Quantus and scipy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gae_cases import input_x_gradient, pictures, tiny
from torch import Tensor, nn

from fxlrp import FxlrpError
from fxlrp.gae import MASKINGS, Report, evaluate
from fxlrp.gae.masking import blurred, filled, stand_in
from fxlrp.gae.measures import curves, localisation
from fxlrp.gae.texts import TextReport


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slowly_filled(x: Tensor, shut: Tensor, side: int) -> Tensor:
    """One picture [C, H, W], patch by patch."""
    rows, columns = shut.shape
    colour: dict[tuple[int, int], Tensor] = {}
    for i in range(rows):
        for j in range(columns):
            if not shut[i, j]:
                colour[i, j] = x[:, i * side : (i + 1) * side, j * side : (j + 1) * side].flatten(1).mean(1)
    while colour and len(colour) < rows * columns:
        found = {}
        for i in range(rows):
            for j in range(columns):
                around = [colour[a, b] for a in (i - 1, i, i + 1) for b in (j - 1, j, j + 1) if (a, b) in colour]
                if (i, j) not in colour and around:
                    found[i, j] = torch.stack(around).mean(0)
        colour |= found
    out = torch.empty_like(x)
    for i in range(rows):
        for j in range(columns):
            patch = out[:, i * side : (i + 1) * side, j * side : (j + 1) * side]
            patch[:] = colour.get((i, j), x.flatten(1).mean(1))[:, None, None]
    return out


def test_gaps_are_filled_from_their_edges() -> None:
    x = noise(6, 3, 11, 14)
    shut = torch.rand(6, 4, 5, generator=torch.Generator().manual_seed(1)) < torch.linspace(0.1, 1.1, 6).view(-1, 1, 1)
    shut[3] = True
    shut[3, 0, 0] = False  # from one corner over all of it
    assert shut[-1].all()
    expected = torch.stack([slowly_filled(p, s, 3) for p, s in zip(x, shut, strict=True)])
    torch.testing.assert_close(filled(x, shut, 3), expected)


@pytest.mark.parametrize("size", [(16, 16), (33, 20), (64, 64)])
def test_blur_is_that_of_torchvision(size: tuple[int, int]) -> None:
    functional = pytest.importorskip("torchvision.transforms.functional")
    x, sigma = noise(2, 3, *size), min(size) / 16
    reach = max(1, round(2 * sigma))
    torch.testing.assert_close(blurred(x, sigma), functional.gaussian_blur(x, [2 * reach + 1] * 2, [sigma] * 2))


def test_means_and_noise() -> None:
    x = noise(3, 2, 40, 40) * 3 + 5
    mean = stand_in(x, "mean", "abc")
    torch.testing.assert_close(mean[1, 0], x[1, 0].mean().expand(40, 40))
    drawn = stand_in(x, "noise", ["a", "b", "a"])
    for way in (drawn.mean((2, 3)) - x.mean((2, 3)), drawn.std((2, 3)) / x.std((2, 3)) - 1):
        assert way.abs().max() < 0.3
    torch.testing.assert_close(drawn[1:2], stand_in(x[1:2], "noise", ["b"]))  # whatever else is in the batch
    assert not torch.equal(drawn[1], stand_in(x[1:2], "noise", ["c"])[0])
    with pytest.raises(FxlrpError, match="no masking 'grey'"):
        stand_in(x, "grey", "abc")


class Weighted(nn.Module):
    """Two scores that are linear in the input: Σ w x and 0."""

    def __init__(self, w: Tensor) -> None:
        super().__init__()
        self.w = nn.Parameter(w)

    def forward(self, x: Tensor) -> Tensor:
        score = (x * self.w).flatten(1).sum(1)
        return torch.stack([score, torch.zeros_like(score)], 1)


def test_the_gap_of_a_linear_score_in_closed_form() -> None:
    x, w = noise(4, 1, 10, 10, seed=1), noise(1, 10, 10, seed=2)
    share = (x * w)[:, 0]
    found = curves(Weighted(w), x, torch.zeros(4, dtype=torch.long), share, steps=10)
    sums = share.flatten(1).sort(1, descending=True).values.view(4, 10, 10).sum(2).cumsum(1)
    start = torch.zeros(4, 1, dtype=torch.float64)
    morf = share.flatten(1).sum(1)[:, None] - torch.cat([start, sums], 1)
    lerf = share.flatten(1).sum(1)[:, None] - morf.flip(1)  # what is left is what the other order has masked
    torch.testing.assert_close(torch.tensor(found["morf_logit"], dtype=morf.dtype), morf)
    torch.testing.assert_close(torch.tensor(found["lerf_logit"], dtype=morf.dtype), lerf)
    torch.testing.assert_close(torch.tensor(found["morf"], dtype=morf.dtype), morf.sigmoid())
    area = (torch.trapezoid(lerf, dx=0.1) - torch.trapezoid(morf, dx=0.1)).tolist()
    assert found["srg"] == pytest.approx(area)
    assert found["abpc"] == pytest.approx([b - a for a, b in zip(found["morf_auc"], found["lerf_auc"], strict=True)])


def test_every_way_by_a_slow_loop() -> None:
    model, x, target = tiny(), torch.stack([p[0] for p in pictures(3, side=30)]), torch.tensor([0, 1, 2])
    heat = noise(3, 30, 30, seed=5)
    found = curves(model, x, target, heat, steps=4, batch_size=5, ways=MASKINGS, keys="abc")
    for i in range(3):
        score = nn.functional.avg_pool2d(heat[i][None, None], 2)[0, 0]
        order = score.flatten().argsort(descending=True)
        for way in MASKINGS:
            logits = []
            for k in range(5):
                shut = torch.zeros(225, dtype=torch.bool)
                shut[order[: round(k * 225 / 4)]] = True
                wide = shut.view(15, 15).repeat_interleave(2, 0).repeat_interleave(2, 1)
                other = slowly_filled(x[i], shut.view(15, 15), 2) if way == "fill" else None
                other = stand_in(x[i : i + 1], way, ["abc"[i]])[0] if other is None else other
                with torch.no_grad():
                    logits.append(model(torch.where(wide, other, x[i])[None])[0])
            behind = "" if way == "zero" else f"_{way}"
            assert found[f"morf_logit{behind}"][i] == pytest.approx([float(z[i]) for z in logits]), way
            assert found[f"morf{behind}"][i] == pytest.approx([float(z.softmax(0)[i]) for z in logits]), way


@pytest.mark.parametrize(("way", "baseline"), [("zero", 0.0), ("mean", "mean")])
def test_the_curve_is_that_of_quantus(way: str, baseline: Any) -> None:
    quantus = pytest.importorskip("quantus")
    x, w, heat = noise(2, 1, 14, 14).float(), noise(1, 14, 14, seed=3).float(), noise(2, 14, 14, seed=4).float()
    model = Weighted(0.2 * w).eval()
    pixel_flipping = quantus.PixelFlipping(
        features_in_step=28, perturb_baseline=baseline, abs=False, normalise=False, disable_warnings=True
    )
    theirs = pixel_flipping(
        model=model,
        x_batch=x.numpy(),
        y_batch=np.zeros(2, dtype=int),
        a_batch=heat[:, None].numpy(),
        device="cpu",
        softmax=True,
    )
    found = curves(model, x, torch.zeros(2, dtype=torch.long), heat, steps=7, ways=("zero", way))
    ours = found["morf" if way == "zero" else f"morf_{way}"]
    same = slice(0, 7 if way == "zero" else 1)  # theirs takes the mean anew of what is masked already
    np.testing.assert_allclose(np.array(ours)[:, 1:][:, same], np.array(theirs)[:, same], atol=1e-6)


def test_localisation_is_that_of_quantus() -> None:
    quantus = pytest.importorskip("quantus")
    heat, mask = noise(6, 18, 20).abs(), torch.zeros(6, 18, 20, dtype=torch.bool)
    for i in range(6):
        mask[i, i : i + 9, 3:17] = True
    smooth = nn.functional.avg_pool2d(heat[:, None], 3, 1, 1)  # pointing is by the strongest 3 × 3 pixels
    found = [localisation(h, m) for h, m in zip(heat, mask, strict=True)]
    how = {"x_batch": smooth.numpy(), "y_batch": np.zeros(6, dtype=int), "s_batch": mask[:, None].numpy()}
    for ours, theirs, maps in (
        ("pointing", quantus.PointingGame, smooth),
        ("relevance_mass", quantus.RelevanceMassAccuracy, heat[:, None]),
        ("rank_accuracy", quantus.RelevanceRankAccuracy, heat[:, None]),
    ):
        measure = theirs(abs=False, normalise=False, disable_warnings=True)
        scores = measure(model=Weighted(heat[:1]).eval(), a_batch=maps.numpy(), device="cpu", **how)
        np.testing.assert_allclose([f[ours] for f in found], np.array(scores, dtype=float), atol=1e-6)
    assert 0 < sum(f["pointing"] for f in found) < 6


def test_how_alike_the_orders_are() -> None:
    stats = pytest.importorskip("scipy.stats")
    values = noise(3, 5)  # of zero, blur and mean, five methods each
    names = ("abpc", "abpc_blur", "abpc_mean")
    rows = [
        {"method": f"m{m}", "sample": s, "gae": 0.0, **{n: float(v[m]) for n, v in zip(names, values, strict=True)}}
        for m in range(5)
        for s in range(2)
    ]
    found = Report(rows, {}, {"seed": 0}).agreement()
    assert set(found) == {("zero", "mean"), ("zero", "blur"), ("mean", "blur")}
    assert found["zero", "blur"] == pytest.approx(stats.spearmanr(values[0], values[1]).statistic)
    assert found["mean", "blur"] == pytest.approx(stats.spearmanr(values[2], values[1]).statistic)


def test_places_by_every_way_and_equal_methods() -> None:
    values = {"a": (0.3, 0.2), "b": (0.1, 0.5), "c": (0.3, 0.1)}
    rows = [{"method": m, "sample": 0, "abpc": zero, "abpc_blur": blur} for m, (zero, blur) in values.items()]
    report = Report(rows, {}, {"seed": 0})
    assert report.places() == {"ABPC zero": {"a": 1, "b": 3, "c": 1}, "ABPC blur": {"a": 2, "b": 1, "c": 3}}
    assert report.places_markdown().splitlines()[2:] == ["| `a` | 1 | 2 |", "| `c` | 1 | 3 |", "| `b` | 3 | 1 |"]
    of_texts = [{"method": m, "sample": 0, "sufficiency": s} for m, s in (("a", 0.2), ("b", -0.1))]
    assert TextReport(of_texts, {}, {"seed": 0}).places() == {"removal suffic.": {"a": 2, "b": 1}}  # low is good


def test_evaluations_measure_every_way(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    model = tiny()
    how: dict[str, Any] = {"quantus": False, "steps": 3, "batch_size": 4}
    report = evaluate(model, ["random", input_x_gradient], pictures(5), out=tmp_path, **how)
    assert {"abpc", "srg", *(f"{m}_{w}" for m in ("abpc", "srg") for w in MASKINGS[1:])} <= set(report.measures)
    assert len(report.curve("random", "lerf_logit_fill")) == 4
    page = (tmp_path / "report.html").read_text()
    for said in ("Masked by fill", "The order of methods by each masking", "Spearman"):
        assert said in page
    again = evaluate(model, ["random", input_x_gradient], pictures(5), **{**how, "batch_size": 2})
    assert again.values("abpc_noise").tolist() == [pytest.approx(row) for row in report.values("abpc_noise").tolist()]
    alone = evaluate(model, "random", pictures(5), maskings=("zero",), **how)
    assert "srg" in alone.measures
    assert "abpc_mean" not in alone.measures
    with pytest.raises(FxlrpError, match="no masking 'gray'"):
        evaluate(model, "random", pictures(5), maskings=["gray"])
    with pytest.raises(FxlrpError, match="maskings"):
        evaluate(model, "random", pictures(5), out=tmp_path, maskings=["blur"], **how)
