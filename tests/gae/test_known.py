"""Built networks: what is right of them derived another way, what passes, and runs that are killed or shared."""

from __future__ import annotations

import itertools
import json
import math
import multiprocessing
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import fxlrp
from fxlrp import FxlrpError
from fxlrp.cli import app
from fxlrp.gae.known import built
from fxlrp.gae.known.built import KINDS
from fxlrp.gae.known.cases import misplaced
from fxlrp.gae.known.layouts import LAYOUTS
from fxlrp.gae.known.run import known

pytest.importorskip("captum")
pytest.importorskip("pyarrow")
FORK = multiprocessing.get_context("fork")
WITHOUT_GRADIENTS = ["ground-truth", "random", "feature-ablation"]


def few(seed: int, folder: Path | None = None) -> list[Any]:
    """Some of the built networks."""
    some = [f"{kind}, {layout}" for kind in ("linear", "or", "max") for layout in ("table", "sequence", "2d")]
    return [case for case in built.cases(seed) if case.name in some]


@pytest.fixture
def a_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(known.__globals__["SUITES"], "built", few)


def work(out: Path, slow: float = 0, workers: int = 0) -> None:
    """A run, which takes its time."""
    known.__globals__["SUITES"]["built"] = few
    known(WITHOUT_GRADIENTS, suites="built", out=out, workers=workers, progress=lambda *_: time.sleep(slow))


def results(out: Path) -> bytes:
    return b"".join((out / name).read_bytes() for name in ("results.parquet", "report.json", "report.html"))


def run_apart(*args: Any) -> Any:
    started = FORK.Process(target=work, args=args)
    started.start()
    return started


def test_killed_it_is_the_same_bytes(tmp_path: Path) -> None:
    whole = run_apart(tmp_path / "whole")
    whole.join(60)
    pieces_of = tmp_path / "killed" / "pieces.jsonl"
    for enough in (2, 9, 16):  # of 27 pieces
        run = run_apart(tmp_path / "killed", 0.1)
        while run.is_alive() and (not pieces_of.exists() or pieces_of.read_bytes().count(b"\n") < enough):
            time.sleep(0.01)
        assert run.is_alive()
        run.kill()
        run.join()
    run = run_apart(tmp_path / "killed")
    run.join(60)
    assert run.exitcode == 0
    assert results(tmp_path / "whole") == results(tmp_path / "killed")
    lines = pieces_of.read_text().splitlines()
    pieces = [(row["chunk"], row["method"]) for row in map(json.loads, lines)]
    assert len(pieces) == len(set(pieces)) == 9 * 3


@pytest.mark.whole
def test_shared_it_is_the_same_bytes(tmp_path: Path, a_few: None) -> None:
    pytest.importorskip("ray", reason="Ray is not installed (pip install 'fxlrp[data]')")
    work(tmp_path / "whole")
    work(tmp_path / "shared", workers=2)
    assert results(tmp_path / "whole") == results(tmp_path / "shared")


def shapley(net: nn.Module, x: Tensor) -> Tensor:
    """Shapley values of the entries of x [n, …] that are not 0, by every set of them, against 0."""
    flat = x.flatten(1)
    out = torch.zeros_like(flat)
    for row, values in enumerate(flat):
        players = values.nonzero()[:, 0].tolist()
        d = len(players)
        sets = torch.tensor(list(itertools.product([0.0, 1.0], repeat=d)), dtype=x.dtype)
        inputs = torch.zeros(len(sets), flat.shape[1], dtype=x.dtype)
        inputs[:, players] = sets * values[players]
        with torch.no_grad():
            worth = net(inputs.view(-1, *x.shape[1:]))[:, 0]
        of = {tuple(s): v for s, v in zip(sets.tolist(), worth.tolist(), strict=True)}
        for i, player in enumerate(players):
            for s, value in of.items():
                if not s[i]:
                    k = int(sum(s))
                    weight = math.factorial(k) * math.factorial(d - k - 1) / math.factorial(d)
                    out[row, player] += weight * (of[(*s[:i], 1.0, *s[i + 1 :])] - value)
    return out.view_as(x)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_right_is_the_shapley_value_by_enumeration(kind: str, layout: str) -> None:
    case = built.build(kind, layout, seed=3)
    x, truth = case.views.x[:3], case.views.truth
    assert truth is not None
    torch.testing.assert_close(truth[:3], shapley(case.model, x))
    with torch.no_grad():
        score = case.model(case.views.x)[:, 0]
        at_nothing = case.model(torch.zeros_like(x))
    assert score.min() > 0
    assert not at_nothing.any()
    torch.testing.assert_close(truth.flatten(1).sum(1), score)  # complete


