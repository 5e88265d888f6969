"""`fxlrp concepts` and `fxlrp circuit`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from fxlrp.cli import app

EXAMPLES = Path(__file__).parents[2] / "examples"
MODEL, PICTURE = str(EXAMPLES / "model.pt"), str(EXAMPLES / "pictures" / "ring_star.png")


def run(*args: object) -> str:
    done = CliRunner().invoke(app, [str(a) for a in args])
    assert done.exit_code == 0, done.output
    return done.output


def test_concepts_of_pictures(tmp_path: Path) -> None:
    said = run("concepts", MODEL, EXAMPLES / "pictures", "--at", "layer2", "-o", tmp_path, "--limit", 3, "--most", 2)
    assert "over 3 samples" in said
    page = tmp_path / "concepts.html"
    assert "default-src 'none'" in page.read_text()
    first = page.stat().st_mtime_ns
    how = ("--explain", PICTURE, "--target", "4", "--limit", 3, "--most", 1)
    np.save(tmp_path / "d.npy", np.eye(48, dtype=np.float32)[:3])
    said = run(
        "concepts", MODEL, EXAMPLES / "pictures", "--at", "layer2", "-o", tmp_path / "d", *how, "--directions",
        tmp_path / "d.npy",
    )  # fmt: skip
    assert "directions over 3 samples" in said
    assert "for these concepts" in (tmp_path / "d" / "concepts.html").read_text()
    assert page.stat().st_mtime_ns == first


def test_concepts_of_texts(tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("a fine film\na dull plot\n")
    said = run(
        "concepts", EXAMPLES / "text", tmp_path / "texts.txt", "--at", "bert.encoder.layer.1.attention.self",
        "--by", "heads", "-o", tmp_path / "out", "--explain", "not a fine film",
    )  # fmt: skip
    assert "heads over 2 samples" in said
    assert "film" in (tmp_path / "out" / "concepts.html").read_text()


def test_a_circuit(tmp_path: Path) -> None:
    vit = (str(EXAMPLES / "vit.safetensors"), PICTURE, "--arch", f"{EXAMPLES / 'models.py'}:vit", "--trust")
    said = run("circuit", *vit, "--top", 3, "-o", tmp_path / "c.html", "--target", 4)
    assert "blocks.3.mlp" in said
    assert "<svg" in (tmp_path / "c.html").read_text()
    found = json.loads(CliRunner().invoke(app, ["circuit", *vit, "--json", "--depth", "1"]).stdout)
    assert {"patch_embed", "blocks"} <= {n["name"] for n in found["nodes"]}
    assert "input_ids" in run("circuit", EXAMPLES / "text", "a fine film", "--top", 30)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("circuit", "no.pt", PICTURE, "-o", "c.png"), "none of .html"),
        (("concepts", "no.pt", ".", "--at", "x", "--by", "colours"), "channels or heads"),
        (("concepts", "no.pt", ".", "--at", "x", "--directions", "no.npy"), "no file no.npy"),
        (("concepts", MODEL, PICTURE, "--at", "nowhere"), "names no module"),
    ],
)
def test_what_can_not_be_is_said(args: tuple[str, ...], words: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, list(args))
    assert done.exit_code == 2
    assert words in done.output
