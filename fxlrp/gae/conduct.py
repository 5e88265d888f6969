"""Conduct an evaluation piece by piece, so that a run goes on later and Ray's actors share its work."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import nn

from fxlrp.errors import FxlrpError, with_kind
from fxlrp.gae.methods import identify
from fxlrp.gae.report import Report
from fxlrp.gae.store import Kept, Store
from fxlrp.ray_pool import aligned, check_ray, done_by_ray

Progress = Callable[[int, int], None]
Rows = list[dict[str, Any]]
AnyReport = TypeVar("AnyReport", bound=Report)
Measure = Callable[[Any, Any, str, Any], Rows]
Pieces = Iterator[tuple[str, dict[str, Any]]]


class Ray(NamedTuple):
    """Who does the work: so many of Ray's actors, 0 for this process alone; the address of a cluster, or `auto`."""

    workers: int = 0
    address: str | None = None

    def __bool__(self) -> bool:
        return self.workers != 0 or self.address is not None


class Work(Protocol):
    """What an evaluation does, in chunks; it goes to Ray's actors by pickle.

    device: cpu or cuda.
    """

    chunks: int
    device: torch.device

    def pieces(self, chunk: int, methods: Sequence[str], kept: Collection[str]) -> Pieces:
        """Yield the results of each of these methods for a chunk, with `of`, the digest of what they depend on.

        kept: the digests of results that are kept.  Raises FxlrpError if they are of something else, and where memory
        runs out.
        """
        ...


def finish(
    work: Work,
    named: Mapping[str, Any],
    manifest: dict[str, Any],
    out: str | Path | None,
    ray: Ray,
    progress: Progress | None,
) -> Kept:
    """Return the results of each chunk and method, after doing what `out` lacks of them, here or by Ray's actors.

    Raises FxlrpError as the work, the store and Ray do.
    """
    identities = {} if out is None else {name: identify(method) for name, method in named.items()}
    store = Store(None if out is None else Path(out), manifest, identities.get)
    try:
        _fill(store, work, list(named), ray, progress)
    finally:
        store.close()
    return store.kept


def _fill(store: Store, work: Work, names: Sequence[str], ray: Ray, progress: Progress | None) -> None:
    """Do what a store lacks of these methods."""
    tell = progress or (lambda done, total: None)
    missing = {k: [name for name in names if (k, name) not in store] for k in range(work.chunks)}
    kept = {k: {store.kept[k, n]["of"] for n in names if (k, n) in store} for k in missing}
    total = work.chunks * len(names)
    done = total - sum(map(len, missing.values()))
    tell(done, total)
    elsewhere = [k for k, methods in missing.items() if methods and ray]
    here = ((k, work.pieces(k, missing[k], kept[k])) for k, methods in missing.items() if not (methods and ray))
    for chunk, pieces in chain(here, _by_ray(work, missing, kept, elsewhere, ray)):
        for name, results in pieces:
            store.add(chunk, name, **results)
            done += 1
            tell(done, total)


def _by_ray(
    work: Work, missing: dict[int, list[str]], kept: dict[int, set[str]], chunks: Sequence[int], ray: Ray
) -> Iterator[tuple[int, list[tuple[str, dict[str, Any]]]]]:
    """Yield these chunks and their pieces as Ray's actors finish them."""
    if chunks:
        make = partial(_worker, work, {k: missing[k] for k in chunks}, {k: kept[k] for k in chunks})
        threads, device = torch.get_num_threads(), work.device.type
        yield from done_by_ray(make, chunks, max(1, ray.workers), ray.address, threads, device)


def _worker(work: Work, missing: dict[int, list[str]], kept: dict[int, set[str]]) -> Callable[[int], Any]:
    return lambda chunk: (chunk, list(work.pieces(chunk, missing[chunk], kept[chunk])))


class Chunks(Protocol):
    """What an evaluation is made of, shared out into chunks of samples.

    chunks: how many there are.  what: what a sample holds, in words.  device: of the model.
    """

    model: nn.Module
    chunks: int
    what: str
    device: torch.device

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


