"""Conduct an evaluation piece by piece, so that a run goes on later and processes share its work."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

from fxlrp.errors import FxlrpError
from fxlrp.gae.methods import identify
from fxlrp.gae.report import Report
from fxlrp.gae.store import Store

Progress = Callable[[int, int], None]
Rows = list[dict[str, Any]]
AnyReport = TypeVar("AnyReport", bound=Report)


class Chunks(Protocol):
    """What an evaluation is made of, shared out into chunks of samples.

    chunks: how many there are.  what: what a sample holds, in words.
    """

    chunks: int
    what: str

    def manifest(self) -> dict[str, Any]:
        """Return all that results depend on, but for methods and samples."""
        ...

    def rows(self, chunk: int) -> list[int]:
        """Return the samples that a chunk's scores depend on."""
        ...

    def content(self, chunk: int) -> str:
        """Return a digest of these samples."""
        ...

    def trial(self, chunk: int) -> Any:
        """Return what a chunk's samples go through before any method."""
        ...


def conduct(
    plan: Chunks,
    named: Mapping[str, Any],
    measure: Callable[[Any, str, Any], Rows],
    kind: type[AnyReport],
    *,
    notes: Sequence[str] = (),
    out: str | Path | None = None,
    progress: Progress | None = None,
) -> AnyReport:
    """Return the report of a plan for these methods, after computing what is not kept in `out` yet.

    measure(trial, name, method) → a row for each sample of a trial, with its number and every measure.

    Raises FxlrpError for several processes without a folder, one that can't be written or holds another run's results,
    where memory runs out, and where every method raises; of one method it is kept as that method's result.
    """
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    check_folder(out, world)
    manifest = plan.manifest()
    identities = {} if out is None else {name: identify(method) for name, method in named.items()}
    store = Store(None if out is None else Path(out), manifest, identities.get, rank)
    try:
        _fill(store, plan, named, measure, range(rank, plan.chunks, world), progress)
        store.wait({(k, name) for k in range(plan.chunks) for name in named})
    finally:
        store.close()
    report = kind(*_gather(store, plan, list(named)), manifest, list(notes))
    if not report.methods:
        raise FxlrpError("No method could be evaluated: " + "; ".join(f"{m}: {e}" for m, e in report.errors.items()))
    return report


def check_folder(out: str | Path | None, processes: int) -> None:
    """Raise FxlrpError if there is no folder for several processes to meet in, or results can't be written to it."""
    if processes > 1 and out is None:
        raise FxlrpError("Several processes meet in a folder: give evaluate(…, out=FOLDER), or --out.")
    if out is not None and importlib.util.find_spec("pyarrow") is None:
        raise FxlrpError("results.parquet needs pyarrow: pip install 'fxlrp[eval]'.")


def _fill(
    store: Store,
    plan: Chunks,
    named: Mapping[str, Any],
    measure: Callable[[Any, str, Any], Rows],
    chunks: Sequence[int],
    progress: Progress | None,
) -> None:
    """Compute the pieces of these chunks that the store lacks.

    Raises FxlrpError for a store of other samples, and where memory runs out; other errors of a method are kept.
    """
    failed: dict[str, str] = {}
    done, total = 0, len(chunks) * len(named)
    for chunk in chunks:
        missing = [name for name in named if (chunk, name) not in store]
        content = None if store.folder is None else plan.content(chunk)
        if any(store.kept[chunk, name]["of"] != content for name in named if name not in missing):
            raise FxlrpError(
                f"{store.folder} holds results of other {plan.what} under the same numbers (among samples "
                f"{', '.join(map(str, plan.rows(chunk)[:8]))}, …); give another folder, or delete it."
            )
        trial = None
        done += len(named) - len(missing)
        for name in missing:
            if name not in failed:
                trial = trial or plan.trial(chunk)
                try:
                    rows = measure(trial, name, named[name])
                except torch.OutOfMemoryError as error:
                    raise FxlrpError(f"There is no memory left for {name}; give a smaller batch_size.") from error
                except Exception as error:  # whatever a method raises is its own result
                    failed[name] = in_a_line(error)
            if name in failed:
                store.add(chunk, name, of=content, error=failed[name])
            else:
                store.add(chunk, name, of=content, rows=rows)
            done += 1
            if progress:
                progress(done, total)


def in_a_line(error: Exception) -> str:
    """Return the first line of what a method raised, with its kind unless it is our own."""
    message = str(error) if isinstance(error, FxlrpError) else f"{type(error).__name__}: {error}"
    return (message.strip() or type(error).__name__).splitlines()[0]


def _gather(store: Store, plan: Chunks, methods: Sequence[str]) -> tuple[Rows, dict[str, str]]:
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
    return rows, errors
