"""The command line on texts, with a model saved by transformers and with the embedded one."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
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
    assert re.search(r"good, not bad \(.*%\)  abslrp-hybrid\n", said)
    assert "against the others by probability · abslrp-hybrid" in run("explain", folder / "cls", "a gripping film")
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


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_a_figure_of_words(suffix: str, folder: Path, tmp_path: Path) -> None:
    """Each on ground of its colour, with what was asked; the lines hold what fits."""
    text = "a gripping film, $5 and $6 " + "acted and acted and " * 5
    file = tmp_path / f"why{suffix}"
    said = run("explain", folder / "cls", text, "--target", "good", "-o", file, "--colours", "lightness")
    assert file.name in said
    assert b"gripping" in file.read_bytes()  # in the metadata
    a = fxlrp.explain(folder / "cls", text, target="good")
    axes = a.plot().axes[0]
    shown = {t.get_text(): t for t in axes.texts}
    assert {a.asked[0].title, "gripping", f"{a.asked[0].against} · {a.rules}"} <= shown.keys()
    assert len({round(t.get_position()[1], 2) for t in axes.texts}) > 4  # two lines of words, or more
    renderer = axes.figure.canvas.get_renderer()
    assert all(0 < (at := t.get_window_extent(renderer)).x0 < at.x1 < axes.figure.bbox.x1 for t in axes.texts)
    grounds = [p.get_facecolor() for p in axes.patches][-len(a.pieces) :]
    strong = int(a.scores.abs().argmax())
    assert min(grounds[strong][:3]) == min(min(g[:3]) for g in grounds)
    assert (grounds[strong][0] > grounds[strong][2]) == bool(a.scores[strong] > 0)


def test_a_figure_of_more_questions_than_one_can_hold(folder: Path, tmp_path: Path) -> None:
    a = fxlrp.explain(folder / "cls", "a gripping film " * 10)
    many = replace(a, matrix=a.matrix.expand(400, -1), asked=a.asked * 400)
    figure = many.plot()
    assert figure.get_size_inches()[1] <= 101
    shown = [t.get_text() for t in figure.axes[0].texts]
    drawn = shown.count(a.asked[0].title)
    assert 50 < drawn < 400
    assert f"{400 - drawn} questions more" in shown[-1]


def test_compare_rulebooks_on_a_text(folder: Path, tmp_path: Path) -> None:
    """A row of words for each, as each explains alone; what equals one before is left out."""
    names = "abslrp,attnlrp,gradient-input,gradient-input:"
    asked = ("compare", folder / "cls", "a gripping film", "--target", "good", "--rules", names)
    said = run(*asked, "-o", tmp_path / "c.json", "--html", tmp_path / "c.html")
    together = fxlrp.load(tmp_path / "c.json")
    assert [q.target for q in together.asked] == [f"{name}: good" for name in names.split(",")[:3]]
    assert all(f"{name}: good (" in said for name in names.split(",")[:3])
    for row, name in zip(together.matrix, names.split(","), strict=False):
        alone = fxlrp.explain(folder / "cls", "a gripping film", target="good", rules=name)
        torch.testing.assert_close(row, alone.scores)
    assert (tmp_path / "c.html").read_text().count("<button") == 3
    run(*asked, "-o", tmp_path / "c.png")
    assert list(json.loads(run(*asked, "-o", tmp_path / "d.json", "--json"))["rules"]) == names.split(",")[:3]


def test_labels_that_do_not_exclude_each_other(tmp_path: Path) -> None:
    words = wordpiece()
    model = bert("SequenceClassification", words, problem_type="multi_label_classification", num_labels=3)
    model.save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    out = run("explain", tmp_path, "a gripping film", "--target", 0, "--target", 1, "--target", 2, "--json")
    found = [q["probability"] for q in json.loads(out)[0]["questions"]]
    expected = model(**words("a gripping film", return_tensors="pt")).logits[0].sigmoid()
    assert found == pytest.approx(expected.tolist(), abs=1e-5)
    assert [q["contrast"] for q in json.loads(out)[0]["questions"]] == [None] * 3


def test_a_regression_has_a_score_and_no_probability(tmp_path: Path) -> None:
    words = wordpiece()
    model = bert("SequenceClassification", words, num_labels=1)
    expected = float(model(**words("a gripping film", return_tensors="pt")).logits[0, 0])
    a = fxlrp.text.explain(model, words, "a gripping film")
    assert a.asked[0].probability is None
    assert a.asked[0].score == pytest.approx(expected, rel=1e-5)
    assert a.asked[0].title == f"LABEL_0 ({expected:.4g})"
    assert fxlrp.load(a.save(tmp_path / "a.json")).asked == a.asked


def test_a_sigmoid_of_the_models_own(tmp_path: Path) -> None:
    """Probabilities that the model itself makes of its scores are shown as they are."""
    words = wordpiece()
    model = bert("SequenceClassification", words, num_labels=3)
    model.classifier = torch.nn.Sequential(model.classifier, torch.nn.Sigmoid())
    expected = model(**words("a gripping film", return_tensors="pt")).logits[0]
    a = fxlrp.text.explain(model, words, "a gripping film", target=[0, 1, 2])
    assert [q.probability for q in a.asked] == pytest.approx(expected.tolist(), rel=1e-5)
    assert {q.contrast for q in a.asked} == {None}


def test_standard_input_and_pair(folder: Path) -> None:
    said = run("explain", f"hf:{folder / 'cls'}", "-", "--pair", "in Paris", "--contrast", "none", input="Ada lives\n")
    assert "Ada lives in Paris" in without_numbers(said)


def test_truncate(folder: Path) -> None:
    long = "dull " * 100
    assert "the model takes 64" in run("explain", folder / "cls", long, code=2)
    assert "tokens at the end are left out" in run("explain", folder / "cls", long, "--truncate")


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
        (("explain", "{cls}", "a film", "-o", "x.npz"), "written as .json, .csv, .html, .png"),
        (("compare", "{cls}", "a film", "-o", "x.npz"), "written as .json, .csv, .html, .png"),
        (("compare", "{cls}", "a film", "--size", "8"), "--size goes with models that read pictures"),
        (("explain", "{cls}", "a film", "--position", "1"), "--position 1 is for a score at each token, not for this"),
        (("explain", "{cls}", "a film", "--position", "film"), "position='film' is for a score at each token"),
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