def test_other_answers_are_what_they_are_said_to_be() -> None:
    made = {kind: KINDS[kind].make(torch.Generator().manual_seed(1)) for kind in KINDS}
    several = {kind for kind, m in made.items() if len(m.answers) > 1}
    assert several == {"max", "max of ReLUs", "cancelling", "interacting"}
    for kind in ("max", "max of ReLUs"):  # integrated gradients from 0 keep the same winner all along
        z = made[kind].z.clone().requires_grad_()
        gradient = torch.autograd.grad(made[kind].net(0.5 * z).sum(), z)[0] / 0.5
        torch.testing.assert_close(made[kind].answers[1], gradient * z.detach())
    net, z, answers = made["cancelling"]
    net, z = net.double(), z.double()
    with torch.no_grad():
        features_first = torch.cat([z[:, :3], torch.zeros(len(z), 3)], 1)
        for i in range(3):  # each feature alone, then its bit
            alone = torch.zeros_like(z).index_copy(1, torch.tensor([i]), z[:, [i]])
            torch.testing.assert_close(answers[1][:, i], net(alone)[:, 0])
            after = features_first.index_copy(1, torch.tensor([3 + i]), z[:, [3 + i]])
            torch.testing.assert_close(answers[1][:, 3 + i], (net(after) - net(features_first))[:, 0])
    net, z, answers = made["interacting"]
    with torch.no_grad():  # each feature under the bits as they are
        for i in range(2):
            torch.testing.assert_close(answers[1][:, i], (net(z) - net(z.index_fill(1, torch.tensor([i]), 0.0)))[:, 0])
        assert not answers[1][:, 2:].any()


def test_the_truth_passes_all_and_chance_none() -> None:
    report = known(["ground-truth", "random"], suites="built")
    passed = report.passed()
    assert len(passed["ground-truth"]) == len(KINDS) * len(LAYOUTS) == 80
    assert all(passed["ground-truth"].values())
    assert not any(passed["random"].values())
    assert report.means("built", "misplaced")["ground-truth"].mean == 0


def test_what_is_misplaced() -> None:
    right = torch.tensor([[1.0, 3.0, 0.0]])
    for answer, part in (
        ([2, 6, 0], 0),
        ([3, 1, 0], 0.5),
        ([0, 0, 5], 1),
        ([0, 0, 0], 1),
        ([-1, -3, 0], 1),
        ([1, 3, -2], 1 / 3),
    ):
        assert misplaced(torch.tensor([answer], dtype=torch.float), right).item() == pytest.approx(part), answer


@pytest.mark.usefixtures("a_few")
def test_rulebooks_pass_what_their_rules_say(tmp_path: Path) -> None:
    report = known(["epsilon", "zplus", "gradient", "captum-lrp"], suites="built", out=tmp_path)
    passed = {m: {kind for kind in ("linear", "or", "max") if all(ok for c, ok in by.items() if c.startswith(kind))}
              for m, by in report.passed().items()}  # fmt: skip
    assert passed["epsilon"] == {
        "linear",
        "or",
        "max",
    }  # z-rules: w x, ones share alike
    assert passed["zplus"] == {"or", "max"}  # what speaks against is left out
    assert passed["gradient"] == set()
    assert any("no rule" in line for line in report.said("built"))
    page = (tmp_path / "report.html").read_text()
    assert "no rule" in page
    assert "http" not in page
    summary = json.loads((tmp_path / "report.json").read_text())
    assert summary["passed"]["epsilon"]["linear, 2d"] is True


@pytest.mark.usefixtures("a_few")
def test_the_command(tmp_path: Path) -> None:
    run = CliRunner().invoke
    args = ["evaluate", "--suite", "built", "--methods", "feature-ablation,random,ground-truth"]
    shown = run(app, [*args, "-o", str(tmp_path)])
    assert shown.exit_code == 0, shown.output
    assert "9/9" in shown.output
    assert "0/9" in shown.output
    again = run(app, [*args, "-o", str(tmp_path), "--json"])
    assert json.loads(again.stdout)["passed"]["random"]["max, 2d"] is False
    for wrong, said in (
        (["--suite", "knwon"], "no suite"),
        (["--suite", "built", "model.pt"], "leave out model.pt"),
        ([], "--suite known"),
        (["--suite", "built", "--methods", "nobody"], "no method"),
        (["--suite", "built", "--seed", "1", "-o", str(tmp_path)], "seed 0 there, 1 here"),
    ):
        refused = run(app, ["evaluate", *wrong])
        assert refused.exit_code == 2, wrong
        assert said in " ".join(refused.output.split()), wrong


