"""The table of situations says of a case what is so: right, refused, wrong or broken.  Some of its cases are right."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks import situation_checks as checks
from benchmarks import situation_models as models
from benchmarks.situation_report import report
from benchmarks.workers import ask_all

SAMPLE = (
    "masked_mean_and_maximum",
    "causal_language_model",
    "fast_text_ngrams",
    "floats_with_category_columns",
    "graph_convolution_by_scatter",
    "straight_through_rounding",
    "lora_as_a_parametrisation",
    "plain_network_without_biases",
    "masked_assignment",
    "dict_of_features",
    "siamese_distance",
    "quantile_heads",
    "no_bias_and_two_inputs",
)
X = torch.randn(2, 4)


@pytest.mark.parametrize("name", SAMPLE)
def test_a_sample_is_right(name: str) -> None:
    result, why = checks.verdict(checks.examine(name, ("abslrp-hybrid", "gradient-input")))
    assert result == "right", why


class Broken(nn.Module):
    """A linear layer with a fault."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.layer, self.fault, self.calls = nn.Linear(4, 3), fault, 0

    def forward(self, x: Tensor) -> Any:
        if self.fault == "refused":
            return (x > 0).double()
        if self.fault == "counts":
            self.calls += 1
        return self.layer(x)


def ask(monkeypatch: pytest.MonkeyPatch, model: nn.Module, book: str, **more: Any) -> tuple[str, str]:
    made = models.Listed("axes", "a fault", lambda: models.Case(model, (X.clone(),), target=1, **more))
    monkeypatch.setitem(models.CASES, "fault", made)
    return checks.verdict(checks.examine("fault", (book,)))


def test_what_is_refused_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    result, why = ask(monkeypatch, Broken("refused"), "abslrp")
    assert result == "refused"
    assert "No input carries relevance" in why


class Spoiled:
    """An explainer with a fault."""

    def __init__(self, explainer: Any, **changes: Any) -> None:
        self.explainer, self.changes, self.report = explainer, changes, explainer.report

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        a = self.explainer(*args, **kwargs)
        return replace(a, **{name: change(getattr(a, name)) for name, change in self.changes.items()})


FAULTS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "x · gradient": ("gradient-input", {"relevance": lambda r: 2 * r}, {}),
    "of the score": ("epsilon", {"relevance": lambda r: 2 * r}, {"conserves": True}),
    "rows alone": ("epsilon", {"relevance": lambda r: r * len(r)}, {}),
    "is not finite": ("epsilon", {"relevance": lambda r: r / 0}, {}),
    "has shape (2, 3)": ("epsilon", {"relevance": lambda r: r[:, :3]}, {}),
    "is zero without a warning": ("epsilon", {"relevance": lambda r: r * 0}, {}),
    "the output is 1.0e+00 off": ("epsilon", {"output": lambda y: 2 * y}, {}),
    "the output is a list": ("epsilon", {"output": lambda y: [y]}, {}),
}


@pytest.mark.parametrize("said", list(FAULTS))
def test_what_is_wrong_is_said(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    book, spoil, more = FAULTS[said]
    model = nn.Linear(4, 3, bias=False)
    assert ask(monkeypatch, model, book, **more) == ("right", "")
    convert = checks.fxlrp.convert
    monkeypatch.setattr(checks.fxlrp, "convert", lambda *args, **kwargs: Spoiled(convert(*args, **kwargs), **spoil))
    result, why = ask(monkeypatch, model, book, **more)
    assert result == "wrong"
    assert said in why


def test_scars_and_outputs_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Broken("counts")
    convert = checks.fxlrp.convert

    def scarring(m: nn.Module, **kwargs: Any) -> Any:
        m.calls += 1
        m.layer.weight.data[0, 0] += 1
        torch.rand(1)
        return convert(m, **kwargs)

    monkeypatch.setattr(checks.fxlrp, "convert", scarring)
    result, why = ask(monkeypatch, model, "epsilon")
    assert result == "wrong"
    assert "weights or buffers: layer.weight changed" in why
    assert "attributes changed" in why
    assert "random state changed" in why


def test_other_errors_are_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(m: nn.Module, **kwargs: Any) -> Any:
        raise KeyError("a fault of ours")

    monkeypatch.setattr(checks.fxlrp, "convert", failing)
    assert ask(monkeypatch, nn.Linear(4, 3), "epsilon") == ("broken", "KeyError: 'a fault of ours'")


def test_a_case_that_hangs_or_dies_is_one_row(tmp_path: Path) -> None:
    program = "\n".join(
        (
            "import os, time",
            "from benchmarks.workers import serve",
            "acts = {'hangs': lambda: time.sleep(60), 'dies': lambda: os._exit(3), 'is fine': lambda: None}",
            "serve(lambda line: {'is': line, 'so': acts[line]()}, lambda: None, 8)",
        )
    )
    found = {}

    def record(line: str, answer: dict | str) -> tuple[dict, str]:
        found[line] = answer
        return {}, ""

    command = [sys.executable, "-c", program]
    ask_all(["hangs", "dies", "is fine"], command, record, workers=1, timeout=2, out=tmp_path / "out.jsonl")
    assert found["hangs"] == "timeout after 2 s"
    assert found["dies"] == "the process died (exit code 3)"
    assert found["is fine"]["is"] == "is fine"


def test_every_kind_has_cases_and_a_place_in_the_table() -> None:
    assert {c.kind for c in models.CASES.values()} == set(models.KINDS)
    books = {book: {"result": "right", "why": ""} for book in checks.BOOKS}
    records = [checks.blank(name) | {"books": books} for name in models.CASES]
    records[0]["books"] = books | {"epsilon": {"result": "refused", "why": "It can't be, do that."}}
    page = report(records)
    assert "**refused**: epsilon: It can't be, do that." in page
    assert f"| **all** | {len(records)} | {len(records) - 1} | 1 | 0 | 0 |" in page
    assert all(f"## {words}\n" in page for words in models.KINDS.values())
