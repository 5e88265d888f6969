"""Report the results of an evaluation, with intervals, as a table and as files."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from fxlrp.errors import FxlrpError
from fxlrp.gae.masking import MASKINGS
from fxlrp.gae.measures import spearman
from fxlrp.gae.store import usable, write

MEASURES = {  # with their headings in a table
    "gae": "GAE",
    "lc": "LC",
    "contrastiveness": "contrast",
    "robustness": "robust",
    "faithfulness": "faithful",
    "abpc": "ABPC",
    "morf_auc": "MoRF",
    "lerf_auc": "LeRF",
    "srg": "SRG",
    "abpc_mean": "ABPC mean",
    "abpc_blur": "ABPC blur",
    "abpc_noise": "ABPC noise",
    "abpc_fill": "ABPC fill",
    "srg_mean": "SRG mean",
    "srg_blur": "SRG blur",
    "srg_noise": "SRG noise",
    "srg_fill": "SRG fill",
    "pointing": "pointing",
    "relevance_mass": "mass",
    "rank_accuracy": "rank",
    "sparseness": "sparse",
    "max_sensitivity": "sensitive",
    "randomization": "randomized",
}
BLOCKS = (
    ("gae", "lc", "contrastiveness", "robustness", "faithfulness"),
    ("abpc", "morf_auc", "lerf_auc", "pointing", "relevance_mass", "rank_accuracy"),
    ("sparseness", "max_sensitivity", "randomization"),
    ("srg", "srg_mean", "srg_blur", "srg_noise", "srg_fill"),
    ("abpc", "abpc_mean", "abpc_blur", "abpc_noise", "abpc_fill"),
)
RIVALS = {m: {way: m if way == "zero" else f"{m}_{way}" for way in MASKINGS} for m in ("abpc", "srg")}
LOW = ("sufficiency",)
"""The measures of rivals that are good where they are low."""
Examples = Callable[[str, Sequence[int]], tuple[Tensor, Tensor]]
RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """A mean over n samples and its 95 % bootstrap interval, low to high, of 2000 resamplings of the samples."""

    mean: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class Report:
    """The results of an evaluation.

    rows: a dict for each method and sample, in this order, with every measure.  errors: the methods that could not be
    evaluated, and why.  settings: how the evaluation was made.  notes: what was left out.
    """

    rows: list[dict[str, Any]] = field(repr=False)
    errors: dict[str, str]
    settings: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    headings: ClassVar[Mapping[str, str]] = MEASURES
    rivals: ClassVar[Mapping[str, Mapping[str, str]]] = RIVALS
    blocks: ClassVar[Sequence[Sequence[str]]] = BLOCKS

    @property
    def first(self) -> str:
        """Return the measure that methods are ranked by."""
        return self.measures[0]

    @property
    def methods(self) -> list[str]:
        """Return the methods that were evaluated."""
        return list(dict.fromkeys(row["method"] for row in self.rows))

    @property
    def measures(self) -> list[str]:
        """Return the measures there are, the one that methods are ranked by first."""
        return [m for m in self.headings if any(row.get(m) is not None for row in self.rows)]

    def values(self, measure: str) -> np.ndarray:
        """Return a measure as an array [methods, samples], samples by index, NaN where a sample has none.

        Raises FxlrpError for a measure that nobody has.
        """
        if measure not in self.measures:
            raise FxlrpError(f"There is no measure {measure!r} in the report; there are {', '.join(self.measures)}.")
        by = {m: [row.get(measure) for row in self.rows if row["method"] == m] for m in self.methods}
        return np.array([[np.nan if v is None else v for v in by[m]] for m in self.methods], dtype=np.float64)

    def means(self, measure: str) -> dict[str, Estimate]:
        """Return the mean of a measure for each method.  Raises FxlrpError as `values` does."""
        values = self.values(measure)
        return dict(zip(self.methods, estimates(values, self.settings["seed"]), strict=True))

    def differences(self, measure: str | None = None) -> dict[tuple[str, str], Estimate]:
        """Return the mean difference a − b of a measure, without one of the first, on the samples of any two methods.

        Raises FxlrpError as `values` does.
        """
        values, names = self.values(measure or self.first), self.methods
        pairs = [(i, j) for i in range(len(names)) for j in range(i + 1, len(names))]
        if not pairs:
            return {}
        of_pairs = estimates(np.stack([values[i] - values[j] for i, j in pairs]), self.settings["seed"])
        return {(names[i], names[j]): e for (i, j), e in zip(pairs, of_pairs, strict=True)}

    def curve(self, method: str, order: str) -> np.ndarray:
        """Return the mean masking curve of a method [steps + 1], `order` "morf" or "lerf": the target's probability.

        Other ways of masking: "morf_blur" and so on; of the logit: "morf_logit_blur".
        """
        return np.array([row[order] for row in self.rows if row["method"] == method]).mean(0)

    def _rivals(self, measure: str) -> dict[str, list[float]]:
        """Return the means of all methods by each way of measuring the same, more of which is better."""
        names = {way: m for way, m in self.rivals.get(measure, {}).items() if m in self.measures}
        return {way: [-e.mean if m in LOW else e.mean for e in self.means(m).values()] for way, m in names.items()}

    def agreement(self, measure: str | None = None) -> dict[tuple[str, str], float]:
        """Return how alike methods are ranked by two ways of masking, for each two of these: Spearman's ρ of the means
        of "abpc", the first, or "srg"; there is none between ways by which all methods are equal."""
        means = self._rivals(measure or next(iter(self.rivals)))
        pairs = {(a, b): spearman(*(torch.tensor(means[w]) for w in (a, b))) for a, b in combinations(means, 2)}
        return {pair: rho for pair, rho in pairs.items() if rho is not None}

    def agreements(self) -> dict[str, str]:
        """Return in words how alike methods are ranked, for the heading of each measure taken in several ways."""
        found = {self.headings.get(m, m): self.agreement(m) for m in self.rivals}
        return {
            heading: ", ".join(f"{a}–{b} {rho:.2f}" for (a, b), rho in alike.items())
            for heading, alike in found.items()
            if alike
        }

    def places(self) -> dict[str, dict[str, int]]:
        """Return the place of each method by each way of each measure, 1 the best; methods that are equal share one."""
        return {
            f"{self.headings.get(m, m)} {way}": {
                name: 1 + sum(other > value for other in means) for name, value in zip(self.methods, means, strict=True)
            }
            for m in self.rivals
            for way, means in self._rivals(m).items()
        }

    def extremes(self, method: str, count: int = 5) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Return a method's rows of highest GAE, the best first, and of lowest GAE, the worst first.

        Those of equal GAE stand by their local consistency before it is cut off at 0.
        """
        mine = [r for r in self.rows if r["method"] == method]
        ranked = sorted(mine, key=lambda r: (-r["gae"], -r["robustness"] - r["faithfulness"], r["sample"]))
        return ranked[:count], ranked[::-1][:count]

    def table(self) -> Any:
        """Return the means as rich tables of 80 columns, ranked by the first; ± is half an interval's width."""
        from rich.console import Group
        from rich.table import Table

        means = {measure: self.means(measure) for measure in self.measures}
        ranked = sorted(self.methods, key=lambda m: -means[self.first][m].mean)
        tables: list[Any] = []
        for block in self.blocks:
            shown = [m for m in block if m in means]
            table = Table("method", box=None)
            for measure in shown:
                table.add_column(self.headings[measure], justify="right", no_wrap=True)
            for method in ranked:
                cells = [f"{means[measure][method].mean:.3f}" for measure in shown]
                if shown[:1] == [self.first]:
                    e = means[self.first][method]
                    cells[0] += f" ±{(e.high - e.low) / 2:.3f}"
                table.add_row(method, *cells)
            tables += [table, ""] if shown not in ([], ["abpc"]) else []
        tables += [f"{heading} by two ways ranks methods alike, ρ: {a}" for heading, a in self.agreements().items()]
        return Group(*tables)

    def markdown(self, measures: Sequence[str] | None = None) -> str:
        """Return the means of some measures, or of all, as a table in Markdown, the highest of the first one first."""
        columns = [m for m in measures or self.measures if m in self.measures]
        means = {measure: self.means(measure) for measure in columns}
        lines = [
            "| method | " + " | ".join(self.headings[m] for m in columns) + " |",
            "|---" * (len(columns) + 1) + "|",
        ]
        for method in sorted(self.methods, key=lambda m: -means[columns[0]][m].mean):
            cells = [f"{(e := means[m][method]).mean:.3f} ±{(e.high - e.low) / 2:.3f}" for m in columns]
            lines.append(f"| `{method}` | " + " | ".join(cells) + " |")
        return "\n".join(lines)

    def places_markdown(self) -> str:
        """Return the place of each method by each way of masking or removal as a table in Markdown."""
        places = self.places()
        first = next(iter(places.values()))
        lines = ["| place | " + " | ".join(places) + " |", "|---" * (len(places) + 1) + "|"]
        for method in sorted(self.methods, key=lambda m: first[m]):
            lines.append(f"| `{method}` | " + " | ".join(str(by[method]) for by in places.values()) + " |")
        return "\n".join(lines)

    def summary(self) -> dict[str, Any]:
        """Return everything but the rows, as JSON takes it."""

        def plain(e: Estimate) -> dict[str, Any]:
            return {"mean": e.mean, "low": e.low, "high": e.high, "n": e.n}

        means = {measure: self.means(measure) for measure in self.measures}
        return {
            "settings": self.settings,
            "errors": self.errors,
            "notes": self.notes,
            "means": {m: {measure: plain(means[measure][m]) for measure in means} for m in self.methods},
            "agreement": {
                measure: [{"a": a, "b": b, "rho": rho} for (a, b), rho in self.agreement(measure).items()]
                for measure in self.rivals
            },
            "places": self.places(),
            "differences": {
                measure: [{"a": a, "b": b, **plain(e)} for (a, b), e in self.differences(measure).items()]
                for measure in self.measures
            },
        }

    def save(self, folder: str | Path, *, examples: Examples | None = None) -> Path:
        """Write results.parquet (a row per sample and method), report.json and report.html, and return the folder.

        examples(method, samples) → x and relevance, for pictures of the best and worst five.

        Raises FxlrpError if the folder can't be written.
        """
        from fxlrp.gae.html import page

        return self.write(Path(folder), lambda: page(self, examples))

    def write(self, folder: Path, page: Callable[[], str]) -> Path:
        """Write the files, with a page, and return the folder.  Raises FxlrpError if it can't be written."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        with usable(folder):
            folder.mkdir(parents=True, exist_ok=True)
        columns = list(dict.fromkeys(key for row in self.rows for key in row))
        table = pa.table({c: [row.get(c) for row in self.rows] for c in columns})
        parquet = io.BytesIO()
        pq.write_table(table, parquet)
        write(folder / "results.parquet", parquet.getvalue())
        write(folder / "report.json", json.dumps(self.summary(), indent=1).encode())
        write(folder / "report.html", page().encode())
        return folder


def estimates(values: np.ndarray, seed: int) -> list[Estimate]:
    """Return means of rows [k, n] with bootstrap intervals, the same resamples for each row; NaN counts for nothing."""
    n = values.shape[1]
    rng = np.random.default_rng(seed)
    counted = ~np.isnan(values)
    filled = np.where(counted, values, 0.0)
    drawn, most = [], max(1, 10**6 // n)
    for start in range(0, RESAMPLES, most):
        count = min(most, RESAMPLES - start)
        draws = rng.integers(0, n, (count, n)) + n * np.arange(count)[:, None]
        weights = np.bincount(draws.ravel(), minlength=count * n).reshape(count, n).T
        drawn.append((filled @ weights) / np.maximum(counted @ weights, 1))
    low, high = np.percentile(np.concatenate(drawn, 1), [2.5, 97.5], axis=1)
    counts = counted.sum(1)
    means = filled.sum(1) / np.maximum(counts, 1)
    columns = (means.tolist(), low.tolist(), high.tolist(), counts.tolist())
    return [Estimate(*row) for row in zip(*columns, strict=True)]
