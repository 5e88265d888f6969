"""What the commands print: on stdout what they found, on stderr notes, warnings and errors of one sentence each."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fxlrp.errors import FxlrpError
from fxlrp.inputs.hubs import first_line
from fxlrp.inputs.pictures import Preprocess
from fxlrp.methods import DEFAULT
from fxlrp.reports.ended import NoRelevance
from fxlrp.reports.report import Report
from fxlrp.rules.registry import parameters_of, rulebooks

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def errors_in_one_sentence(command: Callable[..., None]) -> Callable[..., None]:
    """Wrap a command so that an error prints one sentence and exits: 2 if the user can mend it, 1 if we should.

    With debug=True errors are raised as they are.
    """

    @functools.wraps(command)
    def run(*args: Any, debug: bool = False, **kwargs: Any) -> None:
        if not debug:
            warnings.simplefilter("ignore")
            warnings.simplefilter("always", NoRelevance)
            warnings.showwarning = _print_warning  # type: ignore[assignment]
        try:
            command(*args, debug=debug, **kwargs)
        except (typer.Exit, typer.Abort):
            raise
        except Exception as error:
            if debug:
                raise
            raise typer.Exit(_print_error(error)) from None

    return run


def _print_error(error: Exception) -> int:
    """Print an error and return the exit code that it stands for."""
    if not isinstance(error, FxlrpError | OSError):
        unexpected = f"[bold red]unexpected error:[/] {escape(first_line(error))}; run again with --debug"
        err.print(unexpected, soft_wrap=True)
        return 1
    sentence = str(error)
    if isinstance(error, OSError):
        sentence = f"Cannot read or write, {sentence.split('] ')[-1]}; give another path, or free this one."
    err.print(f"[bold red]error:[/] {escape(sentence)}", soft_wrap=True)
    return 2


def _print_warning(message: Warning | str, *_: Any) -> None:
    err.print(f"[yellow]warning:[/] {escape(str(message))}", soft_wrap=True)


def print_rulebooks() -> None:
    """Print every rulebook with its parameters and what it does."""
    table = Table("rulebook", "parameters", "what it does", box=None)
    for book in rulebooks().values():
        parameters = "\n".join(f"{name}={value}" for name, value in parameters_of(book.name).items())
        table.add_row(f"[bold]{book.name}[/]", parameters, book.doc)
    out.print(table)
    out.print(f"The default is [bold]{DEFAULT}[/]; abslrp is the published method.")


def print_counts(report: Report) -> None:
    """Print how many nodes were explained by which kind of rule, and warn of those without a rule of their own."""
    counts = report.counts
    out.print(f"rulebook {report.rulebook}: {counts['rule']} nodes by rule, {counts['structural']} structural", end="")
    out.print(f", {counts['generic']} by the generic rule")
    warn_of_generic_ops(report)


def warn_of_generic_ops(report: Report) -> None:
    """Print a warning that names the ops without a rule of their own, if there are any."""
    if report.counts["generic"]:
        ops = ", ".join(sorted({node.op for node in report.nodes if node.kind == "generic"}))
        err.print(f"[yellow]warning:[/] these ops have no rule of their own: {escape(ops)}", soft_wrap=True)


def note_guess(preprocess: Preprocess) -> None:
    """Print a note if the preprocessing is a guess, since the map depends on it."""
    if preprocess.guessed:
        size = "x".join(map(str, preprocess.size))
        err.print(
            f"[yellow]note:[/] the model does not say what pictures it takes: {size}, ImageNet's mean and std "
            "(--size, --mean, --std).",
            soft_wrap=True,
        )
