"""Pages in a real browser: nothing is fetched, tokens are coloured, scores show, questions switch."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

import fxlrp
from fxlrp import FxlrpError
from fxlrp.text import Asked, TextAttribution
from fxlrp.text.words import Piece

TEXT = "not a dull film"
PIECES = [Piece("[CLS]", 0, 0, 0), *[Piece(TEXT[i:j].strip(), 0, i, j) for i, j in ((0, 3), (4, 5), (6, 10), (11, 15))]]


@pytest.fixture
def visit(open_page, tmp_path: Path):
    """Write an attribution's page and open it."""
    return lambda a: open_page(a.to_html(tmp_path / "page.html"))


def colours(page) -> list[tuple[float, ...]]:
    """Red, green, blue of each token's background, as the browser paints it, and how far from white that is."""
    found = page.locator(".t").evaluate_all("all => all.map(t => getComputedStyle(t).backgroundColor)")
    values = [[float(v) for v in c[c.index("(") + 1 : -1].split(",")] for c in found]
    return [(*v, 1 - min(v) / 255) for v in values]


def assert_shown(page, scores: torch.Tensor) -> None:
    """Every token is red if it spoke for, blue if against, in the order of strength."""
    shown = colours(page)
    for (red, _, blue, opacity), r in zip(shown, scores.tolist(), strict=True):
        assert (red > blue) == (r > 0) or not opacity
    strength = torch.tensor([opacity for *_, opacity in shown])
    assert strength.argsort(stable=True).equal(scores.abs().argsort(stable=True))
    assert strength.max() > 0.5


def test_classes(visit) -> None:
    matrix = torch.tensor([[0.0, -0.5, 0.1, 0.9, -0.2], [0.0, 0.4, -0.1, -0.8, 0.3]])
    page = visit(TextAttribution([TEXT], PIECES, matrix, [Asked("bad", None, 0.8), Asked("good", None, 0.2)]))
    assert page.locator(".text").inner_text() == f"[CLS] {TEXT}"
    assert_shown(page, matrix[0])
    page.get_by_role("button", name="good").click()
    assert_shown(page, matrix[1])
    assert page.locator("button[aria-pressed=true]").inner_text() == "good (20.0%)"
    dull = page.locator(".t").nth(3)
    dull.hover()
    assert dull.evaluate("t => getComputedStyle(t, '::after').content") == '"−0.800"'
    assert page.locator(".t").nth(2).evaluate("t => getComputedStyle(t, '::after').content") == "none"
    page.get_by_text("all rows").click()
    cells = page.locator("table tr").nth(1).locator("td")
    assert cells.all_inner_texts()[0] == "bad (80.0%)"
    cells.first.click()
    assert_shown(page, matrix[0])


def test_what_a_page_says_and_its_other_colours(visit) -> None:
    """As the pages of pictures do: what was asked, the rulebook and version, the words by relevance, a second map."""
    matrix = torch.tensor([[0.1, -0.5, 0.1, 0.9, 0.0], [0.0, 0.4, -0.1, -0.8, 0.3]])
    asked = [Asked("bad", "softmax", 0.8), Asked("good", "bad", 0.2)]
    page = visit(TextAttribution([TEXT], PIECES, matrix, asked, rules="gamma"))
    assert page.title() == "why bad (80.0%)? · fxlrp"
    assert page.get_by_text(f"fxlrp {fxlrp.__version__}", exact=True).is_visible()
    assert page.locator(".question").inner_text() == "against the others by probability · gamma"
    listed = page.locator(".words li")
    assert listed.all_text_contents() == [
        "dull (word 3): 60% of relevance, for it",
        "not (word 1): 33% of relevance, against it",
        "a (word 2): 7% of relevance, for it",
    ]
    page.locator("select").select_option("lightness")
    shades = [sum(c[:3]) for c in colours(page)]
    assert shades[1] < shades[0]  # against is dark
    red, green, blue, _ = colours(page)[3]
    assert min(red, green) > 200 > blue  # for is light, yellow
    page.get_by_role("button", name="good").click()
    assert page.locator(".question").inner_text() == "gamma"  # the button says against what
    inks = page.locator(".t").evaluate_all("all => all.map(t => getComputedStyle(t).color)")
    assert inks[3] == "rgb(255, 255, 255)" != inks[1]  # white on dark
    assert listed.first.text_content() == "dull (word 3): 50% of relevance, against it"


def test_generation(visit) -> None:
    """A click on a token that was written colours what it was written from."""
    matrix = torch.tensor([[0.0, 0.3, -0.1, 0.0, 0.0], [0.0, -0.2, 0.6, 0.4, 0.0]])
    page = visit(TextAttribution([TEXT], PIECES, matrix, [Asked("dull", token=3), Asked("film", token=4)]))
    assert page.locator(".can").all_inner_texts() == ["dull", "film"]
    page.locator(".can").nth(1).click()
    assert_shown(page, matrix[1])
    assert page.locator(".asked").inner_text() == "film"
    page.locator(".can").first.click()
    assert_shown(page, matrix[0])
    assert page.locator(".asked").inner_text() == "dull"


def test_one_question_and_markup(visit) -> None:
    text = "</script><img src=x onerror=fail()>"
    piece = Piece(text, 0, 0, len(text))
    page = visit(TextAttribution([text], [piece], torch.tensor([[-1.0]]), [Asked("<b>", "'\"&")]))
    assert page.locator(".t").inner_text() == text
    assert page.locator("b").inner_text() == "<b>, not '\"&"
    assert_shown(page, torch.tensor([-1.0]))
    assert page.locator("button, table").count() == 0


def test_a_text_attribution_is_kept_and_read_again(tmp_path: Path) -> None:
    a = fxlrp.explain(Path(fxlrp.__file__).parent / "examples" / "text", "the film was not funny", target="negative")
    b = fxlrp.load(a.save(tmp_path / "a.json"))
    assert torch.equal(b.matrix, a.matrix)
    assert (b.words, b.asked, b.segments, b.pieces) == (a.words, a.asked, a.segments, a.pieces)
    rows = list(csv.DictReader(a.save(tmp_path / "a.csv").open()))
    assert [r["token"] for r in rows] == a.tokens
    assert max(abs(float(r["relevance"]) - s) for r, s in zip(rows, a.scores.tolist(), strict=True)) < 1e-5
    assert 'class="text"' in a.save(tmp_path / "a.html").read_text()
    with pytest.raises(FxlrpError, match="no extension that is written"):
        a.save(tmp_path / "a.npz")
    for content, said in (("{", "is not JSON"), ("{}", "holds no attribution of a text")):
        (tmp_path / "b.json").write_text(content)
        with pytest.raises(FxlrpError, match=said):
            fxlrp.load(tmp_path / "b.json")
    held = {**a.to_dict(), "spans": []}
    with pytest.raises(FxlrpError, match="no attribution of a text"):
        TextAttribution.from_dict(held)
