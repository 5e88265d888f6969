"""Attributions are shown and kept: figures, pages in a browser, numbers in files, and files that are read again."""

from __future__ import annotations

import base64
import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import randomize
from PIL import Image
from torch import Tensor, nn

import fxlrp
from fxlrp import Attribution, FxlrpError, convert
from fxlrp.show.files import SUFFIXES, write_pages
from fxlrp.show.parts import parts_of

CLASSES = ("cat", "dog, hound", "<owl>")


class Net(nn.Module):
    """Three classes of small pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).relu().mean((2, 3)))


class Two(nn.Module):
    """Features and a sequence of two curves."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.curve = nn.Linear(5, 3), nn.Conv1d(2, 3, 3)

    def forward(self, table: Tensor, curve: Tensor) -> Tensor:
        return self.table(table) + self.curve(curve).mean(2)


def picture(**how: object) -> Attribution:
    torch.manual_seed(0)
    explainer, x = convert(randomize(Net())), torch.rand(2, 3, 8, 12).double()
    seen = tuple((x.permute(0, 2, 3, 1) * 255).byte().numpy().repeat(2, 1).repeat(2, 2))
    return replace(explainer(x, **how), labels=CLASSES, pictures=seen)  # type: ignore[arg-type]


def two() -> Attribution:
    torch.manual_seed(0)
    x = torch.randn(2, 5).double(), torch.randn(2, 2, 9).double()
    return replace(convert(randomize(Two()))(*x, target=1, contrast=None), labels=CLASSES)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "why"


# words


def test_what_it_says_of_itself() -> None:
    a = picture(target=1)
    chance = 100 * a.logits.softmax(1)[0, 1]
    for said in (str(a), repr(a)):
        assert f"dog, hound, {chance:.1f} %" in said
        assert "against the others by probability" in said
        assert "[2, 3, 8, 12] by abslrp-hybrid" in said
        assert "tensor" not in said
    assert "against cat" in str(picture(target=1, contrast=0))
    assert "against" not in str(picture(target=1, contrast=None))
    assert "the score" in str(picture(target=lambda out: out.sum(1)))


# figures


def test_a_figure_of_a_picture() -> None:
    a = picture(target=[1, 2])
    figure = a.plot(index=1)
    bands = figure.subfigs
    assert [b._suptitle.get_text().split("\n")[0].split(",")[0] for b in bands] == ["dog", "<owl>"]
    for k, band in enumerate(bands):
        assert band._suptitle.get_text().endswith("against the others by probability · abslrp-hybrid")
        shown, heat, both = (axes for axes in band.axes if axes.get_title())
        np.testing.assert_allclose(shown.images[0].get_array() * 255, a.pictures[1], atol=0.5)
        drawn = heat.images[0]
        np.testing.assert_allclose(drawn.get_array(), a.relevance[1, k].sum(0).detach().numpy())
        low, high = drawn.get_clim()
        assert low == -high < 0
        assert drawn.get_cmap()(1.0)[0] > drawn.get_cmap()(1.0)[2]
        assert len(both.images) == 2
        assert [image.get_extent() for image in both.images] == [[0, 24, 16, 0]] * 2
    other = a.plot(colours="lightness").subfigs[0].axes[1].images[0].get_cmap()
    light = [sum(other(v)[:3]) for v in (0.0, 0.5, 1.0)]
    assert light == sorted(light)
    assert a.plot(picture=np.zeros((4, 6, 3))).subfigs[0].axes[0].images[0].get_array().shape == (4, 6, 3)


def test_a_figure_of_features_and_curves() -> None:
    a = two()
    table, curves = a.plot(features=("a", "b", "c", "d", "e"), index=1).subfigs
    r = a.named["table"][1] if "table" in a.named else a.named["0"][1]
    axes = table.axes[0]
    widths = [bar.get_width() for bar in axes.patches]
    np.testing.assert_allclose(widths, r[r.abs().argsort()].detach().numpy())
    strongest = int(r.abs().argmax())
    assert axes.get_yticklabels()[-1].get_text() == f"{'abcde'[strongest]} = {a.inputs[0][1, strongest]:.4g}"
    lines = [axes for axes in curves.axes if axes.collections]
    every = a.named["1"][1].detach().numpy()
    order = np.argsort(-np.abs(every).sum(1))
    for axes, row in zip(lines, order, strict=False):
        np.testing.assert_allclose(axes.lines[0].get_ydata(), a.inputs[1][1, row].numpy())
        np.testing.assert_allclose(axes.collections[0].get_array(), (every[row][1:] + every[row][:-1]) / 2)


def test_colours_and_samples_that_can_not_be() -> None:
    a = picture()
    with pytest.raises(FxlrpError, match="no colours 'nonsense'"):
        a.plot(colours="nonsense")
    with pytest.raises(FxlrpError, match="index=2 is out of range; give one of the 2 samples"):
        a.plot(index=2)
    with pytest.raises(FxlrpError, match=r"give an array \[H, W, 3\]"):
        a.plot(picture=np.zeros((8, 8)))


