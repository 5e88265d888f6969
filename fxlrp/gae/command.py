"""What `fxlrp evaluate` does once its options are parsed."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column, Table

from fxlrp.capture.confine import without_warnings
from fxlrp.gae.data import open_data
from fxlrp.gae.evaluate import Progress as Callback
from fxlrp.gae.evaluate import evaluate
from fxlrp.gae.known.report import KnownReport
from fxlrp.gae.known.run import SUITES, known
from fxlrp.gae.report import Report
from fxlrp.gae.texts import evaluate as evaluate_texts
from fxlrp.gae.tuning import Scores, Tuned, tune


def run(
    loaded: Any,
    data: str,
    methods: Sequence[str],
    masks: Path | None,
    out: Path | None,
    console: Console,
    **options: Any,
) -> Report:
    """Evaluate methods on the data set that `data` names.

    Raises FxlrpError as `open_data` and `evaluate` do.
    """
    dataset = open_data(data, loaded.preprocess, masks)
    with _progress(console) as progress:
        return evaluate(
            loaded.module,
            list(dict.fromkeys(methods)),
            dataset,
            out=out,
            progress=progress,
            **options,
        )


def run_texts(
    model: Any, tokenizer: Any, texts: Any, methods: Sequence[str], out: Path | None, console: Console, **options: Any
) -> Report:
    """Evaluate methods on texts, as `run` does on pictures.  Raises FxlrpError as `evaluate_texts` does."""
    with without_warnings(), _progress(console) as progress:
        names = list(dict.fromkeys(methods))
        return evaluate_texts(model, tokenizer, names, texts, out=out, progress=progress, **options)


def run_known(suite: str, methods: Sequence[str] | None, out: Path | None, console: Console, **how: Any) -> KnownReport:
    """Ask methods about networks that are known; `known` stands for all suites.  Raises FxlrpError as `known` does."""
    names = [name for part in suite.split(",") for name in (SUITES if part.strip() == "known" else [part.strip()])]
    with without_warnings(), _progress(console) as progress:  # of maps that are zero, which is what is measured
        return known(methods, suites=list(dict.fromkeys(names)), out=out, progress=progress, **how)


@contextmanager
def _progress(console: Console) -> Iterator[Callback]:
    """Show a progress bar, and yield what moves it: a function of how much is done, of how much."""
    columns = (TextColumn("evaluating"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def tune_rules(loaded: Any, data: str, masks: Path | None, out: Path | None, console: Console, **options: Any) -> Tuned:
    """Tune the default rulebook on the data set that `data` names, and show how far it is.

    Raises FxlrpError as `open_data` and `tune` do.
    """
    dataset = open_data(data, loaded.preprocess, masks)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("the default on the data")

        def tell(name: str, scores: Scores, held_out: bool) -> None:
            where = "held out" if held_out else "searched on"
            bar.update(task, description=f"{escape(name)}: {_means(scores)} on pictures {where}")

        return tune(loaded.module, dataset, out=out, progress=tell, **options)


def say_tuned(tuned: Tuned, console: Console, as_json: bool = False) -> None:
    """Print what was tried, what was found, and how it does on the pictures that were held out; or all as JSON."""
    if as_json:
        print(json.dumps({**asdict(tuned), "is_better": tuned.is_better}, indent=1))
        return
    measures = [m for m in ("abpc", "pointing", "relevance_mass") if m in tuned.tried[tuned.default]]
    for title, rows in (("searched on", tuned.tried), ("held out", tuned.held_out)):
        columns = (Column(measure.replace("_", " "), no_wrap=True) for measure in measures)
        table = Table(Column(title, overflow="fold"), *columns, box=None)
        for name, scores in rows.items():
            chosen = f"[bold]{escape(name)}[/]" if name == tuned.rules else escape(name)
            table.add_row(chosen, *(_mean(scores[m]) for m in measures))
        console.print(table)
    if tuned.rules == tuned.default:
        console.print("Nothing tried is better than the default by more than one standard error.")
    elif not tuned.is_better:
        console.print("On the pictures that were held out it is no better: keep the default.")
    else:
        console.print(f"Explain with [bold]--rules {escape(tuned.rules)}[/]", soft_wrap=True)


def _means(scores: Scores) -> str:
    return ", ".join(f"{m.replace('_', ' ')} {_mean(v)}" for m, v in scores.items())


def _mean(values: Sequence[float]) -> str:
    """A mean ± its standard error."""
    finite = [v for v in values if math.isfinite(v)]
    error = statistics.stdev(finite) / len(finite) ** 0.5 if len(finite) > 1 else math.nan
    return f"{statistics.mean(finite):.3f} ± {error:.3f}"


def say(report: Report | KnownReport, out: Path | None, console: Console, as_json: bool = False) -> None:
    """Print the table, what could not be evaluated, and where the files are.

    as_json: print report.json in the place of it.
    """
    if as_json:
        print(json.dumps(report.summary(), indent=1))
        return
    console.print(report.table())
    if isinstance(report, KnownReport):
        for line in (line for suite in report.suites for line in report.said(suite)):
            console.print(f"[dim]{escape(line)}[/]", soft_wrap=True)
    else:
        for method, error in report.errors.items():
            console.print(f"[yellow]{escape(method)} was not evaluated:[/] {escape(error)}", soft_wrap=True)
        for note in report.notes:
            console.print(f"[dim]{escape(note)}[/]", soft_wrap=True)
    if out is not None:
        console.print(f"wrote [bold]{escape(str(out))}[/]: results.parquet, report.json, report.html", soft_wrap=True)
