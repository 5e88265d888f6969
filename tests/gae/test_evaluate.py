"""Evaluations: what scores depend on, kills, processes, methods, files and the command."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from gae_cases import input_x_gradient, pictures, tiny
from torch import Tensor, nn
from typer.testing import CliRunner

import fxlrp
from fxlrp import FxlrpError
from fxlrp.cli import app
from fxlrp.gae import BASELINES, Report, evaluate
from fxlrp.gae.measures import localisation

pytest.importorskip("captum")
pytest.importorskip("pyarrow")
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
EXAMPLES = Path(__file__).parents[2] / "examples"
FORK = multiprocessing.get_context("fork")


@pytest.fixture
def model() -> nn.Module:
    return tiny()


def rows(report: Report) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k != "label"} for row in report.rows]


def assert_close(a: Report, b: Report, tolerance: float) -> None:
    for one, other in zip(rows(a), rows(b), strict=True):
        assert one.keys() == other.keys()
        for key, value in one.items():
            assert other[key] == (value if isinstance(value, str | None) else pytest.approx(value, abs=tolerance)), key


METHODS = ["random", "input-x-gradient", "smoothgrad", "abslrp"]


def test_scores_do_not_depend_on_the_batch_size(model: nn.Module) -> None:
    a, b = (evaluate(model, METHODS, pictures(7), steps=4, batch_size=size) for size in (2, 64))
    assert_close(a, b, 1e-9)


def test_scores_depend_on_the_seed(model: nn.Module) -> None:
    a, b, c = (evaluate(model, "input-x-gradient", pictures(8), seed=seed) for seed in (0, 0, 1))
    assert a.rows == b.rows
    assert a.values("contrastiveness").tolist() != c.values("contrastiveness").tolist()
    assert a.values("faithfulness").tolist() == pytest.approx(c.values("faithfulness"))


def test_more_mosaics_are_meaned(model: nn.Module) -> None:
    one, three = (evaluate(model, "abslrp", pictures(8), mosaics=m) for m in (1, 3))
    assert one.values("lc").tolist() == pytest.approx(three.values("lc"))
    assert one.values("contrastiveness").tolist() != three.values("contrastiveness").tolist()


def work(out: Path, slow: float = 0, workers: int = 0) -> None:
    """An evaluation, which takes its time."""
    os.environ["SLOW"] = str(slow)
    model = tiny()

    def slow_method(net: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        time.sleep(float(os.environ["SLOW"]))  # in a closure it would make this another method
        return input_x_gradient(net, x, target)

    methods = {"slow": slow_method, "random": "random"}
    evaluate(model, methods, pictures(12), batch_size=4, steps=3, out=out, workers=workers)


def process(*args: Any) -> Any:
    started = FORK.Process(target=work, args=args)
    started.start()
    return started


def results(out: Path) -> bytes:
    return (out / "results.parquet").read_bytes() + (out / "report.json").read_bytes()


def test_killed_it_goes_on(tmp_path: Path) -> None:
    work(tmp_path / "whole")
    pieces_of = tmp_path / "killed" / "pieces.jsonl"
    for enough in (0, 1, 4, 7, 10):  # of 12 pieces
        run = process(tmp_path / "killed", 0.01)
        while run.is_alive() and (not pieces_of.exists() or pieces_of.read_bytes().count(b"\n") < enough):
            time.sleep(0.005)
        assert run.is_alive()
        run.kill()
        run.join()
        if enough == 4:  # and a line that the kill cut short
            with pieces_of.open("ab") as file:
                file.write(b'{"chunk":2,"method":"slow","rows":[{"sam')
    work(tmp_path / "killed")
    lines = (tmp_path / "killed" / "pieces.jsonl").read_text().splitlines()
    pieces = [(row["chunk"], row["method"]) for row in map(json.loads, lines)]
    assert len(pieces) == len(set(pieces)) == 12  # nothing lost, nothing twice
    assert results(tmp_path / "killed") == results(tmp_path / "whole")


def test_actors_share_the_work_and_agree(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed (pip install 'fxlrp[data]')")
    work(tmp_path / "one")
    lines = (tmp_path / "one" / "pieces.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "many").mkdir()
    (tmp_path / "many" / "manifest.json").write_bytes((tmp_path / "one" / "manifest.json").read_bytes())
    (tmp_path / "many" / "pieces.jsonl").write_bytes(b"".join(lines[:3]))  # one chunk and a half are there
    work(tmp_path / "many", workers=2)
    assert (tmp_path / "many" / "pieces.jsonl").read_bytes().splitlines(keepends=True)[:3] == lines[:3]
    assert sorted((tmp_path / "many" / "pieces.jsonl").read_bytes().splitlines(keepends=True)) == sorted(lines)
    assert results(tmp_path / "many") == results(tmp_path / "one")


def test_who_shares_the_work(model: nn.Module) -> None:
    with pytest.raises(FxlrpError, match="--workers is a number from 0, not -1"):
        evaluate(model, "random", pictures(8), workers=-1)


def test_a_folder_of_another_run_and_one_in_use(model: nn.Module, tmp_path: Path) -> None:
    evaluate(model, "random", pictures(8), out=tmp_path)
    with pytest.raises(FxlrpError, match=r"another evaluation \(seed 0 there, 1 here\)"):
        evaluate(model, "random", pictures(8), out=tmp_path, seed=1)
    again = evaluate(model, ["random", "gradient"], pictures(8), out=tmp_path)  # a method more is no other run
    assert again.methods == ["random", "gradient"]
    run = process(tmp_path / "busy", 0.5)
    while not (tmp_path / "busy" / "pieces.jsonl").exists():
        time.sleep(0.01)
    time.sleep(0.1)
    with pytest.raises(FxlrpError, match="Another process is writing"):
        work(tmp_path / "busy")
    run.kill()
    run.join()


def test_every_baseline_runs_or_says_why(model: nn.Module) -> None:
    report = evaluate(model, list(dict.fromkeys([*BASELINES, *fxlrp.rulebooks()])), pictures(4), steps=2)
    assert {"gradient", "input-x-gradient", "integrated-gradients", "smoothgrad", "gradcam", "guided-backprop",
            "deeplift", "random"} <= set(report.methods)  # fmt: skip
    assert set(report.methods) | set(report.errors) == {*BASELINES, *fxlrp.rulebooks()}
    assert "mask" in report.errors["ground-truth"]  # that of the label is not that of the prediction


def test_a_method_that_fails_is_in_the_report(model: nn.Module) -> None:
    def fails(net: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        raise ValueError("no such luck")

    def shape(net: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        return x[..., 1:]

    def infinite(net: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        return x / 0

    report = evaluate(model, [fails, shape, infinite, "random"], pictures(4), steps=2)
    assert report.methods == ["random"]
    assert report.errors["fails"] == "ValueError: no such luck"
    assert "[" in report.errors["shape"]
    assert "not finite" in report.errors["infinite"]
    with pytest.raises(FxlrpError, match="No method could be evaluated"):
        evaluate(model, fails, pictures(4), steps=2)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(768, 5)).double().eval()
    assert "convolution" in evaluate(linear, ["gradcam", "random"], pictures(4), steps=2).errors["gradcam"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"definition": "2025"}, "no definition '2025'"),
        ({"methods": "abslpr"}, "no method 'abslpr'"),
        ({"methods": ["random", "random"]}, "Two methods are called"),
        ({"dataset": []}, "empty"),
        ({"dataset": pictures(3)}, "There are 3 samples"),
        ({"definition": "2024-12", "batch_size": 6}, "multiple of four"),
        ({"definition": "2024-12", "batch_size": 4, "dataset": [p[0] for p in pictures(4)]}, "by labels"),
        ({"dataset": [torch.zeros(3, 4)] * 4}, r"Sample \d is torch.float32 of shape \[3, 4\]"),
        ({"dataset": [*pictures(4), *pictures(1, side=8)]}, "pictures of one size"),
        ({"masks": [None]}, "1 masks for 8 samples"),
        ({"steps": 1}, "steps=1"),
    ],
)
def test_mistakes(model: nn.Module, change: dict[str, Any], said: str) -> None:
    with pytest.raises(FxlrpError, match=said):
        evaluate(model, **{"methods": "random", "dataset": pictures(8), **change})


def test_published_definition_runs(model: nn.Module) -> None:
    report = evaluate(model, ["random", "abslrp-2024-12"], pictures(11), definition="2024-12", batch_size=4)
    assert len(report.rows) == 2 * 2  # two whole batches, one of four in each


def test_published_definition_takes_the_published_method_with_its_leak() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.inner = tiny(), nn.Conv2d(3, 3, 3, padding=1).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x + self.inner(x).relu())

    torch.manual_seed(0)
    model = Residual().eval()
    kept = fxlrp.convert(model, rules="abslrp-2024-12")
    methods = {"name": "abslrp-2024-12", "leak": "abslrp-2024-12:leak=1", "kept": kept}
    report = evaluate(model, methods, pictures(8), definition="2024-12", batch_size=8, steps=3, quantus=False)
    name, leak, without = report.values("faithfulness")
    assert name.tolist() == leak.tolist()
    assert abs(name - without).min() > 1e-3


@pytest.mark.parametrize("name", ["cnn", "vit"])
def test_truth_beats_random_which_scores_nothing(name: str) -> None:
    pytest.importorskip("timm")
    import localization

    shown = localization.two_objects(12)
    data = [
        (x, None, dict(zip(labels.tolist(), masks, strict=True)))
        for x, labels, masks in zip(shown.x, shown.labels, shown.masks, strict=True)
    ]
    model = localization.load(name)
    with torch.no_grad():
        right = model(shown.x).argmax(1)[:, None] == shown.labels
    data = [d for d, r in zip(data, right.any(1), strict=True) if r]
    report = evaluate(model, ["ground-truth", "random"], data)
    for measure in ("contrastiveness", "robustness", "abpc", "pointing", "relevance_mass", "rank_accuracy"):
        assert report.differences(measure)["ground-truth", "random"].low > 0, measure
    assert report.differences("gae")["ground-truth", "random"].mean > 0.02
    assert abs(report.means("gae")["random"].mean) < 0.01
    assert report.means("pointing")["ground-truth"].mean == 1


def test_localisation_by_hand() -> None:
    heat, mask = torch.zeros(9, 9), torch.zeros(9, 9, dtype=torch.bool)
    mask[2:5, 2:5] = True
    heat[3, 3], heat[8, 8], heat[0, 0] = 3, 1, -5
    found = localisation(heat, mask)
    assert found["pointing"] == 1
    assert found["relevance_mass"] == 0.75


def test_intervals_cover() -> None:
    values = [{"method": m, "sample": i, "gae": i % 2 + (m == "b")} for m in "ab" for i in range(100)]
    report = Report(values, {}, {"seed": 0})
    mean = report.means("gae")["a"]
    assert (mean.mean, mean.n) == (0.5, 100)
    assert 0.38 < mean.low < 0.42
    assert 0.58 < mean.high < 0.62
    pair = report.differences()["a", "b"]
    assert (pair.low, pair.mean, pair.high) == (-1, -1, -1)  # paired: the samples' own spread is no part of it


def command(*args: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["evaluate", *map(str, args)], env={"COLUMNS": "200"})
    assert result.exit_code == code, result.output + repr(result.exception)
    return result.output


def test_the_command(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    options = ("--masks", EXAMPLES / "masks", "--steps", 2, "--device", "cpu", "-o", tmp_path / "out")
    said = command(EXAMPLES / "model.pt", EXAMPLES / "pictures", "--methods", "abslrp,random", *options)
    assert "pointing" in said
    assert "…" not in said  # cut off for want of columns
    table = pq.read_table(tmp_path / "out" / "results.parquet").to_pylist()
    assert len(table) == 2 * 6
    assert {"method", "sample", "name", "gae", "lc", "morf", "abpc", "rank_accuracy"} <= table[0].keys()
    assert json.loads((tmp_path / "out" / "report.json").read_text())["means"]["abslrp"]["gae"]["n"] == 6
    args = [
        "evaluate",
        *map(str, (EXAMPLES / "model.pt", EXAMPLES / "pictures", "--methods", "abslrp,random", *options)),
    ]
    again = CliRunner().invoke(app, [*args, "--json"])
    assert json.loads(again.stdout) == json.loads((tmp_path / "out" / "report.json").read_text())
    page = (tmp_path / "out" / "report.html").read_text()
    assert not re.search(r"(src|href)=['\"]?(?!data:)[a-z]*:?//", page)
    assert page.count("data:image/png") == 2 * 2 * 5
    parts = (tmp_path / "out" / "pieces.jsonl").read_bytes()
    command(EXAMPLES / "model.pt", EXAMPLES / "pictures", "--methods", "abslrp,random", *options)  # all there already
    assert (tmp_path / "out" / "pieces.jsonl").read_bytes() == parts


def test_quantus_measures(model: nn.Module) -> None:
    pytest.importorskip("quantus", reason="Quantus is not installed (extra `eval`)")

    def picture(net: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        return x

    def negative(net: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        return -x.abs()

    def nothing(net: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        return 0 * x

    epsilon = fxlrp.convert(model, rules="epsilon")
    methods = ["input-x-gradient", "random", "abslrp", epsilon, picture, negative, nothing]
    a, b = (evaluate(model, methods, pictures(4), steps=2, batch_size=size) for size in (2, 8))
    assert_close(a, b, 1e-6)
    assert a.settings["quantus"]
    assert not a.errors
    assert {row["max_sensitivity"] for row in a.rows if row["method"] == "nothing"} == {None}
    assert 0 < a.means("sparseness")["input-x-gradient"].mean < 1
    sensitive, randomized = a.means("max_sensitivity"), a.means("randomization")
    assert sensitive["random"].mean > sensitive["input-x-gradient"].mean > sensitive["picture"].mean > 0
    assert randomized["picture"].mean == pytest.approx(1)  # it is the same whatever the weights
    assert abs(randomized["random"].mean) < 0.1
    assert all(randomized[m].mean < 0.9 for m in ("input-x-gradient", "abslrp", "epsilon"))


def test_randomization_needs_layers_that_can_be_drawn_anew() -> None:
    pytest.importorskip("quantus", reason="Quantus is not installed (extra `eval`)")

    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(768, 5, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1) @ self.weight

    report = evaluate(Bare().eval(), "input-x-gradient", pictures(4), steps=2)
    assert "max_sensitivity" in report.measures
    assert "randomization" not in report.measures


def test_without_quantus_a_note(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fxlrp.gae.quantus.version", lambda: None)
    report = evaluate(model, "random", pictures(4), steps=2)
    assert "Quantus is not installed" in report.notes[0]
    assert "sparseness" not in report.measures
    assert not evaluate(model, "random", pictures(4), steps=2, quantus=False).notes