def test_another_network_under_the_same_name_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(known.__globals__["SUITES"], "built", few)
    known("ground-truth", suites="built", out=tmp_path)
    monkeypatch.setitem(known.__globals__["SUITES"], "built", lambda seed, folder: few(seed + 1))
    with pytest.raises(FxlrpError, match="another network"):
        known(["ground-truth", "random"], suites="built", out=tmp_path)


def test_methods_of_any_shape_of_input() -> None:
    """A function, and captum's methods of parts set to 0, on tables, sequences and signals."""

    def mine(model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        x = x.requires_grad_()
        return torch.autograd.grad(model(x).sum(), x)[0] * x.detach()

    for layout in LAYOUTS:
        case = built.build("linear", layout, 0)
        for method in (mine, "occlusion", "feature-ablation", "kernel-shap"):
            relevance = fxlrp.gae.explain_by(method, case.model)(case.views)
            assert case.score(relevance)[0]["misplaced"] < 0.02, (layout, method)


def test_a_suite_of_ones_own(tmp_path: Path) -> None:
    """A network whose right answer the user knows."""
    w, x = torch.tensor([[1.0, -2.0, 0.5]]), torch.tensor([[1.0, 1.0, 1.0], [2.0, 0.5, -1.0]])
    model = nn.Linear(3, 1, bias=False).eval()
    model.weight = nn.Parameter(w)
    mine = fxlrp.gae.Case("mine", "three weights", lambda: fxlrp.gae.right(model, x, torch.zeros(2).long(), w * x))
    report = known(["ground-truth", "feature-ablation", "random"], suites={"mine": [mine]}, out=tmp_path)
    means = report.means("mine", "passed")
    assert (means["ground-truth"].mean, means["feature-ablation"].mean, means["random"].mean) == (1, 1, 0)
    assert report.ranked("mine")[-1] == "random"
    assert "misplaced" in (tmp_path / "report.html").read_text()
    with pytest.raises(FxlrpError, match="no measure 'gae' of 'mine'; there are passed, misplaced"):
        report.means("mine", "gae")


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda model, x, t: fxlrp.gae.right(model, x, t), r"they are \[2, 3\], \[2\]\."),
        (lambda model, x, t: fxlrp.gae.right(model, x, t, x[:, :2]), r"like x; they are \[2, 3\], \[2\], \[2, 2\]"),
        (lambda model, x, t: fxlrp.gae.right(model, x, t[:1], x), r"they are \[2, 3\], \[1\], \[2, 3\]"),
        (lambda model, x, t: fxlrp.gae.right(model, x, t, x, x * torch.nan), "about sample 0 is no number"),
        (lambda model, x, t: fxlrp.gae.right(model, x, t, x * t[:, None]), "about sample 0 is .* 0 everywhere"),
        (lambda model, x, t: x, "of 'a' returned a Tensor; see fxlrp.gae.right"),
        (None, "The suite 'mine' has no cases"),
    ],
)
def test_a_suite_of_ones_own_that_cannot_be_asked(made: Any, said: str) -> None:
    model, x, target = nn.Linear(3, 2).eval(), torch.ones(2, 3), torch.tensor([0, 1])
    cases = [] if made is None else [fxlrp.gae.Case("mine", "a", lambda: made(model, x, target))]
    with pytest.raises(FxlrpError, match=said):
        known("random", suites={"mine": cases})


def test_one_sample_that_is_wrong_is_enough() -> None:
    rows = [{"method": "m", "suite": "built", "case": "or, 1d", "sample": i, "passed": p} for i, p in enumerate([0, 1])]
    report = fxlrp.gae.KnownReport(rows, [], [], {"suites": ["built"], "seed": 0})
    assert report.passed() == {"m": {"or, 1d": False}}


@pytest.mark.parametrize("shape", [(3, 28, 28), (9, 30), (1, 200), (2, 9, 9, 9), (100,)])
def test_parts_have_what_the_score_loses_without_them(shape: tuple[int, ...]) -> None:
    """Of a linear network, also where many entries are one part."""
    g = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), 2, bias=False))
    model[1].weight = nn.Parameter(torch.randn(2, math.prod(shape), generator=g))
    x, target = torch.randn(2, *shape, generator=g), torch.tensor([1, 0])
    asked = fxlrp.gae.Views(x, target, "ab")
    relevance = fxlrp.gae.explain_by("feature-ablation", model)(asked)
    score = model(x).gather(1, target[:, None])[:, 0]
    torch.testing.assert_close(relevance.flatten(1).sum(1), score, atol=1e-3, rtol=1e-4)
    if shape == (9, 30):  # a token is one part
        assert (relevance == relevance[:, :, :1]).all()
