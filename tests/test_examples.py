"""The embedded networks: relevance for one of two objects must land on that object."""

from __future__ import annotations

import pytest
import torch

import fxlrp

pytest.importorskip("timm")

from benchmarks.localization import Pictures, gradient_x_input, load, models, score, shapes, two_objects


@pytest.fixture(scope="module")
def pictures() -> Pictures:
    return two_objects(40)


def test_the_same_picture_every_time() -> None:
    a, b = shapes.picture(7), shapes.picture(7)
    assert (a.image == b.image).all()
    assert a.labels == b.labels
    assert (a.masks == b.masks).all()
    assert a.masks.any((1, 2)).all()
    assert (shapes.picture(8).image != a.image).any()
    assert models.CLASSES == shapes.CLASSES


@pytest.mark.parametrize("name", ["cnn", "vit"])
def test_network_is_trained(name: str, pictures: Pictures) -> None:
    with torch.no_grad():
        found = load(name)(pictures.x).topk(2).indices.sort(1).values
    assert (found == pictures.labels.sort(1).values).all(1).float().mean() >= 0.9


@pytest.mark.parametrize("name", ["cnn", "vit"])
def test_relevance_lands_on_the_object_asked_for(name: str, pictures: Pictures) -> None:
    model = load(name)
    explainer = fxlrp.convert(model, strict=True)
    ours = score(lambda x, target: explainer(x, target=target).heatmap(), pictures)
    baseline = score(gradient_x_input(model), pictures)
    print(name, ours, baseline)
    assert ours.share >= max(0.75, baseline.share + 0.2)
    assert ours.target >= 1.3 * baseline.target
    assert ours.other <= 0.6 * baseline.other
    assert ours.pointing >= baseline.pointing + 0.1


@pytest.mark.parametrize("dtype", [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.whole)])
def test_half_precision_keeps_the_map(dtype: torch.dtype) -> None:
    pictures = two_objects(2)
    for name, rules in (("cnn", "abslrp"), ("cnn", "abslrp-hybrid"), ("vit", "abslrp-hybrid"), ("vit", "attnlrp")):
        model = load(name)
        full = fxlrp.convert(model, rules=rules)(pictures.x, target=pictures.labels[:, 0]).relevance
        x = pictures.x.to(dtype)
        half = fxlrp.convert(model.to(dtype), rules=rules)(x, target=pictures.labels[:, 0]).relevance.float()
        assert half.isfinite().all()
        for a, b in zip(full, half, strict=True):
            assert torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1] > 0.99