# files


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_kind_of_file_is_written(suffix: str, saved: Path) -> None:
    a = picture(target=1)
    path = a.save(saved.with_suffix(suffix))
    assert path.stat().st_size > 500
    if suffix in (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff"):
        with Image.open(path) as image:
            assert image.width > 2 * image.height
            assert np.asarray(image.convert("RGB")).std() > 20
    if suffix in (".png", ".svg", ".pdf"):
        assert b"against the others by probability" in path.read_bytes().replace(b"\\(", b"(")


def test_what_was_asked_is_in_the_png(saved: Path) -> None:
    with Image.open(picture(target=2).save(saved.with_suffix(".png"), dpi=50)) as image:
        about = json.loads(image.info["fxlrp"])
    assert about["rules"] == "abslrp-hybrid"
    assert about["samples"][0]["explained"][0]["target"].startswith("<owl>, ")


def test_numbers(saved: Path) -> None:
    a = picture(target=[0, 1], contrast=None)
    heat = a.relevance.detach().sum(2).numpy()
    about = json.loads(a.save(saved.with_suffix(".json")).read_text())
    for i, row in enumerate(about["samples"]):
        assert row["against"] == ""
        assert [c["name"] for c in row["classes"]] == [CLASSES[k] for k in a.logits[i].argsort(descending=True)]
        assert abs(sum(c["probability"] for c in row["classes"]) - 1) < 1e-6
        for k, asked in enumerate(row["explained"]):
            found = asked["inputs"]["0"]
            np.testing.assert_allclose(found["positive"] + found["negative"], heat[i, k].sum(), rtol=1e-9)
            np.testing.assert_allclose(found["strongest"]["relevance"], heat[i, k][tuple(found["strongest"]["at"])])
            assert abs(found["strongest"]["relevance"]) == np.abs(heat[i, k]).max()
    rows = list(csv.DictReader(a.save(saved.with_suffix(".csv")).open()))
    assert len(rows) == heat.size
    for row in rows[:: len(rows) // 7]:
        y, x = map(int, row["place"].split())
        k = CLASSES.index(row["class"])
        np.testing.assert_allclose(float(row["relevance"]), heat[int(row["sample"]), k, y, x], rtol=1e-5)
    arrays = np.load(a.save(saved.with_suffix(".npz")))
    np.testing.assert_allclose(arrays["relevance.0"], a.relevance.detach().float().numpy())
    np.testing.assert_array_equal(arrays["target"], a.target)


@pytest.mark.parametrize("kind", ["picture", "several", "two", "class", "callable"])
def test_what_was_saved_is_read_again(kind: str, saved: Path) -> None:
    a = {
        "picture": lambda: picture(at=["conv"]),
        "several": lambda: picture(target=[2, 0], contrast=None),
        "two": two,
        "class": lambda: picture(target=1, contrast=2),
        "callable": lambda: picture(target=lambda out: out[:, 0] - out[:, 1]),
    }[kind]()
    b = fxlrp.load(a.save(saved.with_suffix(".safetensors")))
    for name, r in a.named.items():
        assert torch.equal(b.named[name], r)
    assert (b.labels, b.rules, b.names) == (a.labels, a.rules, a.names)
    assert torch.equal(b.logits, a.logits)
    assert (a.target is None) == (b.target is None)
    assert {name: r.sum() for name, r in a.latent.items()} == {name: r.sum() for name, r in b.latent.items()}
    assert str(b) == str(a)
    for one, other in zip(parts_of(a, 1), parts_of(b, 1), strict=True):
        np.testing.assert_array_equal(one.values, other.values)
        np.testing.assert_array_equal(one.relevance, other.relevance)


def test_files_that_are_none(saved: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    a = picture()
    with pytest.raises(FxlrpError, match=r"no extension that is written; give a name that ends in .png"):
        a.save(saved.with_suffix(".psd"))
    (tmp_path / "file").touch()
    for suffix in (".png", ".html", ".json"):
        with pytest.raises(FxlrpError, match="cannot be written"):
            a.save(tmp_path / "file" / f"a{suffix}")
    with pytest.raises(FxlrpError, match="There is no file"):
        fxlrp.load(tmp_path / "none.safetensors")
    save_file({"w": torch.ones(2)}, tmp_path / "weights.safetensors")
    (tmp_path / "text.safetensors").write_text("nothing of the kind")
    for name in ("weights", "text"):
        with pytest.raises(FxlrpError, match="holds no attribution"):
            fxlrp.load(tmp_path / f"{name}.safetensors")


# pages


def test_a_page_of_a_picture(open_page, tmp_path: Path) -> None:
    with_contrast, without = picture(target=[1, 2], at=["conv"]), picture(target=[1, 2], contrast=None)
    page = open_page(write_pages(tmp_path / "why.html", [[with_contrast, without]]))
    first = page.locator(".fxa").first
    heat = with_contrast.relevance[0].sum(1).detach()
    assert first.locator("h1").inner_text().startswith("why dog, hound, ")
    buttons = first.locator("button")
    assert buttons.all_inner_texts() == ["dog, hound", "<owl>", "against the others by probability", "no contrast"]
    canvas = first.locator("figure canvas").first
    canvas.wait_for()
    page.wait_for_function("document.querySelector('canvas').getAttribute('data-painted') === '0'")
    box = canvas.bounding_box()

    def value_at(y: int, x: int) -> float:
        canvas.hover(position={"x": (x + 0.5) / 12 * box["width"], "y": (y + 0.5) / 8 * box["height"]})
        return float(first.locator(".value").inner_text().split(": ")[1].replace("−", "-"))

    y, x = divmod(int(heat[0].abs().argmax()), 12)
    assert abs(value_at(y, x) - float(heat[0, y, x])) < 0.02 * float(heat[0].abs().max())
    buttons.nth(1).click()
    assert first.locator("h1").inner_text().startswith("why <owl>, ")
    assert first.get_attribute("data-shown") == "1"
    page.wait_for_function("document.querySelector('canvas').getAttribute('data-painted') === '1'")
    assert abs(value_at(y, x) - float(heat[1, y, x])) < 0.02 * float(heat[1].abs().max())
    buttons.nth(3).click()
    assert first.get_attribute("data-shown") == "3"  # the owl still, without a contrast
    assert first.locator(".asked").inner_text() == "abslrp-hybrid"
    assert first.locator(".inside canvas").count() == 0
    assert first.locator(".words li").count() == 10
    assert page.locator(".fxa").count() == 2


def pixels(page, shape: tuple[int, int]) -> np.ndarray:
    drawn = page.evaluate("document.querySelector('figure canvas').toDataURL()")
    found = np.asarray(Image.open(io.BytesIO(base64.b64decode(drawn.partition(",")[2]))).convert("RGBA")).astype(int)
    assert found.shape == (*shape, 4)
    return found


def test_sliders_and_colours(open_page, tmp_path: Path) -> None:
    a = picture(target=0)
    page = open_page(a.to_html(tmp_path / "why.html"))
    heat = a.heatmap()[0].detach().numpy()
    page.wait_for_function("document.querySelector('canvas').getAttribute('data-painted') === '0'")

    def slide(name: str, value: int) -> None:
        page.locator(f"input[name={name}]").evaluate(f"e => {{e.value={value};e.dispatchEvent(new Event('input'))}}")
        page.wait_for_timeout(50)

    strong = np.abs(heat) > 0.3 * np.abs(heat).max()
    shown = pixels(page, heat.shape)
    assert (shown[strong & (heat > 0)][:, 0] > shown[strong & (heat > 0)][:, 2]).all()
    assert (shown[strong & (heat < 0)][:, 0] < shown[strong & (heat < 0)][:, 2]).all()
    slide("threshold", 60)
    hidden = pixels(page, heat.shape)[..., 3] == 0
    assert hidden[np.abs(heat) < 0.5 * np.abs(heat).max()].mean() > 0.9
    assert not hidden.all()
    slide("threshold", 0)
    slide("opacity", 0)
    assert not pixels(page, heat.shape)[..., 3].any()
    slide("opacity", 100)
    page.locator("select").select_option("lightness")
    page.wait_for_timeout(50)
    light = pixels(page, heat.shape)[..., :3].sum(-1)
    assert np.corrcoef(np.clip(heat.ravel() / np.abs(heat).max(), -1, 1), light.ravel())[0, 1] > 0.9


def test_a_page_of_features_and_curves(open_page, tmp_path: Path) -> None:
    a = two()
    page = open_page(a.to_html(tmp_path / "why.html", features=list("abcde")))
    first = page.locator(".fxa").first
    r = a.named["0"][0].detach()
    names = [name[0] for name in first.locator(".bars span:nth-child(3n+1)").all_inner_texts()]
    assert names == ["abcde"[i] for i in r.abs().argsort(descending=True)]
    values = [float(v.replace("−", "-")) for v in first.locator(".bars output").all_inner_texts()]
    np.testing.assert_allclose(values, r[r.abs().argsort(descending=True)], rtol=0.01)
    assert first.locator("svg").count() == 2
    titles = first.locator("svg").first.locator("rect title").all_text_contents()
    order = int(a.named["1"][0].abs().sum(1).argmax())
    said = [float(t.rpartition("relevance ")[2].replace("−", "-")) for t in titles]
    np.testing.assert_allclose(said, a.named["1"][0, order].detach(), rtol=0.01)


def test_a_notebook_gets_a_page_not_tensors() -> None:
    shown = picture()._repr_html_()
    assert "<script>" in shown
    assert "<html" not in shown
    assert "tensor(" not in shown
    assert "\\u003cowl>" in shown  # names are no markup


def test_a_large_picture_makes_a_small_page() -> None:
    x = torch.rand(1, 3, 1200, 900)
    a = Attribution(torch.randn_like(x), x, torch.rand(1, 3), torch.tensor([1]), inputs=(x,), labels=CLASSES)
    assert len(a._repr_html_()) < 1_500_000
