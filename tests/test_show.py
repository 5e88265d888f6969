"""Attributions are shown and kept: figures, pages in a browser, numbers in files, and files that are read again."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import randomize
from matplotlib.text import Text
from PIL import Image
from torch import Tensor, nn

import fxlrp
from fxlrp import Attribution, FxlrpError, convert
from fxlrp.errors import NoGlyphs
from fxlrp.show.figure import compare
from fxlrp.show.files import SUFFIXES, save_comparison, write_pages
from fxlrp.show.parts import laid_out, parts_of
from fxlrp.show.words import probabilities
from fxlrp.text.attribution import Asked as AskedOfText
from fxlrp.text.attribution import TextAttribution
from fxlrp.text.words import Piece

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


def test_letters_that_the_fonts_of_a_figure_lack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn) -> None:
    from fontTools.ttLib import TTFont
    from matplotlib import font_manager

    manager, letters = font_manager.fontManager, "\U00012000\U00012001"  # cuneiform
    monkeypatch.setattr(manager, "ttflist", [f for f in manager.ttflist if f.name == "DejaVu Sans"])
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [str(p) for p in tmp_path.glob("*.ttf")])
    x = torch.rand(1, 2)
    a = Attribution(x, x, torch.rand(1, 2), torch.tensor([0]), inputs=(x,), labels=(letters, "b"))
    words = TextAttribution([letters], [Piece(letters, 0, 0, 2)], torch.ones(1, 1), [AskedOfText("good")])
    for drawn in (a, words):
        with pytest.warns(NoGlyphs, match=f"letters {letters[0]}, {letters[1]}, which are drawn as boxes: install"):
            drawn.save(tmp_path / "boxes.png")
    font = TTFont(font_manager.findfont("DejaVu Sans"))  # as installed now: one that calls its A and B cuneiform
    for table in font["cmap"].tables:
        if table.format == 12:
            table.cmap |= {ord(letter): glyph for letter, glyph in zip(letters, "AB", strict=True)}
    for entry in font["name"].names:
        entry.string = "Of Clay"
    font.save(tmp_path / "clay.ttf")
    recwarn.clear()
    for drawn in (a, words):
        (text,) = (t for t in drawn.plot().findobj(Text) if letters in t.get_text())
        assert text.get_family()[-1] == "Of Clay"
        drawn.save(tmp_path / "letters.png")
    assert not recwarn.list


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
    score = picture(target=lambda out: out.sum(1)).save(saved.with_suffix(".csv"))
    assert {row["class"] for row in csv.DictReader(score.open())} == {"the score"}
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


def painted(page: Any, which: str) -> None:
    """Waits until the first map of a page shows a question, without a function that the page's policy forbids."""
    page.locator(f"canvas[data-painted='{which}']").first.wait_for()


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
    painted(page, "0")
    box = canvas.bounding_box()

    def value_at(y: int, x: int) -> float:
        canvas.hover(position={"x": (x + 0.5) / 12 * box["width"], "y": (y + 0.5) / 8 * box["height"]})
        return float(first.locator(".value").inner_text().split(": ")[1].replace("−", "-"))

    y, x = divmod(int(heat[0].abs().argmax()), 12)
    assert abs(value_at(y, x) - float(heat[0, y, x])) < 0.02 * float(heat[0].abs().max())
    buttons.nth(1).click()
    assert first.locator("h1").inner_text().startswith("why <owl>, ")
    assert first.get_attribute("data-shown") == "1"
    painted(page, "1")
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
    painted(page, "0")

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


def test_a_long_sound_makes_a_small_page(open_page, tmp_path: Path) -> None:
    x, r = torch.randn(1, 1, 160_000), torch.randn(1, 1, 160_000, dtype=torch.float64)
    a = Attribution(r, x, torch.rand(1, 3), torch.tensor([1]), inputs=(x,), labels=CLASSES)
    file = a.to_html(tmp_path / "sound.html")
    assert file.stat().st_size < 100_000
    titles = open_page(file).locator("svg rect title").all_text_contents()
    assert titles[0].startswith("time 0 to 159: value ")
    assert titles[-1].startswith("time 159840 to 159999: value ")
    said = torch.tensor([[float(v.replace("−", "-")) for v in re.findall(r"value (\S+), relevance (\S+)$", t)[0]]
                         for t in titles])  # fmt: skip
    np.testing.assert_allclose(said[:, 1], r.reshape(1000, 160).sum(1), rtol=0.01, atol=1e-3)
    np.testing.assert_allclose(said[:, 0].abs(), x.reshape(1000, 160).abs().amax(1), rtol=0.01)


