"""What the commands print: on stdout what they found, on stderr notes, warnings and errors of one sentence each.

This module and the options are imported before a command is known, so without torch, which takes seconds.
"""

from __future__ import annotations

import functools
import json
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fxlrp.cli.checks import check_options
from fxlrp.errors import FxlrpError, InputsRefused, NoGlyphs, NoRelevance, missing
from fxlrp.methods import DEFAULT, described

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)
T = TypeVar("T")


def errors_in_one_sentence(command: Callable[..., None]) -> Callable[..., None]:
    """Wrap a command so that an error prints one sentence and exits: 2 if the user can mend it, 1 if we should.

    With debug=True errors are raised as they are.
    """

    @functools.wraps(command)
    def run(*args: Any, debug: bool = False, **kwargs: Any) -> None:
        if not debug:
            warnings.simplefilter("ignore")
            for kind in (NoRelevance, NoGlyphs):
                warnings.simplefilter("always", kind)
            warnings.showwarning = _print_warning  # type: ignore[assignment]
        try:
            check_options(kwargs)
            command(*args, debug=debug, **kwargs)
        except (typer.Exit, typer.Abort):
            raise
        except Exception as error:
            if debug:
                raise
            raise typer.Exit(_print_error(error, _hint(kwargs))) from None

    return run


def _hint(options: dict[str, Any]) -> str:
    """What to do where a model refuses what a command gives it."""
    if "size" not in options:
        return ""
    is_noise = "example" in options and options["example"] is None
    other = " What takes no pictures is given an INPUT, as a .csv or .npy." if is_noise else ""
    return f" Pictures are given another size by --size.{other}"


def _print_error(error: Exception, hint: str) -> int:
    """Print an error and return the exit code that it stands for; hint: what to do where the model refuses inputs."""
    if isinstance(error, ModuleNotFoundError):
        error = missing(error.name or "") or error
    if not isinstance(error, FxlrpError | OSError):
        from fxlrp.inputs.hubs import first_line

        unexpected = f"[bold red]unexpected error:[/] {escape(first_line(error))}; run again with --debug"
        err.print(unexpected, soft_wrap=True)
        return 1
    sentence = str(error)
    sentence = re.sub(
        r"position=\((\d+), (\d+)\)", r"--position \1,\2", re.sub(r"position=(\d)", r"--position \1", sentence)
    )
    if isinstance(error, OSError):
        sentence = f"Cannot read or write, {sentence.split('] ')[-1]}; give another path, or free this one."
    sentence += hint if isinstance(error, InputsRefused) else ""
    err.print(f"[bold red]error:[/] {escape(sentence)}", soft_wrap=True)
    return 2


def _print_warning(message: Warning | str, *_: Any) -> None:
    err.print(f"[yellow]warning:[/] {escape(str(message))}", soft_wrap=True)


def tracked(items: Sequence[T], what: str) -> Iterable[T]:
    """The items, with a bar of how many are done where there is a terminal."""
    from rich.progress import track

    return track(items, what, console=err, transient=True, disable=not err.is_terminal)


def print_rulebooks() -> None:
    """Print every rulebook with its parameters and what it does."""
    table = Table("rulebook", "parameters", "what it does", box=None)
    for name, parameters, doc in described():
        table.add_row(f"[bold]{name}[/]", "\n".join(f"{key}={value}" for key, value in parameters.items()), doc)
    out.print(table)
    out.print(f"The default is [bold]{DEFAULT}[/]; abslrp is the published method.")


def print_json(content: Any) -> None:
    """Print JSON on stdout as it is, for other programs: no colours, no line breaks of the terminal's."""
    typer.echo(json.dumps(content, indent=1, ensure_ascii=False))
