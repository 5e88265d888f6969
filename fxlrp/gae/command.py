"""What `fxlrp evaluate` does once its options are parsed."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from fxlrp.gae.data import open_data
from fxlrp.gae.evaluate import Progress as Callback
from fxlrp.gae.evaluate import evaluate
from fxlrp.gae.report import Report
from fxlrp.methods import DEFAULT

METHODS = f"{DEFAULT},abslrp,abslrp-2024-12,input-x-gradient,integrated-gradients,smoothgrad,gradcam,random"


def run(
    loaded: Any,
    data: str,
    methods: Sequence[str],
    masks: Path | None,
    out: Path | None,
    console: Console,
    **options: Any,
) -> Report:
    """Evaluate methods on the data set that `data` names; only the first process shows a progress bar.

    Raises FxlrpError as `open_data` and `evaluate` do.
    """
    dataset = open_data(data, loaded.preprocess, masks)
    with _progress(console, hidden=int(os.environ.get("RANK", 0)) > 0) as progress:
        return evaluate(
            loaded.module,
            list(dict.fromkeys(methods)),
            dataset,
            out=out,
            progress=progress,
            **options,
        )


@contextmanager
def _progress(console: Console, hidden: bool) -> Iterator[Callback]:
    """Show a progress bar, and yield what moves it: a function of how much is done, of how much."""
    columns = (TextColumn("evaluating"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=hidden) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def say(report: Report, out: Path | None, console: Console) -> None:
    """Print the table, what could not be evaluated, and where the files are; of several processes the first does."""
    if int(os.environ.get("RANK", 0)):
        return
    console.print(report.table())
    for method, error in report.errors.items():
        console.print(f"[yellow]{escape(method)} was not evaluated:[/] {escape(error)}", soft_wrap=True)
    for note in report.notes:
        console.print(f"[dim]{escape(note)}[/]", soft_wrap=True)
    if out is not None:
        console.print(f"wrote [bold]{escape(str(out))}[/]: results.parquet, report.json, report.html", soft_wrap=True)
