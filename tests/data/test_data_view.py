"""The page of maps: browsed in Chromium, from one file or a folder, and never more than was there."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from data_cases import LABELS, Tensors, all_decoded, load, pictures
from PIL import Image
from typer.testing import CliRunner

from fxlrp import FxlrpError
from fxlrp.cli import app
from fxlrp.data import explain, read, view
from fxlrp.data.view import overlay

pytest.importorskip("pyarrow")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("view")
    data = pictures(place / "data" / "up", 6)
    pictures(place / "data" / "<b>left</b>", 6)
    (data / "003.png").write_bytes(b"broken")
    explain(load, place / "data", place / "out", batch=4, shard=4)
    return place / "out"


def keys(page) -> list[str]:
    return page.locator(".card .key").all_inner_texts()


def test_a_page_is_sorted_filtered_and_opened(open_page, out: Path, tmp_path: Path) -> None:
    rows = list(read(out))
    page = open_page(view(out, tmp_path / "maps.html"))
    assert page.locator("output").inner_text() == "12 of 12"
    assert keys(page) == [r["key"] for r in rows]
    assert page.locator("h1").inner_text().startswith("small on ")
    all_decoded(page, ".card img")
    page.select_option("[name=shown]", "error")
    assert keys(page) == ["up/003.png"]
    assert "not a picture that can be read" in page.locator(".card .error").inner_text()
    page.select_option("[name=shown]", "fine")
    page.select_option("[name=order]", "positive")
    page.check("[name=down]")
    fine = sorted((r for r in rows if not r["error"]), key=lambda r: (-round(r["positive"], 4), r["index"]))
    assert keys(page) == [r["key"] for r in fine]
    page.select_option("[name=order]", "score")
    best = max((r for r in rows if not r["error"]), key=lambda r: r["scores"][0])
    assert page.locator(".card").first.inner_text().startswith(f"{best['name']}, {100 * best['scores'][0]:.1f} %")
    page.select_option("[name=shown]", "wrong")
    assert set(keys(page)) == {r["key"] for r in fine if r["label"] != r["name"]}
    page.select_option("[name=shown]", "")
    name = fine[0]["name"]
    page.select_option("[name=name]", name)
    assert set(keys(page)) == {r["key"] for r in fine if r["name"] == name}
    page.select_option("[name=name]", "")
    page.fill("[name=find]", "UP/00")
    assert len(keys(page)) == 6
    page.select_option("[name=order]", "i")
    page.uncheck("[name=down]")
    page.locator(".card").nth(1).click()
    dialog = page.locator("dialog")
    assert dialog.locator("h2").inner_text() == "up/001.png"
    assert dialog.locator("img").count() == 3
    page.keyboard.press("ArrowRight")
    assert dialog.locator("h2").inner_text() == "up/002.png"
    page.locator("dialog .close").click()
    assert not dialog.is_visible()
    page.locator("[name=opacity]").fill("20")
    assert page.locator("img.map").first.evaluate("i => i.style.opacity") == "0.2"
    assert page.locator("b").count() == 0  # a folder's name is text


def test_a_folder_has_its_pictures_beside_it(browser, out: Path, tmp_path: Path) -> None:
    file = view(out, tmp_path / "browse")
    assert file == tmp_path / "browse" / "index.html"
    assert len(list((tmp_path / "browse" / "maps").rglob("*.png"))) == 11
    assert "base64" not in file.read_text("utf-8")
    page = browser.new_page()
    elsewhere: list[str] = []
    page.on("request", lambda r: None if r.url.startswith((tmp_path / "browse").as_uri()) else elsewhere.append(r.url))
    page.goto(file.as_uri())
    all_decoded(page, ".card img")
    assert page.locator(".card img").count() == 22
    page.close()
    assert not elsewhere
    view(out, tmp_path / "browse")  # its own folder is written again, no other
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("")
    with pytest.raises(FxlrpError, match="holds other things"):
        view(out, tmp_path / "other")


def test_a_large_set_is_taken_evenly(open_page, out: Path, tmp_path: Path) -> None:
    page = open_page(view(out, tmp_path / "few.html", limit=4))
    assert keys(page) == [read(out)[i]["key"] for i in (0, 3, 6, 9)]
    assert "4 of 12 are shown, taken evenly" in page.locator("h1").inner_text()


def test_a_class_alone(open_page, out: Path, tmp_path: Path) -> None:
    name = next(r["name"] for r in read(out) if r["name"])
    page = open_page(view(out, tmp_path / "one.html", name=name))
    assert len(keys(page)) == sum(r["name"] == name for r in read(out))
    with pytest.raises(FxlrpError, match="no map of class nothing"):
        view(out, tmp_path / "none.html", name="nothing")


def test_texts_are_coloured(open_page, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    import fxlrp

    folder = Path(fxlrp.__file__).parent / "examples" / "text"
    file = tmp_path / "t.jsonl"
    texts = ["a truly <i>wonderful</i> film", "the plot is dull", " "]
    file.write_text("\n".join(json.dumps({"text": t, "label": 1}) for t in texts))
    maps = explain(folder, file, tmp_path / "out")
    page = open_page(view(tmp_path / "out", tmp_path / "texts.html"))
    said = page.locator(".card .text").all_inner_texts()
    assert said[0].replace("[CLS]", "").replace("[SEP]", "").strip() == texts[0]
    colours = page.locator(".card").nth(1).locator("span").evaluate_all("all => all.map(s => s.style.background)")
    r = maps[1]["relevance"].astype(float)
    red = [c.startswith("rgba(219") for c in colours]
    assert red == [bool(v >= 0) for v in r]
    assert page.locator(".card .wrong").inner_text() == "negative, " + f"{100 * maps[1]['scores'][0]:.1f}" + (
        " % (label positive)"
    )


@pytest.mark.parametrize("keep", ["full", "top:7", "latent:1"])
def test_other_tensors_and_what_is_kept_are_shown(keep: str, open_page, tmp_path: Path) -> None:
    explain(load, Tensors(3), tmp_path / "out", keep=keep, labels=LABELS)
    page = open_page(view(tmp_path / "out", tmp_path / "page.html"))
    all_decoded(page, ".card img")
    assert page.locator(".card img.map").count() == 3


def test_a_map_is_red_for_blue_against_and_clear_at_zero() -> None:
    heat = np.array([[0.0, 1.0, -1.0, 0.5]])
    pixels = np.asarray(Image.open(io.BytesIO(overlay(heat))).convert("RGBA"))[0]
    assert pixels[0, 3] == 0
    assert pixels[1].tolist() == [219, 20, 26, 255]
    assert pixels[2].tolist() == [33, 77, 217, 255]
    assert pixels[3, 3] == pytest.approx(255 * 0.5**0.6, abs=2)


def test_the_command(out: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["view", str(out), "-o", str(tmp_path / "page.html")])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "page.html").stat().st_size > 10_000
    assert CliRunner().invoke(app, ["view", str(tmp_path)]).exit_code == 2
