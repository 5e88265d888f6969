"""Evaluate methods on a data set, chunk by chunk, so that a run can go on later and Ray can share its work out."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fxlrp.errors import FxlrpError
from fxlrp.gae import quantus as quantus_measures
from fxlrp.gae.conduct import Progress, Ray, conduct
from fxlrp.gae.data import Data
from fxlrp.gae.definitions import DEFINITIONS, FIXED, PUBLISHED
from fxlrp.gae.masking import MASKINGS
from fxlrp.gae.measures import curves, localisation
from fxlrp.gae.methods import Method, name_methods, run
from fxlrp.gae.metric import Trial, score
from fxlrp.gae.plan import Plan
from fxlrp.gae.report import Report

WITHOUT_QUANTUS = (
    "Sparseness, max-sensitivity and randomization are left out: Quantus is not installed (pip install 'fxlrp[eval]')."
)


def evaluate(
    model: nn.Module,
    methods: Mapping[str, Method] | Iterable[Method] | Method,
    dataset: Any,
    *,
    steps: int = 10,
    mosaics: int = 1,
    seed: int = 0,
    definition: str = FIXED,
    batch_size: int = 16,
    maskings: Sequence[str] = MASKINGS,
    device: str | torch.device | None = None,
    quantus: bool = True,
    out: str | Path | None = None,
    masks: Sequence[Any] | None = None,
    limit: int | None = None,
    workers: int = 0,
    ray: str | None = None,
    progress: Progress | None = None,
) -> Report:
    """Measure GAE, masking curves and, where there are masks, localisation, of each method on each sample.

    model: a classifier in eval mode; the class explained is always its top one.
    methods: names (`fxlrp.gae.BASELINES`, or rulebooks, see `fxlrp.rulebooks()`), explainers, rulebooks, and functions
        (model, x [m, C, H, W], target [m]) → relevance [m, C or 1, H, W], explaining each sample for itself; a dict to
        name them.
    dataset: anything with a length and items x, (x, label) or (x, label, mask), or dicts of these: x float [C, H, W] as
        the model takes it, all of one size; mask [H, W] of the label, or a dict from class to mask.
    steps: masking steps; after each another 1/steps of the input is 0.
    mosaics: how many mosaics each sample is tested on.
    seed: which pictures share a mosaic, and the noise of "random" and "smoothgrad"; derived from it and the sample's
        index, so that no score depends on batches, order or processes.
    definition: "fixed", or "2024-12", the authors' code of that month, which scores one of four samples and in which
        batch_size is a part of the metric (docs/evaluation.md).
    batch_size: inputs in one call of the model or method.
    maskings: what stands in the place of what masking curves mask, of `fxlrp.gae.MASKINGS`; "zero" is always there.
    device: where to move the model to; without it, where it is.
    quantus: also measure sparseness, max-sensitivity and randomization with Quantus if it is installed, which takes a
        third as long again; if it is not, `report.notes` says so.
    out: a folder; results are kept there as they come, a run that was killed goes on, and results.parquet, report.json
        and report.html are written at the end.
    masks: a mask for each sample, instead of the data set's.
    limit: only the first so many samples.
    workers: Ray's actors, which share the work and get model, methods and data set by pickle; 0 for this process alone.
    ray: the address of a cluster, `auto` for the one that is there.
    progress(done, all): called after each piece of work, those of earlier runs counted.

    A method that raises is left out of the report's table and its error is in `report.errors`.

    Raises FxlrpError for arguments that don't fit, a model that is no classifier, a folder that can't be written, and
    one with another run's results: of another model, method, data set or argument, or changed since.
    """
    named = name_methods(methods)
    if unknown := [way for way in maskings if way not in MASKINGS]:
        raise FxlrpError(f"There is no masking {unknown[0]!r}; there are {', '.join(MASKINGS)}.")
    data = Data(dataset, masks, limit)
    _check(model, named, data, steps, mosaics, definition, batch_size)
    if device is not None:
        model.to(device)
    quantus_version = quantus_measures.version() if quantus else None
    ways = tuple(dict.fromkeys(["zero", *maskings]))
    plan = Plan(model, data, steps, mosaics, seed, definition, batch_size, quantus_version, ways)
    notes = [WITHOUT_QUANTUS] if quantus and quantus_version is None else []
    report = conduct(plan, named, _measure, Report, notes=notes, out=out, ray=Ray(workers, ray), progress=progress)
    if out is not None:
        report.save(out, examples=functools.partial(plan.example, named))
    return report


def _check(
    model: nn.Module,
    named: Mapping[str, Method],
    data: Data,
    steps: int,
    mosaics: int,
    definition: str,
    batch_size: int,
) -> None:
    """Raise FxlrpError for arguments that don't fit each other, the model or the data set."""
    if definition not in DEFINITIONS:
        raise FxlrpError(f"There is no definition {definition!r} of GAE; there are {' and '.join(DEFINITIONS)}.")
    if model.training:
        raise FxlrpError("The model is in training mode; call model.eval() before evaluate.")
    if not named:
        raise FxlrpError("There is no method to evaluate; give names, explainers or functions.")
    if steps < 2 or mosaics < 1 or batch_size < 1:
        raise FxlrpError(f"steps={steps}, mosaics={mosaics}, batch_size={batch_size}: at least 2, 1 and 1 are needed.")
    if definition == PUBLISHED and (batch_size % 4 or mosaics != 1):
        raise FxlrpError(f"Definition {PUBLISHED} takes a batch_size that is a multiple of four, and one mosaic.")
    least = batch_size if definition == PUBLISHED else 4
    if len(data) < least:
        raise FxlrpError(f"There are {len(data)} samples; this evaluation needs {least} to make mosaics of.")


def _measure(plan: Plan, trial: Trial, name: str, method: Method) -> list[dict[str, Any]]:
    """Return a row for each sample of a trial: every measure of one method."""
    return _rows(plan, trial, run(plan.explain(name, method), trial.views(), plan.batch_size), name, method)


def _rows(plan: Plan, trial: Trial, relevance: Tensor, name: str, method: Method) -> list[dict[str, Any]]:
    """Return a row for each sample of a trial: every measure of one method, for relevance [n + …, C or 1, H, W]."""
    n = len(trial.ids)
    heat = relevance[:n].sum(1)
    columns: dict[str, list] = {key: value.tolist() for key, value in score(trial, relevance).items()}
    columns |= curves(
        plan.model,
        trial.x,
        trial.target,
        heat,
        steps=plan.steps,
        batch_size=plan.batch_size,
        ways=plan.maskings,
        keys=[f"{plan.seed}:{i}" for i in trial.ids],
    )
    if plan.quantus is not None:
        explain, elsewhere = plan.explain(name, method), functools.partial(plan.explain, name, method)
        columns |= quantus_measures.measure(plan.model, trial, heat, explain, elsewhere, plan.seed, plan.batch_size)
    rows, names = [], getattr(plan.data.dataset, "files", None)
    for j, i in enumerate(trial.ids):
        sample, predicted = plan.sample(i), int(trial.target[j])
        mask = sample.shown(predicted, predicted)
        row: dict[str, Any] = {"sample": i, "label": sample.label, "predicted": predicted}
        row |= {key: values[j] for key, values in columns.items()}
        row |= {} if mask is None else localisation(heat[j], mask.to(heat.device))
        row |= {} if names is None else {"name": names[i].name}
        rows.append(row)
    return rows
