"""Explains the files that a command was given, one after the other: asks, prints, writes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from os.path import commonpath, relpath
from pathlib import Path
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from fxlrp import __version__
from fxlrp.attribution import Attribution
from fxlrp.cli.loading import parse_contrast, parse_position, print_counts
from fxlrp.cli.terminal import out, print_json, tracked
from fxlrp.errors import FxlrpError
from fxlrp.explainer import Explainer, convert
from fxlrp.explaining import every_side
from fxlrp.export.artifact import ExportedExplainer
from fxlrp.inputs import LoadedModel, find_class
from fxlrp.methods import DEFAULT
from fxlrp.show.files import FIGURES, save, summary, write_pages
from fxlrp.show.parts import Part, parts_of, samples_of
from fxlrp.show.words import against, classes_of, headline, likeliest, maps_of

SHOWN = 20
"""Samples of one file that the terminal and a page show."""

AnyExplainer = Explainer | ExportedExplainer


@dataclass(frozen=True)
class Reading:
    """How files are taken.

    kind: what they are called, "picture" or "call".  read: what a file holds.
    explain: by an explainer, what was read and a question, the attribution and the call (args, kwargs) that it is of.
    """

    kind: str
    read: Callable[[Path], Any]
    explain: Callable[[AnyExplainer, Any, dict[str, Any]], tuple[Attribution, tuple[tuple, dict]]]


@dataclass(frozen=True)
class Asked:
    """What was asked, as it was typed; at: the modules whose maps a page shows."""

    targets: Sequence[str] = ()
    contrast: str = "default"
    position: str | None = None
    rules: str = DEFAULT
    strict: bool = False
    shifts: int = 1
    at: Sequence[str] = ()
    cache: Path | None = None

    def question(self, loaded: LoadedModel) -> dict[str, Any]:
        """The question as an explainer takes it.

        Raises FxlrpError for a class that the model does not have.
        """
        classes = [find_class(name, loaded.labels) for name in self.targets]
        question: dict[str, Any] = {"target": classes if len(classes) > 1 else classes[0] if classes else None}
        question["contrast"] = parse_contrast(self.contrast, loaded)
        question |= {"position": parse_position(self.position)} if self.position is not None else {}
        return question | ({"at": tuple(self.at)} if self.at else {})


@dataclass(frozen=True)
class Written:
    """What is written and printed: a page, JSON in the place of tables, and how figures look."""

    html: Path | None = None
    as_json: bool = False
    colours: str = "red-blue"
    opacity: float = 0.85
    dpi: float = 100

    def how(self, file: Path) -> dict[str, Any]:
        """What a file is written with: how it looks, if it is a figure."""
        is_figure = file.suffix.lower() in FIGURES
        return {"colours": self.colours, "opacity": self.opacity, "dpi": self.dpi} if is_figure else {}


def explainer_and_question(loaded: LoadedModel, asked: Asked) -> tuple[AnyExplainer, dict[str, Any]]:
    """The explainer of a model, and the question as it takes it.

    Raises FxlrpError for a class that the model does not have, and what an exported explainer can't be asked.
    """
    if not isinstance(loaded.module, ExportedExplainer):
        how: dict[str, Any] = {"strict": asked.strict, "shifts": asked.shifts, "cache": asked.cache}
        explainer = convert(loaded.module, rules=asked.rules, **how)
        return explainer, asked.question(loaded)
    about = loaded.module.about
    if asked.rules not in (DEFAULT, about.get("rulebook")) or asked.strict or asked.shifts > 1:
        raise FxlrpError(
            f"{loaded.name} was exported by {about.get('rulebook')}, which can't be changed: leave out --rules, "
            "--strict and --shifts, or export another."
        )
    return loaded.module, asked.question(loaded)


def answer_files(
    loaded: LoadedModel, reading: Reading, inputs: Sequence[Path], files: Sequence[Path], asked: Asked, written: Written
) -> None:
    """Explain what each of the files `inputs` holds, and write the explanation to the file beside it in `files`.

    Raises FxlrpError for a file that can't be read, of many after the others are explained, and as `fxlrp.convert` and
    its explainer do.
    """
    explainer, question = explainer_and_question(loaded, asked)
    pages: list[list[Attribution]] = []
    rows: list[dict[str, Any]] = []
    several = len(inputs) > 1
    shown = tracked(inputs, "explaining") if several else inputs
    for given, file in zip(shown, files, strict=True):
        try:
            read = reading.read(given)
        except FxlrpError as error:
            if not several:
                raise
            rows.append({reading.kind: str(given), "error": str(error)})
            continue
        a, call = reading.explain(explainer, read, question)
        wrote = str(save(a, file, **written.how(file)))
        rows += [{reading.kind: str(given), "wrote": wrote, **sample} for sample in summary(a)["samples"]]
        if not several and not written.as_json:
            print_answer(a, given)
            out.print(f"  wrote [bold]{escape(wrote)}[/]{_of_the_first(a, file)}", soft_wrap=True)
        if written.html is not None:
            pages.append(every_side(explainer, a, call, asked.at) if isinstance(explainer, Explainer) else [a])
    if written.html is not None:
        write_pages(written.html, pages, SHOWN, loaded.name)
    page = None if written.html is None else str(written.html)
    if written.as_json:
        print_json({"fxlrp": __version__, "rules": asked.rules, f"{reading.kind}s": rows, "page": page})
    else:
        if several:
            print_table(reading.kind, rows)
        if page is not None:
            out.print(f"  wrote [bold]{escape(page)}[/]", soft_wrap=True)
        if isinstance(explainer, Explainer) and any("wrote" in row for row in rows):
            print_counts(explainer.report())
    if failed := [row["error"] for row in rows if "error" in row]:
        raise FxlrpError(f"{len(failed)} of {len(inputs)} {reading.kind}s were left out: {failed[0]}")


def _of_the_first(a: Attribution, file: Path) -> str:
    """What is missing in a figure of several samples, in words."""
    count = samples_of(a)
    return f", of the first of {count}" if count > 1 and file.suffix.lower() in FIGURES else ""


def print_answer(a: Attribution, given: Path) -> None:
    """Print what was explained of a file, against what, and the likeliest classes; of several samples a row each."""
    out.print(f"[bold]{escape(str(given))}[/]", soft_wrap=True)
    if samples_of(a) > 1:
        print_samples(a)
        return
    explained = classes_of(a, 0)
    if best := likeliest(a):
        table = Table(box=None)
        for column in ("class", "name", "probability"):
            table.add_column(column, justify="left" if column == "name" else "right")
        for k, name, chance in best:
            table.add_row(str(k), escape(name), f"{chance:.1%}", style="bold" if k in explained else "")
        out.print(table)
    for k in range(maps_of(a)):
        sentence = f"{headline(a, 0, k)}; {against(a) or 'no contrast'}"
        out.print(f"  explained [bold]{escape(sentence)}[/]", soft_wrap=True)
    parts = parts_of(a)
    for part in parts:
        if part.kind != "picture":
            where = "counted most" if len(parts) == 1 else part.title
            out.print(f"  {escape(where)}: {escape(strongest(part, 0))}", soft_wrap=True)


def print_samples(a: Attribution) -> None:
    """Print a row for each sample of a call, as far as they fit a screen: what was explained, and what counted most."""
    table = Table(box=None)
    for column in ("sample", "explained", "counted most"):
        table.add_column(column, overflow="fold")
    count = samples_of(a)
    for i in range(min(count, SHOWN)):
        most = "; ".join(strongest(part, 0) for part in parts_of(a, i))
        table.add_row(str(i), escape(headline(a, i)), escape(most))
    out.print(table)
    if count > SHOWN:
        out.print(f"  and {count - SHOWN} more; --json and -o FILE.csv have all", soft_wrap=True)


def strongest(part: Part, k: int, most: int = 3) -> str:
    """The places of an input with the most relevance for the k-th class asked about, and how much: `age (+0.31)`."""
    r = part.relevance[k]
    order = np.argsort(-np.abs(r), axis=None, kind="stable")[:most]
    names = []
    for place in (np.unravel_index(int(o), r.shape) for o in order):
        at = part.labels[place[0]] if part.labels else f"[{', '.join(map(str, place))}]"
        names.append(f"{at} ({r[place]:+.3g})")
    return ", ".join(names)


def print_table(kind: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print a row for each of many samples, of more than fit a screen some that failed and the first others: what was
    explained, what else was likely, and where the map is."""
    table = Table(box=None)
    for column in (kind, "explained", "likeliest", "wrote"):
        table.add_column(column, overflow="fold")  # a path that is cut is no path
    (where, given), (place, wrote) = (_beneath([row.get(key, "") for row in rows]) for key in (kind, "wrote"))
    failed, others = ([i for i, row in enumerate(rows) if ("error" in row) is wrong] for wrong in (True, False))
    first = (failed[: SHOWN // 2] + others)[:SHOWN] if len(rows) > SHOWN else range(len(rows))
    for i in sorted(first):
        row = rows[i]
        if "error" in row:
            table.add_row(escape(given[i]), "[red]can't be read[/]", "", "")
            continue
        best = row["classes"][0] if "classes" in row else None
        explained = row["explained"][0]["target"]
        likeliest = f"{best['name']}, {100 * best['probability']:.1f} %" if best else ""
        table.add_row(*map(escape, (given[i], explained, "" if explained == likeliest else likeliest, wrote[i])))
    out.print(table)
    if len(first) < len(rows):
        out.print(f"and {len(rows) - len(first)} more; --json prints all", soft_wrap=True)
    out.print(f"read from [bold]{escape(where)}[/], written to [bold]{escape(place)}[/]", soft_wrap=True)
    against = next((row["against"] for row in rows if "against" in row), "")
    sides = "red spoke for the class, blue against it"
    out.print(f"explained {against or 'without a contrast'}; {sides}", soft_wrap=True)


def _beneath(files: Sequence[str]) -> tuple[str, list[str]]:
    """The folder that files are in, and what each is called there."""
    folder = commonpath([str(Path(file).absolute().parent) for file in files if file] or ["/"])
    shown = relpath(folder)
    return folder if shown.startswith("..") else shown, [file and relpath(file, folder) for file in files]