class Nodes(nn.Module):
    """Each node's classes by its neighbours' mean."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(2, 3)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        return self.head(x + torch.zeros_like(x).index_add(0, edges[1], x[edges[0]]))


def graph() -> tuple[Attribution, Tensor]:
    torch.manual_seed(0)
    edges = torch.tensor([[0, 1, 2, 3], [1, 2, 3, 4]])
    model, x = randomize(Nodes()), torch.randn(6, 2).double()
    a = fxlrp.explain(model, x, edges, position=2, target=[1, 0], contrast=None)
    assert isinstance(a, Attribution)
    return a, edges


def test_a_graph_has_nodes_and_edges(open_page, tmp_path: Path) -> None:
    a, edges = graph()
    assert torch.equal(a.edges, edges)  # found among the arguments
    (part,) = parts_of(a)
    np.testing.assert_allclose(part.relevance, a.relevance.detach().sum(2))
    page = open_page(a.to_html(tmp_path / "graph.html"))
    assert page.locator("svg.graph line").count() == 4
    titles = page.locator("svg.graph circle title").all_text_contents()
    said = [float(t.rpartition(": ")[2].replace("−", "-")) for t in titles]
    np.testing.assert_allclose(said, part.relevance[0], rtol=0.01, atol=1e-9)
    page.locator("button", has_text="class 0").click()
    titles = page.locator("svg.graph circle title").all_text_contents()
    said = [float(t.rpartition(": ")[2].replace("−", "-")) for t in titles]
    np.testing.assert_allclose(said, part.relevance[1], rtol=0.01, atol=1e-9)
    assert page.locator("h1").inner_text().startswith("why class 0 at 2, ")
    a.save(tmp_path / "g.csv")
    assert len((tmp_path / "g.csv").read_text().splitlines()) == 1 + 2 * 6


class Bonds(Nodes):
    """Nodes given by numbers, and edges with features; one answer for the whole graph."""

    def __init__(self) -> None:
        super().__init__()
        self.atoms, self.bonds = nn.Embedding(4, 2), nn.Linear(3, 2)

    def forward(self, atoms: Tensor, edges: Tensor, bonds: Tensor) -> Tensor:
        x = self.atoms(atoms)
        heard = (x[edges[0]] * self.bonds(bonds)).relu()
        return self.head(torch.zeros_like(x).index_add(0, edges[1], heard)).sum(0, keepdim=True)


def test_nodes_and_edges_that_both_have_relevance(open_page, tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = torch.tensor([[0, 1, 2], [1, 2, 3]])
    edges = torch.cat([path, path.flip(0)], 1)  # both directions: six rows are three lines
    atoms = torch.tensor([0, 1, 2, 3])
    a = fxlrp.explain(Bonds().eval(), atoms, edges, torch.randn(6, 3), features=("C", "N", "O", "F"))
    assert isinstance(a, Attribution)
    nodes, bonds = parts_of(a)
    assert (nodes.kind, nodes.labels) == ("nodes", ("C", "N", "O", "F"))
    assert (bonds.kind, bonds.labels[0], bonds.labels[5]) == ("edges", "edge 0 → 1", "edge 3 → 2")
    np.testing.assert_allclose(nodes.relevance[0], a.each[0].detach().reshape(4, -1).sum(1))
    np.testing.assert_allclose(bonds.relevance[0], a.each[1].detach().sum(1))
    sums = bonds.relevance[0, :3] + bonds.relevance[0, 3:]
    page = open_page(a.to_html(tmp_path / "both.html"))
    first, second = page.locator("svg.graph").all()
    assert [t.split(":")[0] for t in first.locator("circle title").all_text_contents()] == ["C", "N", "O", "F"]
    said = [t.split(": ") for t in second.locator("line title").all_text_contents()]
    assert [name for name, _ in said] == ["0 – 1", "1 – 2", "2 – 3"]
    np.testing.assert_allclose([float(v.replace("−", "-")) for _, v in said], sums, rtol=0.01)
    captions = page.locator("figcaption").all_inner_texts()
    tops = [float(c.rpartition(" ")[2]) for c in captions if c.startswith("input ")]
    np.testing.assert_allclose(tops, [np.abs(nodes.relevance).max(), np.abs(sums).max()], rtol=0.01)
    words = page.locator(".words li").all_text_contents()
    assert [w.partition(", ")[0] for w in words] == [p.title for p in (nodes, bonds) for r in p.relevance[0] if r]
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    lines = a.plot().subfigs[1].axes[0].collections[-1]
    np.testing.assert_allclose(lines.get_array(), sums)


def test_a_large_graph_shows_the_nodes_that_count() -> None:
    x = torch.zeros(1000, 1)
    x[500:700] = torch.rand(200, 1) + 0.1
    edges = torch.stack([torch.arange(999), torch.arange(1, 1000)])
    a = Attribution(x, x, torch.zeros(1, 2), torch.tensor([0]), ("0",), (x,), edges=edges)
    nodes, places, joined, _ = laid_out(parts_of(a)[0])
    assert len(nodes) == len(places) == 300
    assert set(range(500, 700)) <= set(nodes.tolist())
    assert {(int(nodes[u]), int(nodes[v])) for u, v in joined} >= {(i, i + 1) for i in range(500, 699)}
    assert a.plot() is not None


def test_a_place_in_a_map_is_named_with_its_probability() -> None:
    torch.manual_seed(0)
    net = randomize(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 1)))
    x = torch.rand(1, 3, 8, 8).double()
    a = fxlrp.explain(net, x, position=(2, 5), labels=CLASSES)
    chance = net(x)[0, :, 2, 5].softmax(0)
    assert f"{CLASSES[int(chance.argmax())]} at (2, 5), {100 * chance.max():.1f} %" in str(a)


def test_one_score_is_no_class() -> None:
    net = randomize(nn.Linear(3, 1))
    x = torch.ones(2, 3).double()
    a = fxlrp.explain(net, x)
    assert f"Attribution of the score, {float(net(x)[0, 0]):.4g}; " in str(a)
    assert "against" not in str(a)


def test_one_sigmoid_is_a_probability() -> None:
    net = randomize(nn.Sequential(nn.Linear(3, 1), nn.Sigmoid()))
    x = torch.ones(2, 3).double()
    assert f"Attribution of the score, {100 * float(net(x)[0, 0]):.1f} %; " in str(fxlrp.explain(net, x))


def test_probabilities_of_a_batch_are_those_of_each() -> None:
    rows = torch.tensor([[0.2, 0.3, 0.5], [-0.5, 1.0, 0.5], [2.0, 3.0, 1.0]])  # the first add up to 1
    for independent in (False, True):
        each = torch.stack([probabilities(row, independent) for row in rows])
        torch.testing.assert_close(probabilities(rows, independent), each)
    torch.testing.assert_close(probabilities(rows)[0], rows[0])


def test_a_long_series_of_one_is_a_curve() -> None:
    x = torch.rand(1, 200)
    a = Attribution(x, x, torch.zeros(1, 2), torch.tensor([0]), ("0",), (x,))
    assert parts_of(a)[0].kind == "curves"
    assert parts_of(a, features=[str(i) for i in range(200)])[0].kind == "features"


def test_many_series_are_a_picture_and_ids_are_ids() -> None:
    x = torch.rand(1, 20, 100)
    a = Attribution(x, x, torch.zeros(1, 2), torch.tensor([0]), ("0",), (x,))
    (part,) = parts_of(a)
    assert (part.kind, part.values.shape, part.relevance.shape) == ("picture", (20, 100, 3), (1, 20, 100))
    ids = torch.tensor([[3, 4], [5, 6]])
    a = Attribution(torch.rand(2, 2), ids, torch.zeros(1, 2), torch.tensor([0]), ("0",), (ids,))
    (part,) = parts_of(a)
    assert (part.kind, part.labels) == ("features", ("id 3", "id 4", "id 5", "id 6"))


def test_a_comparison_in_every_kind_of_file(open_page, tmp_path: Path) -> None:
    maps = {"one": picture(contrast=None), "two": picture(contrast="others")}
    for name in ("c.png", "c.svg"):
        assert save_comparison(maps, tmp_path / name).stat().st_size > 5000
    image = Image.open(tmp_path / "c.png")
    assert json.loads(image.text["fxlrp"])["two"]["samples"][0]["against"]
    arrays = np.load(save_comparison(maps, tmp_path / "c.npz"))
    np.testing.assert_allclose(arrays["two.relevance.0"], maps["two"].relevance.detach().float())
    assert set(json.loads(save_comparison(maps, tmp_path / "c.json").read_text())) == {"one", "two"}
    shown = open_page(save_comparison(maps, tmp_path / "c.html"))
    assert shown.locator(".fxa").first.locator("button").all_inner_texts() == ["no contrast", "against the others"]
    for name in ("c.docx", "c.csv"):
        with pytest.raises(FxlrpError, match="no extension that a comparison is written as"):
            save_comparison(maps, tmp_path / name)
    figure = compare({"one": two(), "two": two()})
    assert len(figure.subfigs) == 4


def test_style_and_script_once_for_many(tmp_path: Path) -> None:
    page = write_pages(tmp_path / "many.html", [[picture()], [two()]]).read_text()
    assert page.count("<style>") == page.count("<script>") == 1
    assert page.count('class="fxa"') == 4


def test_what_was_asked_is_read_again(tmp_path: Path) -> None:
    a = replace(graph()[0], asked="node 2", features=("age", "size"))
    b = fxlrp.load(a.save(tmp_path / "a.safetensors"))
    assert isinstance(b, Attribution)
    assert (b.asked, b.features, b.position) == ("node 2", ("age", "size"), 2)
    assert torch.equal(b.edges, a.edges)
