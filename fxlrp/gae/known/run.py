"""Ask every method about every case, piece by piece, so that a run can go on later and Ray can share its work out."""

from __future__ import annotations

import platform
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fxlrp.errors import FxlrpError
from fxlrp.explainer import Explainer, convert
from fxlrp.gae.conduct import Pieces, Progress, Ray, check, finish, in_a_line
from fxlrp.gae.known import agreement, built, grids, parts, suppressors
from fxlrp.gae.known.cases import Case, Known
from fxlrp.gae.known.report import KnownReport
from fxlrp.gae.methods import BASELINES, Method, explain_by, name_methods, run
from fxlrp.gae.plan import version_of
from fxlrp.gae.store import Kept
from fxlrp.identity import digest, sources
from fxlrp.rules.registry import find_rulebook, rulebooks

SUITES: dict[str, Callable[..., list[Case]]] = {
    "built": built.cases,
    "parts": parts.cases,
    "grids": grids.cases,
    "suppressors": suppressors.cases,
    "agreement": agreement.cases,
}
FINISH = {"parts": parts.at_best_threshold}
BATCH = 32


def known(
    methods: Mapping[str, Method] | Iterable[Method] | Method | None = None,
    *,
    suites: Sequence[str] | str | Mapping[str, Sequence[Case]] = tuple(SUITES),
    seed: int = 0,
    limit: int | None = None,
    out: str | Path | None = None,
    workers: int = 0,
    ray: str | None = None,
    progress: Progress | None = None,
) -> KnownReport:
    """Ask methods about networks and data whose right answer is known; see docs/evaluation.md.

    methods: as of `fxlrp.gae.evaluate`; without any, all rulebooks and all baselines, `ground-truth` and `random` among
        them.
    suites: which of `fxlrp.gae.SUITES`, or suites of your own: for each name its cases, `fxlrp.gae.Case(suite, name,
        build)`, where build() returns what `fxlrp.gae.right` makes of a network and the attribution that is right.
    seed: of the networks, the data and what is drawn by methods.
    limit: at most so many samples (grids: of four each) of each network that is trained.
    out: a folder; results are kept there as they come, a run that was killed goes on, and results.parquet, report.json
        and report.html are written at the end.
    workers, ray: as in `fxlrp.gae.evaluate`: Ray's actors share the networks out.
    progress(done, all): called after each piece of work, those of earlier runs counted.

    A method that raises on a network is left out of that network's table, and the report says why.

    Raises FxlrpError for an unknown suite or method, a folder that can't be written, and another run's folder.
    """
    named = name_methods(list(dict.fromkeys([*rulebooks(), *BASELINES])) if methods is None else methods)
    if not named:
        raise FxlrpError("There is no method to ask; give names, rulebooks or functions.")
    names = [suites] if isinstance(suites, str) else list(suites)
    own = suites if isinstance(suites, Mapping) else {}
    if unknown := [name for name in names if name not in SUITES and name not in own]:
        raise FxlrpError(f"There is no suite {unknown[0]!r}; there are {', '.join(SUITES)}.")
    by = Ray(workers, ray)
    check(out, by)
    networks = None if out is None else Path(out) / "networks"
    samples = {} if limit is None else {"samples": limit}
    of_name = {name: own[name] if name in own else SUITES[name](seed, networks, **samples) for name in names}
    cases = [case for name in names for case in of_name[name]]
    if empty := [name for name in names if not of_name[name]]:
        raise FxlrpError(f"The suite {empty[0]!r} has no cases.")
    if odd := [case for case in cases if case.suite not in names]:
        raise FxlrpError(f"The case {odd[0].name!r} says it is of {odd[0].suite!r}, not of one of {', '.join(names)}.")
    manifest = {
        "suites": names,
        "seed": seed,
        "limit": limit,
        "python": ".".join(platform.python_version_tuple()[:2]),
        "torch": torch.__version__,
        **{package: version_of(package) for package in ("captum", "zennit")},
        "fxlrp": sources(),
    }
    kept = finish(Asking(cases, named, seed), named, manifest, out, by, progress)
    report = _gather(kept, cases, list(named), manifest)
    if out is not None:
        report.save(out)
    return report


class Asking:
    """Every method about every case; what a method raises is its own result."""

    device = torch.device("cpu")

    def __init__(self, cases: Sequence[Case], named: Mapping[str, Method], seed: int) -> None:
        self.cases, self.named, self.seed, self.chunks = cases, named, seed, len(cases)

    def pieces(self, chunk: int, methods: Sequence[str], kept: Collection[str]) -> Pieces:
        """Yield the rows or the error of each method, and the facts of the network, which is built only if needed."""
        if not methods:
            return
        case = self.cases[chunk].build()
        if not isinstance(case, Known):
            made = type(case).__name__
            raise FxlrpError(f"build() of {self.cases[chunk].name!r} returned a {made}; see fxlrp.gae.right.")
        of = digest((case.model, vars(case.views)))
        if any(other != of for other in kept):
            raise FxlrpError(f"The folder holds results of another network {self.cases[chunk].name}; delete it.")
        explainer = convert(case.model)
        for name in methods:
            try:
                results: dict[str, Any] = {"rows": _rows(case, self.named[name], explainer, self.seed)}
            except torch.OutOfMemoryError as error:
                raise FxlrpError(f"There is no memory left for {name} on {self.cases[chunk].name}.") from error
            except Exception as error:
                results = {"error": in_a_line(error)}
            yield name, {"of": of, "facts": case.facts, **results}


def _rows(case: Known, method: Method, explainer: Explainer, seed: int) -> list[dict[str, Any]]:
    """What a method gets for a case, a row for each sample; rulebooks share the graph that was captured once."""
    if isinstance(method, str) and method not in BASELINES:
        method = explainer.by(find_rulebook(method))
    relevance: Tensor = run(explain_by(method, case.model, seed), case.views, BATCH)
    return case.score(relevance.expand_as(case.views.x) / (case.views.x.shape[1] // relevance.shape[1]))


def _gather(kept: Kept, cases: Sequence[Case], methods: Sequence[str], manifest: dict[str, Any]) -> KnownReport:
    """Put the pieces of all cases together, methods first, in the order in which both were given."""
    rows, errors, facts = [], [], []
    for method in methods:
        for number, case in enumerate(cases):
            piece = kept[number, method]
            who = {"method": method, "suite": case.suite, "case": case.name}
            finish = FINISH.get(case.suite, list)
            rows += [{**who, **row} for row in finish(piece.get("rows", ()))]
            errors += [{**who, "error": piece["error"]}] if "error" in piece else []
    for number, case in enumerate(cases):
        of_case = kept[number, methods[0]]["facts"]
        facts += [{"suite": case.suite, "case": case.name, **of_case}] if of_case else []
    return KnownReport(rows, errors, facts, manifest)
