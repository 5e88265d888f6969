"""One model, examined: is it captured, is its output kept, is relevance finite, whole and each sample's own?"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import fxlrp
from benchmarks import zoo
from benchmarks.zoo import Entry, NotTried, one_line

Record = dict[str, Any]
FORWARD, ROWS = 1e-4, 1e-3  # largest differences that pass, in float32
MIXES = 1e-3  # a larger difference between a sample's answer in a batch and alone is the model's own
ROWS_DOUBLE = 1e-6  # and in float64, which is asked where rows differ by more in float32


def blank(entry: Entry) -> Record:
    """The record of a model that nothing is known of."""
    record = {"zoo": entry.zoo, "name": entry.name, "family": entry.family, "note": ""}
    return record | {"tried": False, "captured": False, "ok": False, "error": ""}


def examine(entry: Entry, *, full_size: bool = False) -> Record:
    """Build, convert and explain a model; what goes wrong is part of the record."""
    record = blank(entry)
    try:
        with _timed(record, "seconds_build"):
            model, args, kwargs, record["note"] = zoo.build(entry, full_size=full_size)
        record |= {"tried": True, "parameters": sum(p.numel() for p in model.parameters())}
        _explain(record, model, args, kwargs)
        record["ok"] = not verdict(record)
    except NotTried as reason:
        record["error"] = str(reason)
    except (Exception, MemoryError) as error:
        exhausted = isinstance(error, MemoryError) or "can't allocate memory" in str(error)
        record["error"] = "out of memory" if exhausted else one_line(error)
    return record


def verdict(r: Record) -> str:
    """Why a model is not ok; empty if it is."""
    if r["error"] or not r["tried"]:
        return r["error"]
    single, double = r.get("rows_difference", 0.0), r.get("rows_difference_double")
    rows = f"rows differ by {single:.1e}" + ("" if double is None else f", in float64 by {double:.1e}")
    apart = single > ROWS and (double is None or double > ROWS_DOUBLE)
    wrong = {
        f"output differs by {r['forward_difference']:.1e}": not r["forward_difference"] <= FORWARD,
        "relevance is not finite": not r["finite"],
        "relevance is zero": not r["nonzero"],
        rows: apart,
    }
    return "; ".join(text for text, so in wrong.items() if so)


def _explain(record: Record, model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
    expected, alone = _output(model, args, kwargs), [_output(model, *_sample(i, args, kwargs)) for i in (0, 1)]
    why = "its forward mixes those of a batch" if _mixes(expected, alone) else ""
    if isinstance(expected, list) and not isinstance(expected[0], Tensor):
        why = "its answers are a list, of which a target names one"
    if why:
        args, kwargs = _sample(0, args, kwargs)
        expected = alone[0]
        record["note"] = "; ".join(filter(None, (record["note"], f"one sample: {why}")))
    with _timed(record, "seconds_capture"):
        explainer = fxlrp.convert(model, args or kwargs)
    report, captured = explainer.report(), getattr(getattr(explainer, "_latest", None), "capture", None)
    record |= {"captured": True, "dynamic": getattr(captured, "dynamic", None), "nodes": report.counts}
    record["way"] = str(getattr(report, "way", ""))
    record["generic"] = sorted({f"{n.op} at {n.source}" for n in report.nodes if n.kind == "generic"})
    target = _target(expected)
    with _timed(record, "seconds_explain"):
        together = _attribution(explainer, args, kwargs, target)
    found = _maps(together)
    record["forward_difference"] = _difference(_floats(together.output), _floats(expected))
    record["finite"] = all(bool(r.isfinite().all()) for r in found)
    rows = [[r[i] for r in found] for i in range(1 if why else 2)]
    record["nonzero"] = all(any(bool(r.any()) for r in row) for row in rows)
    record["mass"] = [round(sum(float(r.sum()) for r in row), 4) for row in rows]  # of 1 at the output
    if why or not record["finite"]:
        return
    record["rows_difference"] = _rows_difference(explainer, found, args, kwargs, target)
    if record["rows_difference"] > ROWS:  # a sample on the brink of a max or a ReLU, or a fault?
        model.double()
        args, kwargs = pytree.tree_map_only(
            Tensor, lambda t: t.double() if t.is_floating_point() else t, (args, kwargs)
        )
        explainer = fxlrp.convert(model)
        found = _maps(_attribution(explainer, args, kwargs, target))
        record["rows_difference_double"] = _rows_difference(explainer, found, args, kwargs, target)


def _output(model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Any:
    with torch.no_grad(), _seeded():
        return model(*args, **kwargs)


def _sample(i: int, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    return pytree.tree_map_only(Tensor, lambda t: t[i : i + 1] if t.ndim and len(t) == 2 else t, (args, kwargs))


def _mixes(together: Any, alone: list[Any]) -> bool:
    """Whether the model itself answers otherwise for one of its two samples alone."""
    both = [(i, a, b) for i in (0, 1) for a, b in zip(_floats(together), _floats(alone[i]), strict=False)]
    pairs = [(a[i : i + 1], b) for i, a, b in both if a.ndim and len(a) == 2 and len(b) == 1]
    return any(_difference([a], [b]) > MIXES for a, b in pairs)


def _attribution(explainer: Any, args: tuple, kwargs: dict[str, Any], target: Any) -> Any:
    with _seeded():
        return explainer(*args, target=target, contrast=None, **kwargs)  # a contrast of random classes cancels to noise


def _rows_difference(explainer: Any, together: list[Tensor], args: tuple, kwargs: dict, target: Any) -> float:
    """The largest difference between rows of a batch and the samples explained alone, over the row's largest |R|."""
    worst = 0.0
    for i in range(2):
        asked = target[i : i + 1] if isinstance(target, Tensor) else target
        alone = _maps(_attribution(explainer, *_sample(i, args, kwargs), asked))
        size = max(float(r[i].abs().max()) for r in together)
        apart = max(float((a[0] - r[i]).abs().max()) for a, r in zip(alone, together, strict=True))
        worst = max(worst, apart / size if size else float(apart > 0))
    return worst


