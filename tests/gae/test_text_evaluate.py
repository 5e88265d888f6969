"""Evaluations on texts: kills, processes, what results depend on, files, the page and the command."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import random
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from text_cases import TEXTS, bag
from torch import Tensor, nn
from typer.testing import CliRunner

from fxlrp import FxlrpError
from fxlrp.cli import app
from fxlrp.gae.texts import BASELINES, Case, TextReport, evaluate
from tests.text.models import byte_level, decoder_only

pytest.importorskip("captum")
pytest.importorskip("pyarrow")
FORK = multiprocessing.get_context("fork")
EXAMPLE = Path(__file__).parents[2] / "examples" / "text"
KNOWN = "random", "occlusion", "epsilon"


def results(out: Path) -> bytes:
    return b"".join((out / name).read_bytes() for name in ("results.parquet", "report.json", "report.html"))


def work(out: Path, slow: float = 0, workers: int = 0) -> TextReport:
    """An evaluation, which takes its time."""
    os.environ["SLOW"] = str(slow)
    model, tokenizer = bag()

    def slow_method(net: nn.Module, case: Case) -> Tensor:
        time.sleep(float(os.environ["SLOW"]))
        return net.words(case.inputs["input_ids"])[0, :, 0]

    methods = {"slow": slow_method, "random": "random"}
    return evaluate(model, tokenizer, methods, [*TEXTS, *TEXTS, *TEXTS[:2]], steps=4, out=out, workers=workers)


def process(*args: Any) -> Any:
    started = FORK.Process(target=work, args=args)
    started.start()
    return started


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole")
    work(out)
    return out


def test_killed_at_any_moment_it_goes_on(tmp_path: Path, whole: Path) -> None:
    rng, kills, out = random.Random(0), 0, tmp_path / "killed"
    for _ in range(12):
        run = process(out, 0.02)
        run.join(rng.uniform(0.05, 0.5))
        if run.is_alive():
            run.kill()
            kills += 1
        run.join()
    work(out)
    assert kills >= 3
    pieces = [(row["chunk"], row["method"]) for row in map(json.loads, (out / "pieces.jsonl").open())]
    assert len(pieces) == len(set(pieces)) == 6
    assert results(out) == results(whole)


def test_weights_that_begin_anywhere_give_the_scores_of_their_copy() -> None:
    """A file that is mapped into memory is not what another process gets of it by pickle."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(EXAMPLE).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(EXAMPLE)
    for p in model.parameters():
        p.data = torch.frombuffer(bytearray(4 * p.numel() + 12), dtype=p.dtype, offset=12).view(p.shape).copy_(p.data)
    before = [(p.data_ptr(), p.detach().clone()) for p in model.parameters()]
    texts = ["the plot is dull but the music was truly wonderful, and the ending of the series is not bad"]
    how: dict[str, Any] = {"methods": ["random", "attnlrp"], "dataset": texts, "stability": False}
    report = evaluate(model, tokenizer, **how)
    assert all(
        p.data_ptr() == at and torch.equal(p, was) for p, (at, was) in zip(model.parameters(), before, strict=True)
    )
    copied = pickle.loads(pickle.dumps(model))
    assert any(
        p.data_ptr() % 64 != q.data_ptr() % 64 for p, q in zip(model.parameters(), copied.parameters(), strict=True)
    )
    assert evaluate(copied, tokenizer, **how).rows == report.rows


@pytest.mark.whole
def test_actors_share_the_work_and_agree(tmp_path: Path, whole: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed (pip install 'fxlrp[data]')")
    work(tmp_path, workers=2)
    assert results(tmp_path) == results(whole)


def run(out: Path | None, **changes: Any) -> TextReport:
    model, tokenizer = bag()
    options = {"model": model, "tokenizer": tokenizer, "methods": ["random"], "dataset": TEXTS, "steps": 3}
    return evaluate(**{**options, **changes}, out=out)


def changed(where: int, **parts: Any) -> list[Any]:
    return [{**item, **parts} if i == where else item for i, item in enumerate(TEXTS)]


def heavier() -> nn.Module:
    model, _ = bag()
    with torch.no_grad():
        model.head.weight[0, 0] += 1e-9
    return model


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "weights": ({"model": heavier()}, "another model"),
    "a tokenizer": ({"tokenizer": byte_level()}, "another tokenizer"),
    "steps": ({"steps": 4}, "steps 3 there, 4 here"),
    "the seed": ({"seed": 1}, "seed 0 there, 1 here"),
    "a limit": ({"limit": 4}, "samples 5 there, 4 here"),
    "stability": ({"stability": False}, "stability True there, False here"),
    "how much is marked": ({"dataset": changed(0, rationale=[0, 0, 1, 1, 0, 0, 0, 0])}, "marked 0"),
    "what is marked": ({"dataset": changed(0, rationale=[0, 0, 1, 0, 0, 0, 0, 0])}, "other texts, labels, contin"),
    "a text": ({"dataset": changed(4, text="unforgettably dull")}, "other texts, labels, continuations or rationales"),
    "a label": ({"dataset": changed(4, label=0)}, "other texts, labels, continuations or rationales"),
    "a method": ({"methods": {"random": "occlusion"}}, "another method called 'random'"),
}


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("one")
    run(out)
    return out


@pytest.mark.parametrize("what", CHANGES)
def test_another_run_is_refused(what: str, one: Path, tmp_path: Path) -> None:
    change, said = CHANGES[what]
    shutil.copytree(one, tmp_path / "out")
    with pytest.raises(FxlrpError, match=said):
        run(tmp_path / "out", **change)


