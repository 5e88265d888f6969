"""Report what methods know of networks that are known: tables, and files as of an evaluation."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fxlrp.errors import FxlrpError
from fxlrp.gae.known.measures import MEASURES, TITLES
from fxlrp.gae.report import Estimate, estimates
from fxlrp.gae.store import usable, write


@dataclass(frozen=True)
class KnownReport:
    """What methods answered about cases that are known.

    rows: a dict for each method, case and sample, with every measure of its suite.  errors: which method could not
    answer about which case, and why.  facts: what is true of a case whatever explains it.  settings: how it was made.
    """

    rows: list[dict[str, Any]] = field(repr=False)
    errors: list[dict[str, str]] = field(repr=False)
    facts: list[dict[str, Any]]
    settings: dict[str, Any]

    @property
    def suites(self) -> list[str]:
        """The suites that were asked about."""
        return list(self.settings["suites"])

    def methods(self, suite: str) -> list[str]:
        """The methods that answered about a case of a suite."""
        return list(dict.fromkeys(row["method"] for row in self.rows if row["suite"] == suite))

    def measures(self, suite: str) -> dict[str, str]:
        """The measures of a suite and their headings; of one that is not fxlrp's, every number of its rows."""
        if suite in MEASURES:
            return MEASURES[suite]
        rows = [row for row in self.rows if row["suite"] == suite]
        keys = dict.fromkeys(key for row in rows for key, v in row.items() if isinstance(v, float | int))
        return {key: key for key in keys if key != "sample"}

    def cases(self, suite: str) -> list[str]:
        """The cases of a suite about which any method answered."""
        return list(dict.fromkeys(row["case"] for row in self.rows if row["suite"] == suite))

    def values(self, suite: str, measure: str, case: str | None = None) -> np.ndarray:
        """A measure as an array [methods, samples of all cases or of one], NaN where a method has none.

        Raises FxlrpError for a measure that the suite has not.
        """
        if measure not in self.measures(suite):
            there = ", ".join(self.measures(suite))
            raise FxlrpError(f"There is no measure {measure!r} of {suite!r}; there are {there or 'none'}.")
        mine = [r for r in self.rows if r["suite"] == suite and case in (None, r["case"])]
        columns = {key: i for i, key in enumerate(dict.fromkeys((r["case"], r["sample"]) for r in mine))}
        methods = {name: i for i, name in enumerate(self.methods(suite))}
        values = np.full((len(methods), len(columns)), np.nan)
        for r in mine:
            if r.get(measure) is not None:
                values[methods[r["method"]], columns[r["case"], r["sample"]]] = r[measure]
        return values

    def means(self, suite: str, measure: str, case: str | None = None) -> dict[str, Estimate]:
        """The mean of a measure for each method, with its interval.  Raises FxlrpError as `values`."""
        means = estimates(self.values(suite, measure, case), self.settings["seed"])
        return {name: e for name, e in zip(self.methods(suite), means, strict=True) if e.n}

    def passed(self) -> dict[str, dict[str, bool]]:
        """Of each method, whether it passes each built network that it could explain: all samples are right."""
        passed: dict[str, dict[str, bool]] = {m: {} for m in self.methods("built")}
        for row in self.rows:
            if row["suite"] == "built":
                before = passed[row["method"]].get(row["case"], True)
                passed[row["method"]][row["case"]] = before and row["passed"] == 1
        return passed

    def ranked(self, suite: str) -> list[str]:
        """The methods of a suite, the best by its measures in their order first; of built ones by how many pass."""
        if suite == "built":
            passed = self.passed()
            return sorted(passed, key=lambda m: -sum(passed[m].values()))
        means = [self.means(suite, measure) for measure in self.measures(suite)]
        return sorted(self.methods(suite), key=lambda m: [-by[m].mean if m in by else np.inf for by in means])

    def columns(self, suite: str) -> tuple[list[str], dict[str, list[str]]]:
        """A suite's table: its headings, and of each method its cells, the best method first."""
        if suite == "built":
            passed = self.passed()
            kinds = list(dict.fromkeys(case.split(", ")[0] for case in self.cases(suite)))
            cells = {}
            for method in self.ranked(suite):
                by = passed[method]
                each = [[ok for case, ok in by.items() if case.split(", ")[0] == kind] for kind in kinds]
                all_ = sum(by.values())
                cells[method] = [f"{all_}/{len(by)}", *(f"{sum(e)}" if e else "–" for e in each)]
            return ["all", *kinds], cells
        means = {m: self.means(suite, m) for m in self.measures(suite)}
        rows = {
            method: [
                f"{e.mean:.3f} ±{(e.high - e.low) / 2:.3f}" if (e := by.get(method)) else "–" for by in means.values()
            ]
            for method in self.ranked(suite)
        }
        return list(self.measures(suite).values()), rows

    def table(self) -> Any:
        """All suites as rich tables of 80 columns; the kinds of built networks have a letter each, named below."""
        from rich.console import Group
        from rich.table import Table

        parts: list[Any] = []
        for suite in self.suites:
            headings, cells = self.columns(suite)
            letters = [headings[0], *(chr(97 + i) for i in range(len(headings) - 1))]
            table = Table(
                "method", box=None, title=TITLES.get(suite, suite), title_justify="left", padding=(0, 1, 0, 0)
            )
            for heading in letters if suite == "built" else headings:
                table.add_column(heading, justify="right", no_wrap=True)
            for method, row in cells.items():
                table.add_row(method, *row)
            parts += [table]
            if suite == "built":
                parts += [", ".join(f"{x} {k}" for x, k in zip(letters[1:], headings[1:], strict=True))]
            parts += [*(_fact(f) for f in self.facts if f["suite"] == suite), ""]
        return Group(*parts)

    def markdown(self, suite: str) -> str:
        """A suite's table in Markdown."""
        headings, cells = self.columns(suite)
        lines = ["| method | " + " | ".join(headings) + " |", "|---" * (len(headings) + 1) + "|"]
        return "\n".join([*lines, *(f"| `{m}` | " + " | ".join(row) + " |" for m, row in cells.items())])

    def said(self, suite: str) -> list[str]:
        """In words, which methods could not answer about a suite and why, those of one reason together."""
        why: dict[str, dict[str, set[str]]] = {}
        for e in self.errors:
            if e["suite"] == suite:
                by = why.setdefault(e["error"].replace(e["method"], "it"), {})
                by.setdefault(e["method"], set()).add(e["case"])
        count, lines = max(len(self.cases(suite)), 1), []
        for said, methods in why.items():
            cases = set.union(*methods.values())
            part = f" ({len(cases)} of {count} networks)" if len(cases) < count else ""
            lines.append(f"{', '.join(methods)}: {said}{part}")
        return lines

    def summary(self) -> dict[str, Any]:
        """Everything but the rows, as JSON takes it."""
        means = {
            suite: {
                method: {
                    measure: {"mean": e.mean, "low": e.low, "high": e.high, "n": e.n}
                    for measure in self.measures(suite)
                    if (e := self.means(suite, measure).get(method))
                }
                for method in self.ranked(suite)
            }
            for suite in self.suites
        }
        passed = self.passed() if "built" in self.suites else {}
        return {
            "settings": self.settings,
            "facts": self.facts,
            "passed": passed,
            "means": means,
            "errors": self.errors,
        }

    def save(self, folder: str | Path) -> Path:
        """Write results.parquet, report.json and report.html, and return the folder.

        Raises FxlrpError if the folder can't be written.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        from fxlrp.gae.known.page import page

        folder = Path(folder)
        with usable(folder):
            folder.mkdir(parents=True, exist_ok=True)
        columns = list(dict.fromkeys(key for row in self.rows for key in row))
        parquet = io.BytesIO()
        pq.write_table(pa.table({c: [row.get(c) for row in self.rows] for c in columns}), parquet)
        write(folder / "results.parquet", parquet.getvalue())
        write(folder / "report.json", json.dumps(self.summary(), indent=1).encode())
        write(folder / "report.html", page(self).encode())
        return folder


def _fact(fact: dict[str, Any]) -> str:
    """What is true of a case, in a line."""
    return f"{fact['case']}: " + ", ".join(f"{k} {v:.3g}" for k, v in fact.items() if k not in ("suite", "case"))


def facts_of(report: KnownReport, suite: str) -> Sequence[str]:
    """What is true of the cases of a suite, a line each."""
    return [_fact(f) for f in report.facts if f["suite"] == suite]
