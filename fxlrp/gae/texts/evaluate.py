"""Evaluate methods on a data set of texts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fxlrp.errors import FxlrpError
from fxlrp.gae.conduct import Progress, Ray, conduct
from fxlrp.gae.methods import name_methods
from fxlrp.gae.texts.data import Texts
from fxlrp.gae.texts.methods import BASELINES, Method, run
from fxlrp.gae.texts.plan import TextPlan
from fxlrp.gae.texts.report import TextReport
from fxlrp.text.attribution import Asked, TextAttribution


def evaluate(
    model: nn.Module,
    tokenizer: Any,
    methods: Mapping[str, Method] | Iterable[Method] | Method,
    dataset: Any,
    *,
    steps: int = 10,
    seed: int = 0,
    batch_size: int = 16,
    device: str | torch.device | None = None,
    stability: bool = True,
    out: str | Path | None = None,
    limit: int | None = None,
    workers: int = 0,
    ray: str | None = None,
    progress: Progress | None = None,
) -> TextReport:
    """Measure removal of tokens and, where people marked the texts, agreement with them, of each method on each text.

    model: a classifier of texts, whose top class is explained, or one that writes, whose continuation is; in eval mode.
    tokenizer: its fast tokenizer.
    methods: names (`fxlrp.gae.texts.BASELINES`, or rulebooks, see `fxlrp.rulebooks()`), explainers, rulebooks, and
        functions (model, case) → relevance of its tokens [T]; a dict to name them.
    dataset: anything with a length and items: texts, (text, label), `Sample`s or dicts of what a Sample holds; see
        `fxlrp.gae.texts.data.Texts`.
    steps: after each another 1/steps of the tokens is gone.
    seed: the noise of "random" and "smoothgrad", of the embeddings and of random weights.
    batch_size: texts in one call of the model, while tokens are removed.
    device: where to move the model to; without it, where it is.
    stability: also measure sensitivity and randomization, for which each method explains every text four times more.
    out, limit, workers, ray, progress: as in `fxlrp.gae.evaluate`: a run goes on, and Ray's actors share its work.

    A method that raises is left out of the report's table and its error is in `report.errors`.

    Raises FxlrpError for arguments that don't fit, a text that the model can't take, a folder that can't be written,
    and one with another run's results.
    """
    named = name_methods(methods, BASELINES)
    data = Texts(dataset, limit)
    if model.training:
        raise FxlrpError("The model is in training mode; call model.eval() before evaluate.")
    if not named:
        raise FxlrpError("There is no method to evaluate; give names, explainers or functions.")
    if steps < 1 or batch_size < 1:
        raise FxlrpError(f"steps={steps}, batch_size={batch_size}: at least 1 of each is needed.")
    if device is not None:
        model.to(device)
    plan = TextPlan(model, tokenizer, data, steps, seed, batch_size, stability)
    report = conduct(plan, named, TextPlan.measure, TextReport, out=out, ray=Ray(workers, ray), progress=progress)
    report.notes.extend(_notes(report, plan.without))
    if out is not None:
        report.save(out, examples=lambda method, samples: _shown(plan, method, named[method], samples))
    return report


def _notes(report: TextReport, without: int) -> list[str]:
    """Say what the results leave out.  without: how many texts have no continuation, though others do."""
    rows = [row for row in report.rows if row["method"] == report.methods[0]]
    notes = []
    if without:
        notes.append(
            f"Of {without} of {len(rows)} texts the likeliest next token is explained: they have no continuation."
        )
    if cut := [row for row in rows if row["dropped"]]:
        notes.append(f"Of {len(cut)} of {len(rows)} texts the end is left out: the model takes no more.")
    if "replaced" not in report.ways:
        notes.append("Tokens are not replaced by a mask: the tokenizer has none.")
    if "hidden" not in report.ways:
        notes.append("Tokens are not hidden: the model takes no attention_mask.")
    return notes


def _shown(plan: TextPlan, name: str, method: Method, samples: Sequence[int]) -> list[TextAttribution]:
    """Return attributions of samples, with what people marked as a second row, for the page."""
    shown = []
    for i in samples:
        case = plan.case(i)
        count = len(case.text.pieces)
        rows = [run(plan.explain(name, method), case).cpu()]
        asked = [Asked(f"why {case.predicted}")]
        if case.truth is not None:
            rows.append(case.truth.cpu())
            asked.append(Asked("what people marked"))
        matrix = torch.stack(rows)[:, :count]
        shown.append(TextAttribution(case.text.segments, case.text.pieces, matrix, asked, case.text.dropped))
    return shown