class Measuring:
    """Every method on every chunk of a plan; a method that raised is not asked again."""

    def __init__(self, plan: Chunks, named: Mapping[str, Any], measure: Measure, kept: bool) -> None:
        self.plan, self.named, self.measure, self.kept = plan, named, measure, kept
        self.chunks, self.device = plan.chunks, plan.device
        self.failed: dict[str, str] = {}

    def pieces(self, chunk: int, methods: Sequence[str], kept: Collection[str]) -> Pieces:
        """Yield the rows or the error of each method; samples are told apart only if results are kept."""
        with aligned(self.plan.model):
            yield from self._pieces(chunk, methods, kept)

    def _pieces(self, chunk: int, methods: Sequence[str], kept: Collection[str]) -> Pieces:
        content = self.plan.content(chunk) if self.kept else None
        if any(of != content for of in kept):
            raise FxlrpError(
                f"The folder holds results of other {self.plan.what} under the same numbers (among samples "
                f"{', '.join(map(str, self.plan.rows(chunk)[:8]))}, …); give another folder, or delete it."
            )
        trial = None
        for name in methods:
            if name not in self.failed:
                trial = trial or self.plan.trial(chunk)
                try:
                    rows = self.measure(self.plan, trial, name, self.named[name])
                except torch.OutOfMemoryError as error:
                    raise FxlrpError(f"There is no memory left for {name}; give a smaller batch_size.") from error
                except Exception as error:  # whatever a method raises is its own result
                    self.failed[name] = in_a_line(error)
                else:
                    yield name, {"of": content, "rows": rows}
            if name in self.failed:
                yield name, {"of": content, "error": self.failed[name]}


def conduct(
    plan: Chunks,
    named: Mapping[str, Any],
    measure: Measure,
    kind: type[AnyReport],
    *,
    notes: Sequence[str] = (),
    out: str | Path | None = None,
    ray: Ray = Ray(),  # noqa: B008
    progress: Progress | None = None,
) -> AnyReport:
    """Return the report of a plan for these methods, after computing what is not kept in `out` yet.

    measure(plan, trial, name, method) → a row for each sample of a trial, with its number and every measure.

    Raises FxlrpError for a folder that can't be written or holds another run's results, where memory runs out, and
    where every method raises; of one method it is kept as that method's result.
    """
    check(out, ray)
    manifest = plan.manifest()
    kept = finish(Measuring(plan, named, measure, out is not None), named, manifest, out, ray, progress)
    report = kind(*_gather(kept, plan, list(named)), manifest, list(notes))
    if not report.methods:
        raise FxlrpError("No method could be evaluated: " + "; ".join(f"{m}: {e}" for m, e in report.errors.items()))
    return report


def check(out: str | Path | None, ray: Ray) -> None:
    """Raise FxlrpError if results can't be kept in a folder or shared out by Ray here."""
    if ray:
        check_ray(ray.workers)
    if out is not None and importlib.util.find_spec("pyarrow") is None:
        raise FxlrpError("results.parquet needs pyarrow: pip install 'fxlrp[eval]'.")


def in_a_line(error: Exception) -> str:
    """Return the first line of what a method raised, with its kind unless it is our own."""
    return (with_kind(error).strip() or type(error).__name__).splitlines()[0]


def _gather(kept: Kept, plan: Chunks, methods: Sequence[str]) -> tuple[Rows, dict[str, str]]:
    """Put the pieces of all chunks together; a method with an error in any of them has no rows."""
    rows, errors = [], {}
    for method in methods:
        pieces = [kept[k, method] for k in range(plan.chunks)]
        if error := next((p["error"] for p in pieces if "error" in p), None):
            errors[method] = error
        else:
            rows += [{"method": method, **row} for p in pieces for row in p["rows"]]
    order = {m: i for i, m in enumerate(methods)}
    rows.sort(key=lambda row: (order[row["method"]], row["sample"]))
    return rows, errors
