"""The command line on texts, with a model saved by transformers and with the embedded one."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

import fxlrp
from fxlrp.cli import app

from .models import bert, byte_level, decoder_only, wordpiece


def without_numbers(said: str) -> str:
    """What was printed without the relevance behind each word."""
    return re.sub(r"\([+-]\d\.\d\d\)", "", said)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """cls: a classifier, lm: a language model."""
    place = tmp_path_factory.mktemp("models")
    words, pieces = wordpiece(), byte_level()
    for name, model, tokenizer in (
        ("cls", bert("SequenceClassification", words, id2label={0: "bad", 1: "good"}), words),
        ("lm", decoder_only("llama", pieces), pieces),
    ):
        model.save_pretrained(place / name)
        tokenizer.save_pretrained(place / name)
    return place


def run(*args: object, code: int = 0, **kwargs) -> str:
    result = CliRunner().invoke(app, [str(a) for a in args], **kwargs)
    assert result.exit_code == code, result.output
    return result.output


def test_explain(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("A dull mess\n\nnobody's film\n")
    said = run(
        *("explain", folder / "cls", "a gripping film", "--text-file", tmp_path / "lines.txt"),
        *("--target", "GOOD", "--contrast", "bad", "--html", tmp_path / "out.html"),
    )
    assert said.count("good, not bad") == 3
    assert "a gripping film" in without_numbers(said)
    assert "rulebook abslrp-hybrid" in said
    page = (tmp_path / "out.html").read_text()
    assert page.count("why <b>good, not bad") == 3
    assert not re.search(r"https?:", page)


def test_files(folder: Path, tmp_path: Path) -> None:
    said = run("explain", folder / "cls", "a gripping film", "--target", "good", "-o", tmp_path / "one.csv")
    assert "one.csv" in said
    assert (tmp_path / "one.csv").read_text().count("\ngood,") == 5  # [CLS], three words, [SEP]
    run("explain", folder / "cls", "a gripping film", "a dull mess", "-o", tmp_path / "all")
    loaded = [fxlrp.load(file) for file in sorted((tmp_path / "all").iterdir())]
    assert [a.segments[0] for a in loaded] == ["a gripping film", "a dull mess"]


def test_standard_input_and_pair(folder: Path) -> None:
    said = run("explain", f"hf:{folder / 'cls'}", "-", "--pair", "in Paris", "--contrast", "none", input="Ada lives\n")
    assert "Ada lives in Paris" in without_numbers(said)


def test_truncate(folder: Path) -> None:
    long = "dull " * 100
    assert "the model takes 64" in run("explain", folder / "cls", long, code=2)
    assert "tokens are left out" in run("explain", folder / "cls", long, "--truncate")


def test_generate(folder: Path, tmp_path: Path) -> None:
    page = tmp_path / "g.html"
    run("generate", folder / "lm", "The capital of France is", "--max-new-tokens", 3, "--html", page)
    data = json.loads(re.search(r'<script type="application/json">(.*?)</script>', page.read_text())[1])
    assert len(data["rows"]) == len(data["tokens"]) <= 3
    assert page.read_text().count(" can") >= len(data["rows"])  # every new token can be clicked
    said = run(
        "generate", folder / "lm", "The capital of France is", "--continuation", " Paris", "--contrast", "London"
    )
    assert "Paris, not London" in said


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("explain", "{cls}", "a film", "--target", "happy"), "knows bad, good"),
        (("explain", "{cls}"), "There is nothing to explain"),
        (("explain", "{cls}", "a film", "-o", "x.png"), "written as .json, .csv, .html"),
        (("explain", "{cls}", "a film", "another", "-o", "x.json"), "one file for 2 texts"),
        (("explain", "examples/model.pt", "a.png", "--pair", "x"), "--pair goes with models that read text"),
        (("explain", "{cls}", "--text-file", "nowhere.txt"), "There is no file nowhere.txt"),
        (("generate", "{cls}", "a film"), "writes no text"),
        (("explain", "{lm}", "a film", "--target", "unheard-of"), "not one token"),
    ],
)
def test_errors_are_one_sentence(args: tuple, said: str, folder: Path) -> None:
    filled = [a.format(cls=folder / "cls", lm=folder / "lm") for a in args]
    output = " ".join(run(*filled, code=2).split())
    assert said in output
    assert "Traceback" not in output


def test_a_folder_without_tokenizer(folder: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((folder / "cls" / name).read_bytes())
    assert "no tokenizer beside" in run("explain", tmp_path, "a film", code=2)


def test_demo(tmp_path: Path) -> None:
    said = run("demo", "--text", "-o", tmp_path)
    assert "the film was not funny" in without_numbers(said)
    sure = [float(p) for p in re.findall(r"\((\d+\.\d)%\)", said)]
    assert sure[0] > 90  # positive, and it is
    assert sure[3] > 90  # negative, and it is
    assert re.search(r"not\([+-]\d\.\d\d\)", said)  # there are no colours here
    assert (tmp_path / "demo_text.html").is_file()
