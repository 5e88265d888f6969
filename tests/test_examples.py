"""The embedded networks: relevance for one of two objects must land on that object."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import fxlrp
from fxlrp.inputs import load_model

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


EXAMPLES = Path(fxlrp.__file__).parent / "examples"


def trained(name: str) -> torch.nn.Module:
    return load_model(str(EXAMPLES / f"{name}.safetensors"), arch=f"{EXAMPLES / 'models.py'}:{name}").module.float()


@torch.no_grad()
def test_networks_that_say_where_things_are(pictures: Pictures) -> None:
    said = trained("segmenter")(pictures.x).argmax(1)
    found, hits = trained("detector")(pictures.x), []
    for kinds, boxes, masks, labels in zip(said, found, pictures.masks, pictures.labels, strict=True):
        for mask, label in zip(masks, labels.tolist(), strict=True):
            assert (kinds[mask] == label + 1).float().mean() > 0.6
            y, x = mask.nonzero().T.float()
            middle = torch.stack([x, y]).mean(1)
            corners = boxes["boxes"][boxes["labels"] == label]
            hits.append(bool(((corners[:, :2] < middle) & (middle < corners[:, 2:])).all(1).any()))
    assert sum(hits) >= 0.95 * len(hits)
    assert ((said > 0) == pictures.masks.any(1)).float().mean() > 0.98


def test_a_molecule_is_explained_by_its_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import molecules

    net = molecules.Network().eval()
    net.load_state_dict(load_file(EXAMPLES / "molecules.safetensors"))
    explainer = fxlrp.convert(net)
    drawn = [molecules.molecule(seed) for seed in range(20_000_000, 20_000_010)]
    with torch.no_grad():
        assert [int(net(m.x, m.edges).argmax()) for m in drawn] == [m.label for m in drawn]
    for m in (m for m in drawn if m.label):
        by_atom = explainer(m.x, m.edges, target=1).relevance.sum(1)
        assert int(by_atom.argmax()) in m.group


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