def _target(output: Any) -> Tensor | Callable[[Any], Tensor]:
    """Each sample's top class; without classes the output largest for both, as a callable on the model's output.

    Of a list of answers, one for each sample, the mean of the first tensor: a single box may be clipped to the image.
    """
    leaves = pytree.tree_leaves_with_path(output)
    floats = [i for i, (_, t) in enumerate(leaves) if isinstance(t, Tensor) and t.is_floating_point()]
    place = next((i for i in floats if "logits" in pytree.keystr(leaves[i][0])), floats[0])
    if isinstance(output, list) and not isinstance(output[0], Tensor):
        return lambda out: pytree.tree_leaves(out)[place].mean()[None]
    logits = leaves[place][1].nan_to_num()
    if logits.ndim == 2:
        return logits.argmax(1)
    k = int(logits.reshape(len(logits), -1).amin(0).argmax())  # a positive one if there is any

    def score(out: Any) -> Tensor:
        found = pytree.tree_leaves(out)[place]
        return found.reshape(len(found), -1)[:, k]

    return score


def _maps(attribution: Any) -> list[Tensor]:
    found = attribution.relevance
    return [found] if isinstance(found, Tensor) else list(found)


def _floats(output: Any) -> list[Tensor]:
    return [t for t in pytree.tree_leaves(output) if isinstance(t, Tensor) and t.is_floating_point()]


def _difference(found: list[Tensor], expected: list[Tensor]) -> float:
    """max |a - b| / max |b|, the worst of all tensors; infinities that agree do not differ."""
    if [a.shape for a in found] != [b.shape for b in expected]:
        return float("inf")
    worst = 0.0
    for a, b in zip(found, expected, strict=True):
        apart = torch.where(a == b, 0, a - b).abs()
        if apart.any():
            worst = max(worst, float(apart.max() / b[b.isfinite()].abs().max()))
    return worst


@contextmanager
def _timed(record: Record, key: str) -> Iterator[None]:
    start = time.perf_counter()
    try:
        yield
    finally:
        record[key] = round(time.perf_counter() - start, 3)


@contextmanager
def _seeded() -> Iterator[None]:
    """Models that draw random numbers in eval mode draw the same ones each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
