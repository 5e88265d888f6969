"""Concepts: the samples in which a part is most relevant, found in one pass that can be gone on with, and shown."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import fxlrp
from fxlrp.inside.concepts import FILE, load_concepts
from fxlrp.inside.references import crop, references
from fxlrp.inside.showing import show_concepts
from tests.inside.networks import branches, captured


def samples(count: int) -> list[Tensor]:
    return list(torch.randn(count, 3, 9, 9, generator=torch.Generator().manual_seed(1)).double())


def test_it_is_the_order_of_the_shares_of_all_samples_together() -> None:
    model, _, place, count = branches()
    data = samples(9)
    explainer = fxlrp.convert(model)
    found = fxlrp.concepts(explainer, data, place, top=4, batch_size=4, target=2, progress=False)
    parts = explainer.parts(place, torch.stack(data), target=2)
    assert found.relevance.tolist() == parts.share.T.argsort(1, descending=True)[:, :4].tolist()
    assert found.activation.tolist() == parts.activation.T.argsort(1, descending=True)[:, :4].tolist()
    torch.testing.assert_close(found.mean, parts.share.mean(0))
    torch.testing.assert_close(found.relevance_values[:, 0], parts.share.amax(0))
    assert found.count == 9 and found.ranked(2) == parts.share.mean(0).argsort(descending=True)[:2].tolist()  # noqa: PT018
    assert found.condition(3) == {place: {"channels": [3]}} and count == 5  # noqa: PT018
    assert "over 9 samples" in str(found)


class Broken(list):
    """A data set whose disk fails at a sample."""

    at = 10**6

    def __getitem__(self, i):
        if i >= self.at and i != len(self) - 1:
            raise OSError("the disk failed")
        return super().__getitem__(i)


def test_a_rerun_goes_on_and_finds_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fxlrp.inside.concepts.EVERY", 1)
    model, _, place, _ = branches()
    data = Broken(samples(8))
    explainer = fxlrp.convert(model)
    expected = fxlrp.concepts(explainer, data, place, top=3, batch_size=2, progress=False)
    data.at = 5
    with pytest.raises(OSError, match="disk"):
        fxlrp.concepts(explainer, data, place, top=3, batch_size=2, out=tmp_path, progress=False)
    halted = load_concepts(tmp_path)
    assert halted is not None
    assert halted.count == 4
    data.at = 10**6
    seen: list[int] = []
    monkeypatch.setattr(Broken, "__getitem__", lambda self, i: seen.append(i) or list.__getitem__(self, i))
    again = fxlrp.concepts(explainer, data, place, top=3, batch_size=2, out=tmp_path, progress=False)
    assert set(seen) == {0, 4, 5, 6, 7}, "the first is looked at to know the data again"
    assert again.relevance.tolist() == expected.relevance.tolist()
    torch.testing.assert_close(again.mean, expected.mean)
    with pytest.raises(fxlrp.FxlrpError, match="another pass"):
        fxlrp.concepts(explainer, samples(7), place, top=3, out=tmp_path, progress=False)
    (tmp_path / FILE).write_bytes(b"nothing")
    with pytest.raises(fxlrp.FxlrpError, match="can't be read"):
        fxlrp.concepts(explainer, data, place, top=3, out=tmp_path, progress=False)


def test_directions_are_parts_too() -> None:
    model, _, place, _ = branches()
    data, explainer = samples(5), fxlrp.convert(model)
    channels = fxlrp.concepts(explainer, data, place, target=1, progress=False)
    same = fxlrp.concepts(explainer, data, place, directions=torch.eye(5).double(), target=1, progress=False)
    assert same.relevance.tolist() == channels.relevance.tolist()
    torch.testing.assert_close(same.activation_values, channels.activation_values)
    turned = torch.linalg.qr(torch.randn(5, 5).double())[0]
    found = fxlrp.concepts(explainer, data, place, directions=(turned, turned.T), target=1, progress=False)
    x = torch.stack(data)
    maps = explainer(x, target=1, given=[found.condition(i) for i in range(5)])
    whole = explainer(x, target=1).relevance
    assert (maps.relevance.sum(1) - whole).abs().max() < 1e-6 * whole.abs().max()
    with pytest.raises(fxlrp.FxlrpError, match="have 4 entries"):
        fxlrp.concepts(explainer, data, place, directions=torch.ones(2, 4), progress=False)


def test_labels_of_the_data_and_what_is_no_data() -> None:
    model, _, place, _ = branches()
    data = [(x, i % 4) for i, x in enumerate(samples(4))]
    explainer = fxlrp.convert(model)
    found = fxlrp.concepts(explainer, data, place, target="label", progress=False)
    parts = explainer.parts(place, torch.stack([x for x, _ in data]), target=torch.tensor([0, 1, 2, 3]))
    torch.testing.assert_close(found.mean, parts.share.mean(0))
    for wrong, how, words in (
        ([], {}, "no samples"),
        (data, {"by": "colours"}, "neither channels nor heads"),
        ([x for x, _ in data], {"target": "label"}, "give pairs"),
        (data, {"target": "star"}, "is a name"),
    ):
        with pytest.raises(fxlrp.FxlrpError, match=words):
            fxlrp.concepts(explainer, wrong, place, progress=False, **how)


def test_a_crop_holds_where_a_map_is() -> None:
    r = np.zeros((60, 60))
    r[40:50, 10:20] = 1
    top, left, bottom, right = (round(60 * v) for v in crop(r))
    assert top <= 40 <= 50 <= bottom
    assert left <= 10 <= 20 <= right
    assert bottom - top < 24
    assert crop(np.zeros((8, 8))) == (0, 0, 1, 1)


def test_references_are_cropped_to_the_conditional_map() -> None:
    model, _, place, _ = branches()
    data, explainer = samples(4), fxlrp.convert(model)
    found = fxlrp.concepts(explainer, data, place, target=1, top=2, progress=False)
    shown = references(explainer, found, data, [3], target=1)[3]
    assert [r.sample for r in shown] == found.samples(3)
    expected = explainer(data[shown[0].sample][None], target=1, given={place: [3]}).heatmap()[0]
    np.testing.assert_allclose(shown[0].map, expected.numpy(), atol=1e-12)


def test_the_page_explains_a_picture_by_concepts(tmp_path: Path, open_page) -> None:
    model, _, place, _ = branches()
    data, explainer = samples(6), fxlrp.convert(model)
    found = fxlrp.concepts(explainer, data, place, top=3, progress=False)
    file = show_concepts(
        explainer, found, data, tmp_path / "c.html", explain=data[2], most=4, target=1, labels=["a", "cat", "c", "d"]
    )
    page = open_page(file)
    assert page.locator("h1").inner_text().startswith("cat, ")
    best = explainer.parts(place, data[2][None], target=1).ranked(most=4)
    assert page.locator("h2").all_inner_texts() == [f"channel {i}" for i, _ in best]
    assert f"{best[0][1]:+.1%}" in page.locator("section").first.inner_text()
    assert page.locator("section").first.locator(".by-relevance figure").count() == 3
    first = page.locator(".by-relevance img.heat").first
    assert not first.is_visible()
    page.locator("input[name=heat]").check()
    assert first.is_visible()
    assert not page.locator(".by-activation").first.is_visible()
    page.locator("input[name=active]").check()
    assert page.locator(".by-activation").first.is_visible()


def test_texts_are_shown_by_their_tokens(tmp_path: Path, open_page) -> None:
    explainer, call = captured("bert")

    class Texts(list):
        def seen(self, i: int) -> list[str]:
            return [f" <{t}>" for t in self[i]["input_ids"].tolist()]

    data = Texts({"input_ids": call["input_ids"][i % 2, : 6 - i // 2]} for i in range(4))
    place = "bert.encoder.layer.1.attention.self"
    found = fxlrp.concepts(explainer, data, place, by="heads", top=2, progress=False)
    assert found.mean.shape == (3,)
    file = show_concepts(explainer, found, data, tmp_path / "t.html", explain=data[0], seen=data.seen(0), most=3)
    page = open_page(file)
    assert f"<{int(data[0]['input_ids'][0])}>" in page.locator(".asked").inner_text()
    assert page.locator("h2").count() == 3