def test_scores_depend_on_the_sample_and_on_no_batch() -> None:
    a, b = (run(None, methods=KNOWN, batch_size=size) for size in (1, 64))
    for one, other in zip(a.rows, b.rows, strict=True):
        for key, value in one.items():
            assert value is None or other[key] == (value if isinstance(value, str) else pytest.approx(value, abs=1e-9))


def test_the_ends_of_the_scale_and_the_order_of_methods() -> None:
    model, tokenizer = bag()
    pressed = {"worth": lambda net, case: net.words(case.inputs["input_ids"])[0, :, 0] * (2 * case.target[0] - 1)}
    for name in ("random", "ground-truth", "occlusion"):
        pressed[name] = name
    report = evaluate(model, tokenizer, pressed, TEXTS[:4])
    best = report.means("hidden_abpc")
    assert best["worth"].mean >= max(e.mean for e in best.values()) - 1e-9
    assert report.first == "hidden_abpc"
    for measure in ("auprc", "average_precision"):
        means = report.means(measure)
        assert means["ground-truth"].mean == 1
        assert means["random"].mean < 0.8
    sensitive, randomized = report.means("max_sensitivity"), report.means("randomization")
    assert sensitive["ground-truth"].mean == 0
    assert sensitive["random"].mean > 1 > sensitive["occlusion"].mean  # chance is no stable method
    assert randomized["random"].mean < 0.5
    assert randomized["ground-truth"].mean == pytest.approx(1)
    assert report.means("comprehensiveness")["worth"].mean > report.means("comprehensiveness")["random"].mean
    assert report.means("sufficiency")["worth"].mean < report.means("sufficiency")["random"].mean


def test_continuations_and_what_is_left_out(tmp_path: Path) -> None:
    tokenizer = byte_level()
    tokenizer.mask_token = None
    model = decoder_only("gpt2", tokenizer)
    texts = [{"text": "The capital of France is", "continuation": " Paris"}, {"text": "once upon a time"}]
    report = evaluate(model, tokenizer, ["random", "ground-truth"], texts, steps=2, stability=False, out=tmp_path)
    assert report.ways == ["hidden", "dropped"]
    assert report.notes == [
        "Of 1 of 2 texts the likeliest next token is explained: they have no continuation.",
        "Tokens are not replaced by a mask: the tokenizer has none.",
    ]
    assert "needs a human rationale" in report.errors["ground-truth"]
    assert all(row["hidden_morf"][0] < 0 and row["predicted"] for row in report.rows)
    assert "auprc" not in report.measures
    assert "continuation's log-probability" in (tmp_path / "report.html").read_text()
    again = evaluate(model, tokenizer, ["random", "ground-truth"], texts, steps=2, stability=False, out=tmp_path)
    assert again.rows == report.rows  # though the model has run since


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"methods": []}, "no method to evaluate"),
        ({"methods": ["gradcam"]}, "There is no method 'gradcam'"),
        ({"steps": 0}, "steps=0"),
        ({"dataset": []}, "empty"),
        ({"dataset": [""]}, "Sample 0 is empty"),
        ({"methods": ["captum-lrp"]}, "No method could be evaluated: captum-lrp: TypeError"),
        ({"model": bag()[0].train()}, "training mode"),
    ],
)
def test_what_does_not_fit(change: dict[str, Any], said: str) -> None:
    with pytest.raises(FxlrpError, match=said):
        run(None, **change)


def command(*args: Any, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["evaluate", *map(str, args)], env={"COLUMNS": "200"})
    assert result.exit_code == code, result.output + repr(result.exception)
    return result.output


def test_the_command(tmp_path: Path, open_page: Any) -> None:
    data, out = tmp_path / "reviews.jsonl", tmp_path / "out"
    reviews = [
        {"text": "the plot is dull but the music was truly wonderful.", "label": 1, "rationale": ["truly wonderful"]},
        {"text": "a boring plot, nothing more. " * 12, "label": 0, "rationale": [0, 1, *[0] * 58]},
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in reviews))
    how = (EXAMPLE, data, "--methods", "input-x-gradient,random,captum-lrp", "--device", "cpu", "--steps", 4)
    said = command(*how, "-o", out)
    for part in ("ABPC", "compreh.", "AUPRC", "token F1", "sensitive", "captum-lrp was not evaluated: TypeError"):
        assert part in said
    assert "Of 1 of 2 texts the end is left out" in said
    before = results(out)
    report = json.loads(command(*how, "-o", out, "--json"))
    assert results(out) == before
    assert report["means"]["input-x-gradient"]["auprc"]["n"] == 2
    page = open_page(out / "report.html")
    assert page.locator("h2").count() >= 10
    assert page.locator(".text b").count() > 0  # what people marked
    assert page.locator("figure svg").count() == 6  # three ways, two methods
    places = page.locator("table:has(th:text('removal suffic.')) td").all_inner_texts()
    assert sorted(places[1::6]) == ["1", "2"]  # by each way
    page.set_viewport_size({"width": 400, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    for option, value in (("--masks", tmp_path), ("--definition", "2024-12")):
        assert "goes with models that read pictures" in command(*how, option, value, code=2)
    assert "has no column review" in command(EXAMPLE, data, "--column", "review", code=2)


def test_every_baseline_has_a_name_in_the_documents() -> None:
    text = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text()
    assert [name for name in BASELINES if f"`{name}`" not in text] == []
