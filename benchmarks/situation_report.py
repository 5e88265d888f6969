"""The records of the situations, as docs/situations.md."""

from __future__ import annotations

import os
from collections import Counter
from datetime import date
from importlib.metadata import version
from pathlib import Path

from benchmarks.coverage_report import cell, percent, table
from benchmarks.situation_checks import BOOKS, EXACT, RESULTS, Record, verdict
from benchmarks.situation_models import CASES, KINDS

HERE = f"{Path(__file__).resolve().parents[1]}{os.sep}"
LONGEST = 600  # of a reason, which may be a whole error of torch's
INTRO = f"""# Situations

Small models as their users write them, called as their users call them (`make situations`; the models are in
`benchmarks/situation_models/`, what is asked of them in `benchmarks/situation_checks.py`). Weights are random. A case
is **right** if, by every rulebook asked,

- the output is the model's own, in type and numbers;
- relevance is finite, shaped like its input, and not zero, unless a warning says where it ended and why;
- each sample has the relevance that it has alone, and what samples share has the sum (to {EXACT:g} of the largest
  value, in float64);
- `epsilon` keeps the sum where there is no bias, and `gradient-input` is the input times autograd's own gradient;
- weights, buffers, attributes, hooks, arguments and the random state are as they were.

**Refused** is a case that ends in an error of ours, which says why and what to do. **Wrong** is one that fails a check,
**broken** one that ends in any other error, or not at all."""


def report(records: list[Record]) -> str:
    """The whole page."""
    records = [r for name in CASES for r in records if r["case"] == name]
    books = list(dict.fromkeys(book for r in records for book in r["books"] if book != "all")) or list(BOOKS)
    made = (
        f"{date.today()}; torch {version('torch')}; a machine with {os.cpu_count()} cores, one thread for each model."
    )
    asked = "Rulebooks: " + ", ".join(f"`{book}`" for book in books) + "."
    parts = [INTRO, f"{made} {asked}", _totals(records), _by_book(records, books)]
    parts += [_kind(kind, [r for r in records if r["kind"] == kind]) for kind in KINDS]
    return "\n\n".join(filter(None, parts)) + "\n"


def _totals(records: list[Record]) -> str:
    rows = [
        [words, *_counts([verdict(r)[0] for r in records if r["kind"] == kind])]
        for kind, words in KINDS.items()
        if any(r["kind"] == kind for r in records)
    ]
    rows.append(["**all**", *_counts([verdict(r)[0] for r in records])])
    return table(["kind", "cases", *RESULTS, "right"], rows)


def _by_book(records: list[Record], books: list[str]) -> str:
    rows = [
        [f"`{book}`", *_counts([r["books"][book]["result"] for r in records if book in r["books"]])] for book in books
    ]
    return table(["rulebook", "cases", *RESULTS, "right"], rows)


def _counts(results: list[str]) -> list[str | int]:
    found = Counter(results)
    return [len(results), *(found[result] for result in RESULTS), percent(found["right"], len(results))]


def _kind(kind: str, records: list[Record]) -> str:
    rows = []
    for r in records:
        result, why = verdict(r)
        said = " ".join(why.split()).replace(HERE, "")
        said = said[:LONGEST] + "…" * (len(said) > LONGEST)
        shown = result if result == "right" else f"**{result}**"
        rows.append([f"`{r['case']}`", cell(r["what"]), shown + (f": {cell(said)}" if said else "")])
    return f"## {KINDS[kind]}\n\n{table(['case', 'what it is', 'result'], rows)}" if rows else ""
