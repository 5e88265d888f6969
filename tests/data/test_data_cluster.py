"""Clever Hans is found: a planted tag is marked, exactly the pictures that have it, and nothing where there is none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from data_cases import Tensors, all_decoded, load
from typer.testing import CliRunner

import fxlrp
from fxlrp import FxlrpError
from fxlrp.cli import app
from fxlrp.data import Maps, cluster, explain
from fxlrp.data.cluster import _spectral

pytest.importorskip("pyarrow")
pytest.importorskip("sklearn", reason="scikit-learn is not installed (pip install 'fxlrp[data]')")
pytest.importorskip("timm")
from hans_cases import misled, saved


@pytest.fixture(scope="module")
def maps(tmp_path_factory: pytest.TempPathFactory) -> Maps:
    place = tmp_path_factory.mktemp("hans")
    return explain(misled(), saved(place / "pictures", 140, tag=True), place / "out")


def test_the_planted_artefact_is_marked(maps: Maps) -> None:
    found = cluster(maps.out)
    marked = [c for c in found if c.marked]
    assert marked == found[: len(marked)]
    assert {c.name for c in marked} == {"star"}
    inside = [maps[i]["key"] for c in marked for i in c.members]
    assert all("tag" in key for key in inside)
    assert len(inside) >= 0.9 * sum("tag" in r["key"] for r in maps)
    for c in marked:
        assert c.where == "at the bottom right"
        assert c.share > 0.5
        assert "star: " in str(c)
        assert "at the bottom right" in str(c)
    every = sorted(i for c in found for i in c.members)
    assert len(every) == len(set(every))  # each in one group
    assert every == sorted(r["index"] for r in maps if r["name"] in {c.name for c in found})


def test_nothing_is_marked_where_there_is_no_artefact(tmp_path: Path) -> None:
    explain(misled(), saved(tmp_path / "pictures", 140, tag=False), tmp_path / "out")
    found = cluster(tmp_path / "out")
    assert found
    assert not any(c.marked for c in found)


def test_the_page_shows_groups_and_samples(maps: Maps, open_page, tmp_path: Path) -> None:
    page = tmp_path / "clusters.html"
    done = CliRunner().invoke(app, ["cluster", str(maps.out), "-o", str(page), "--class", "star"])
    assert done.exit_code == 0, done.output
    assert "marked star: " in done.output
    shown = open_page(page)
    groups = cluster(maps.out, name="star")
    assert shown.locator(".cluster").count() == len(groups)
    assert shown.locator(".cluster.marked").count() == sum(c.marked for c in groups)
    first = shown.locator(".cluster").first
    assert "all others hardly look at: an artefact?" in first.inner_text()
    assert all("tag" in key for key in first.locator("figcaption").all_inner_texts() if key != "mean")
    assert first.locator("figure").count() == 1 + min(10, len(groups[0].members))
    all_decoded(shown, "img")
    assert shown.locator("circle").count() == groups[0].among


def test_groups_are_those_that_are_apart() -> None:
    rng = np.random.default_rng(0)
    centres = np.repeat(np.eye(3) * 5, 20, axis=0)
    which, points = _spectral(centres + 0.1 * rng.standard_normal((60, 3)))
    assert [len(set(which[i : i + 20])) for i in (0, 20, 40)] == [1, 1, 1]
    assert len(set(which)) == 3
    assert points.shape == (60, 2)
    assert len(set(_spectral(rng.standard_normal((60, 2)) * 0.01)[0])) <= 8


def test_texts_are_grouped_by_their_tokens(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    words = ["lovely", "boring", "dull"]
    texts = [f"the {thing} was {words[i % 3]}" for i, thing in enumerate(["film", "plot", "song", "room"] * 9)]
    explain(Path(fxlrp.__file__).parent / "examples" / "text", [(t, None) for t in texts], tmp_path / "out")
    found = cluster(tmp_path / "out", name="negative")
    assert len(found) >= 2
    assert not any(c.marked or c.mean is not None for c in found)
    said = [{texts[i].split()[-1] for i in c.members} for c in found]
    assert all(len(words) == 1 for words in said)
    assert set.union(*said) == {"boring", "dull"}
    assert CliRunner().invoke(app, ["cluster", str(tmp_path / "out"), "-o", str(tmp_path / "c.html")]).exit_code == 0


def test_too_few_maps_and_classes_that_are_not_there(tmp_path: Path, maps: Maps) -> None:
    explain(load, Tensors(4), tmp_path / "out")
    with pytest.raises(FxlrpError, match="8 maps, which groups take at least"):
        cluster(tmp_path / "out")
    with pytest.raises(FxlrpError, match=r"no map of class moon in .* there are .*star"):
        cluster(maps.out, name="moon")
