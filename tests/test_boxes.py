"""Detectors: a box is explained by its own score, shown where it is, and coordinates are never read as classes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import randomize
from PIL import Image
from torch import Tensor, nn

import fxlrp
from fxlrp import FxlrpError, convert
from fxlrp.boxes import boxes_in
from fxlrp.cli.answering import Asked
from fxlrp.cli.pictures import pictures
from fxlrp.inputs import LoadedModel, Preprocess

CLASSES = ["cat", "dog", "owl"]
SIZE = (16, 24)


class ByScores(nn.Module):
    """Four boxes and their scores for each picture, in dicts."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 4 * 7)

    def forward(self, x: Tensor) -> list[dict[str, Tensor]]:
        rows = self.head(self.conv(x).relu().mean((2, 3))).unflatten(1, (4, 7))
        found = []
        for row in rows:
            places, chances = row[:, :4].sigmoid(), row[:, 4:].softmax(1)
            corners = torch.cat([places[:, :2] / 2, places[:, :2] / 2 + places[:, 2:] / 2], 1)
            scores, labels = chances.max(1)
            found.append({"boxes": corners * x.new_tensor([24, 16, 24, 16]), "labels": labels, "scores": scores})
        return found


class ByQueries(nn.Module):
    """Four queries with logits of three classes and of none."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 4 * 8)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        rows = self.head(self.conv(x).relu().mean((2, 3))).unflatten(1, (4, 8))
        return {"logits": rows[..., 4:], "pred_boxes": rows[..., :4].sigmoid()}


def loaded(model: nn.Module) -> LoadedModel:
    torch.manual_seed(0)
    return LoadedModel(randomize(model), "detector", Preprocess(size=SIZE, squash=True), list(CLASSES))


def photograph() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8))


def test_boxes_by_scores_are_the_scores_own() -> None:
    model, picture = loaded(ByScores()), photograph()
    x = model.like(model.preprocess(picture)[0][None])
    said = model.module(x)[0]
    order = said["scores"].argsort(descending=True).tolist()
    explainer = convert(model.module)
    for k, i in enumerate(order):
        a = fxlrp.explain(model, picture, box=k)
        expected = explainer(x, target=lambda out, i=i: out[0]["scores"][i : i + 1], contrast=None)
        torch.testing.assert_close(a.relevance, expected.relevance)
        assert str(a).startswith(
            f"Attribution of box {k}: {CLASSES[said['labels'][i]]}, {100 * said['scores'][i]:.1f} %"
        )
    first = fxlrp.explain(model, picture)
    torch.testing.assert_close(first.relevance, fxlrp.explain(model, picture, box=0).relevance)
    with pytest.raises(FxlrpError, match="There is no box 4: the last that was found is 3"):
        fxlrp.explain(model, picture, box=4)


def test_boxes_by_queries_are_their_logits() -> None:
    model, picture = loaded(ByQueries()), photograph()
    x = model.like(model.preprocess(picture)[0][None])
    chances = model.module(x)["logits"][0].softmax(1)[:, :-1]
    order = chances.max(1).values.argsort(descending=True).tolist()
    a = fxlrp.explain(model, picture, box=1)
    expected = convert(model.module)(x, position=order[1], target=int(chances[order[1]].argmax()), contrast=None)
    torch.testing.assert_close(a.relevance, expected.relevance)
    assert a.asked.startswith(f"box 1: {CLASSES[int(chances[order[1]].argmax())]}, ")


def test_the_box_is_drawn_where_it_is() -> None:
    model, picture = loaded(ByScores()), photograph()
    x = model.like(model.preprocess(picture)[0][None])
    box = boxes_in(model.module(x), SIZE)[0]
    plain, seen = model.preprocess.seen(picture), fxlrp.explain(model, picture, box=0).pictures[0]
    changed = np.argwhere((plain != seen).any(2))
    height, width = plain.shape[:2]
    left, top, right, bottom = box.corners
    np.testing.assert_allclose(changed.min(0), [top * height, left * width], atol=1.5)
    np.testing.assert_allclose(changed.max(0), [bottom * height, right * width], atol=1.5)


def test_sigmoids_are_told_from_a_class_of_nothing() -> None:
    logits = torch.tensor([[[3.0, -1, 0], [0, 1, 5]]])
    out = {"logits": logits, "pred_boxes": torch.rand(1, 2, 4)}
    best = boxes_in(out, SIZE, CLASSES)[0]  # as many logits as classes
    assert (best.label, round(best.score, 4)) == (2, round(float(torch.tensor(5.0).sigmoid()), 4))
    best = boxes_in(out, SIZE, CLASSES[:2])[0]  # the third is none
    assert (best.label, round(best.score, 4)) == (0, round(float(logits[0, 0].softmax(0)[0]), 4))


def test_coordinates_are_no_classes() -> None:
    model = loaded(ByScores()).module
    x = torch.rand(1, 3, *SIZE).double()
    torch.testing.assert_close(convert(model)(x).logits.flatten(), model(x)[0]["scores"])


def test_what_has_no_boxes() -> None:
    net = loaded(nn.Sequential(nn.Conv2d(3, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    with pytest.raises(FxlrpError, match="returns no boxes"):
        fxlrp.explain(net, photograph(), box=0)
    with pytest.raises(FxlrpError, match="box is of a picture"):
        fxlrp.explain(net, torch.rand(1, 3, *SIZE).double(), box=0)
    with pytest.raises(FxlrpError, match="one picture's"):
        fxlrp.explain(loaded(ByScores()), [photograph()] * 2, box=0)


@pytest.mark.parametrize("kind", [ByScores, ByQueries])
def test_boxes_are_looked_for_once(kind: type[nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[Tensor] = []
    monkeypatch.setattr("fxlrp.explaining.boxes_in", lambda out, *how: looked.append(out) or boxes_in(out, *how))
    fxlrp.explain(loaded(kind()), photograph())
    assert len(looked) == 1


def test_a_model_without_boxes_is_asked_once_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[Tensor] = []
    monkeypatch.setattr("fxlrp.explaining.boxes_in", lambda out, *how: looked.append(out))
    net = loaded(nn.Sequential(nn.Conv2d(3, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    explainer, reading = convert(net.module), pictures(net, Asked())
    for _ in range(3):
        reading.explain(explainer, photograph(), {})
    assert len(looked) == 1


def test_a_model_with_arguments_beside_the_picture() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3)

        def forward(self, x: Tensor, scale: Tensor) -> Tensor:
            return self.conv(x).mean((2, 3)) * scale

    a = fxlrp.explain(loaded(Scaled()), photograph(), scale=torch.full((1, 1), 2.0).double())
    assert a.each[0].shape == (1, 3, *SIZE)
