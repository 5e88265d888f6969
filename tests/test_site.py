"""The site builds without a warning, opens offline, and each recipe runs."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "docs" / "recipes").glob("*.py"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda p: p.stem)
def test_recipes_run(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("timm")
    pytest.importorskip("captum")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out" / "recipes").mkdir(parents=True)
    runpy.run_path(str(recipe), run_name="__main__")
    assert list((tmp_path / "out" / "recipes").iterdir()), "it ends in nothing to look at"


@pytest.mark.parametrize("notebook", sorted((ROOT / "docs" / "notebooks").glob("*.ipynb")), ids=lambda p: p.stem)
def test_notebooks_run(notebook: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat, client = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    held = nbformat.read(notebook, 4)
    shown = sum(len(cell.get("outputs", ())) for cell in held.cells)
    assert shown, "it is kept with what it shows: make notebooks"
    client.NotebookClient(held, timeout=300, kernel_name="python3").execute()
    assert sum(len(cell.get("outputs", ())) for cell in held.cells) >= shown


def test_the_site_builds_and_opens_offline(tmp_path: Path, browser) -> None:
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    )
    assert done.returncode == 0, done.stderr
    page, fetched = browser.new_page(), []
    page.on("request", lambda r: None if r.url.startswith(("file:", "data:", "blob:")) else fetched.append(r.url))
    titles = {}
    for name in ("index", "tutorial", "api", "gallery", "recipes/index", "recipes/clever_hans", "rules", "moving"):
        page.goto((tmp_path / "site" / f"{name}.html").as_uri())
        titles[name] = page.locator("h1").first.inner_text()
    assert titles["recipes/clever_hans"].startswith("Clever Hans")
    page.goto((tmp_path / "site" / "api.html").as_uri())
    assert page.locator("#fxlrp\\.explain").count() == 1
    assert page.locator("#fxlrp\\.Explainer\\.forward").count() == 1
    assert not fetched
