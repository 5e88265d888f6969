"""Evaluate methods on a data set, chunk by chunk, so that a run can go on later and share its work with others."""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fxlrp.errors import FxlrpError
from fxlrp.gae import quantus as quantus_measures
from fxlrp.gae.data import Data
from fxlrp.gae.definitions import DEFINITIONS, FIXED, PUBLISHED
from fxlrp.gae.measures import curves, localisation
from fxlrp.gae.methods import Method, identify, name_methods, run
from fxlrp.gae.metric import Trial, score
from fxlrp.gae.plan import Plan
from fxlrp.gae.report import Report
from fxlrp.gae.store import Store

Progress = Callable[[int, int], None]
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
    device: str | torch.device | None = None,
    quantus: bool = True,
    out: str | Path | None = None,
    masks: Sequence[Any] | None = None,
    limit: int | None = None,
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
    device: where to move the model to; without it, where it is.
    quantus: also measure sparseness, max-sensitivity and randomization with Quantus if it is installed, which takes a
        third as long again; if it is not, `report.notes` says so.
    out: a folder; results are kept there as they come, a run that was killed goes on, and results.parquet, report.json
        and report.html are written at the end.  Under torchrun (RANK, WORLD_SIZE) the chunks are shared out and every
        process returns the same report.
    masks: a mask for each sample, instead of the data set's.
    limit: only the first so many samples.
    progress(done, all): called after each piece of work of this process.

    A method that raises is left out of the report's table and its error is in `report.errors`.

    Raises FxlrpError for arguments that don't fit, a model that is no classifier, a folder that can't be written, and
    one with another run's results: of another model, method, data set or argument, or changed since.
    """
    named = name_methods(methods)
    data = Data(dataset, masks, limit)
    _check(model, named, data, steps, mosaics, definition, batch_size)
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    _check_folder(out, world)
    if device is not None:
        model.to(device)
    quantus_version = quantus_measures.version() if quantus else None
    plan = Plan(model, data, steps, mosaics, seed, definition, batch_size, quantus_version)
    manifest = plan.manifest()
    notes = [WITHOUT_QUANTUS] if quantus and quantus_version is None else []
    identities = {} if out is None else {name: identify(method) for name, method in named.items()}
    store = Store(None if out is None else Path(out), manifest, identities.get, rank)
    try:
        _fill(store, plan, named, range(rank, plan.chunks, world), progress)
        store.wait({(k, name) for k in range(plan.chunks) for name in named})
    finally:
        store.close()
    report = _gather(store, plan, list(named), manifest, notes)
    if not report.methods:
        raise FxlrpError("No method could be evaluated: " + "; ".join(f"{m}: {e}" for m, e in report.errors.items()))
    if out is not None and rank == 0:
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


def _check_folder(out: str | Path | None, processes: int) -> None:
    """Raise FxlrpError if there is no folder for several processes to meet in, or results can't be written to it."""
    if processes > 1 and out is None:
        raise FxlrpError("Several processes meet in a folder: give evaluate(…, out=FOLDER), or --out.")
    if out is not None and importlib.util.find_spec("pyarrow") is None:
        raise FxlrpError("results.parquet needs pyarrow: pip install 'fxlrp[eval]'.")


def _fill(
    store: Store, plan: Plan, named: Mapping[str, Method], chunks: Sequence[int], progress: Progress | None
) -> None:
    """Compute the pieces of these chunks that are not in the store.

    Raises FxlrpError for a store of other samples, and where memory runs out; other errors of a method are kept.
    """
    failed: dict[str, str] = {}
    done, total = 0, len(chunks) * len(named)
    for chunk in chunks:
        missing = [name for name in named if (chunk, name) not in store]
        content = None if store.folder is None else plan.content(chunk)
        if any(store.kept[chunk, name]["of"] != content for name in named if name not in missing):
            raise FxlrpError(
                f"{store.folder} holds results of other pictures, labels or masks under the same numbers (among "
                f"samples {', '.join(map(str, plan.rows(chunk)[:8]))}, …); give another folder, or delete it."
            )
        trial = views = None
        done += len(named) - len(missing)
        for name in missing:
            if name not in failed:
                trial = trial or plan.trial(chunk)
                views = views or trial.views()
                try:
                    explain = plan.explain(name, named[name])
                    rows = _rows(plan, trial, run(explain, views, plan.batch_size), name, named[name])
                except torch.OutOfMemoryError as error:
                    raise FxlrpError(f"There is no memory left for {name}; give a smaller batch_size.") from error
                except Exception as error:  # whatever a method raises is its own result
                    failed[name] = str(error) if isinstance(error, FxlrpError) else f"{type(error).__name__}: {error}"
            if name in failed:
                store.add(chunk, name, of=content, error=failed[name].strip().splitlines()[0])
            else:
                store.add(chunk, name, of=content, rows=rows)
            done += 1
            if progress:
                progress(done, total)


def _rows(plan: Plan, trial: Trial, relevance: Tensor, name: str, method: Method) -> list[dict[str, Any]]:
    """Return a row for each sample of a trial: every measure of one method, for relevance [n + …, C or 1, H, W]."""
    n = len(trial.ids)
    heat = relevance[:n].sum(1)
    columns: dict[str, list] = {key: value.tolist() for key, value in score(trial, relevance).items()}
    columns |= curves(plan.model, trial.x, trial.target, heat, steps=plan.steps, batch_size=plan.batch_size)
    if plan.quantus is not None:
        explain, elsewhere = plan.explain(name, method), functools.partial(plan.explain, name, method)
        columns |= quantus_measures.measure(plan.model, trial, heat, explain, elsewhere, plan.seed, plan.batch_size)
    rows = []
    for j, i in enumerate(trial.ids):
        sample, predicted = plan.sample(i), int(trial.target[j])
        mask = sample.shown(predicted, predicted)
        row: dict[str, Any] = {"sample": i, "label": sample.label, "predicted": predicted}
        row |= {key: values[j] for key, values in columns.items()}
        row |= {} if mask is None else localisation(heat[j], mask.to(heat.device))
        rows.append(row)
    return rows


def _gather(store: Store, plan: Plan, methods: Sequence[str], manifest: dict[str, Any], notes: list[str]) -> Report:
    """Put the pieces of all chunks together; a method with an error in any of them has no rows."""
    rows, errors = [], {}
    for method in methods:
        pieces = [store.kept[k, method] for k in range(plan.chunks)]
        if error := next((p["error"] for p in pieces if "error" in p), None):
            errors[method] = error
        else:
            rows += [{"method": method, **row} for p in pieces for row in p["rows"]]
    order = {m: i for i, m in enumerate(methods)}
    rows.sort(key=lambda row: (order[row["method"]], row["sample"]))
    names = getattr(plan.data.dataset, "files", None)
    if names is not None:
        rows = [{**row, "name": names[row["sample"]].name} for row in rows]
    return Report(rows, errors, manifest, notes)
