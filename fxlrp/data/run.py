"""Run: every shard that is not there yet is explained and written, in this process or by Ray's actors."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fxlrp.data.explain_rows import Worker, free
from fxlrp.data.prepare import Asked, Job, Loader, prepare
from fxlrp.data.settings import NAME, agree, locked, part, read_settings
from fxlrp.data.sources import Columns, changed_since, check_there
from fxlrp.data.tables import arrow
from fxlrp.data.writing import is_zarr, open_zarr, whole_shards, write_shard
from fxlrp.errors import FxlrpError
from fxlrp.explainer import Explainer
from fxlrp.inputs import LoadedModel, Preprocess, load_model
from fxlrp.inputs.models import loaded_from
from fxlrp.inputs.pictures import check_writable
from fxlrp.methods import DEFAULT
from fxlrp.ray_pool import aligned, check_ray, done_by_ray
from fxlrp.rules.registry import Rulebook, find_rulebook

if TYPE_CHECKING:
    from fxlrp.data.reading import Maps

Progress = Callable[[int, int, int], None]


def explain(
    model: str | Path | nn.Module | LoadedModel | Loader,
    data: Any,
    out: str | Path,
    *,
    target: Any = None,
    contrast: Any = "default",
    rules: str | Rulebook = DEFAULT,
    keep: str = "heat",
    dtype: str = "float16",
    columns: Columns = Columns(),  # noqa: B008
    batch: int | None = None,
    shard: int | None = None,
    threads: int = 1,
    workers: int = 0,
    ray: str | None = None,
    limit: int | None = None,
    fail_fast: bool = False,
    thumbnails: bool = True,
    truncate: bool = False,
    labels: Sequence[str] | None = None,
    preprocess: Preprocess | None = None,
    tokenizer: Any = None,
    arch: str | None = None,
    pretrained: bool = True,
    trust: bool = False,
    device: str | torch.device | None = None,
    progress: Progress | None = None,
) -> Maps:
    """Explain every sample of a data set, and keep a row of each in `out`; what is there already is not done again.

    model: as in `fxlrp.explain`, or a function that returns the loaded model and its tokenizer (or None); Ray's actors
      load a name anew, and get a module by pickle.
    data: see `fxlrp.data.sources.open_source`.  columns: of a table.
    out: a folder for Parquet, or a name that ends in .zarr.
    target, contrast, rules: as in `fxlrp.explain`.
    keep: heat (of a picture [H, W], the channels' sum), full (as the input), top or top:N (the N strongest places of
      the heat, 100), or latent:NAME (relevance at a module inside).  dtype: float16 or float32.
    batch: samples in one call; without it as many as memory allows, 16 at most on a CPU and 256 on a GPU.
    shard: samples in one file, the unit in which work is shared and lost; 256, less of large maps.
    threads: of each worker, with which bits may change.
    workers: Ray's actors; 0 for this process alone.  ray: the address of a cluster, `auto` for the one that is there.
    limit: only the first so many samples.  fail_fast: raise for the first sample that fails instead of noting it.
    thumbnails: also keep a small picture of what was seen.  truncate: cut texts to what the model takes.
    labels, preprocess, tokenizer, arch, pretrained, trust, device: as in `fxlrp.explain`.
    progress(done, all, errors): called as samples are done, those of earlier runs counted.

    Returns the maps, to be read: see `fxlrp.data.read`.

    Raises FxlrpError for a model, data set, question or folder that can't be; an `out` that was made by other settings
    or that another run writes to; a full disk.  A sample that fails raises nothing: its row holds the error.
    """
    from fxlrp.data.reading import read

    out = Path(out)
    asked = Asked(
        target, contrast, rules, keep, dtype, columns, batch, shard, threads, workers, limit, thumbnails, truncate
    )
    check(asked, out, data, uses_ray=workers > 0 or ray is not None)
    load = _loader(model, labels, preprocess, tokenizer, arch, pretrained, trust, device)
    with _threads(threads):
        there = read_settings(out) if (out / NAME).is_file() else None
        job, worker = prepare(load, data, asked, out, there, fail_fast)
        if there is not None:
            agree(out, job.settings, changed_since(job.source, (out / NAME).stat().st_mtime))
        with locked(out, job.settings):
            if is_zarr(out):
                open_zarr(out, job.settings)
            tell = progress or (lambda done, total, errors: None)
            if workers or ray is not None:
                del worker  # a GPU is the actors'
                free()
                _run(job, None, workers, ray, tell)
            else:
                _run(job, worker, workers, ray, tell)
    return read(out)


def check(asked: Asked, out: Path, data: Any, uses_ray: bool) -> None:
    """Raise FxlrpError for options that can't be, before a model is loaded."""
    arrow()
    kind, _, more = asked.keep.partition(":")
    fine = {"heat": not more, "full": not more, "top": not more or more.isdigit(), "latent": bool(more)}
    if not fine.get(kind) or more == "0":
        raise FxlrpError(f"--keep is heat, full, top, top:N or latent:NAME, not {asked.keep}.")
    if asked.dtype not in ("float16", "float32"):
        raise FxlrpError(f"--dtype is float16 or float32, not {asked.dtype}.")
    for name in ("target", "contrast"):
        if not isinstance(getattr(asked, name), int | str | None) or isinstance(getattr(asked, name), bool):
            raise FxlrpError(f"{name} is one class for all samples, by number or name, which is kept with the rows.")
    for name in ("batch", "shard", "threads", "limit"):
        value = getattr(asked, name)
        if value is not None and (type(value) is not int or value < 1):
            raise FxlrpError(f"--{name} is a number from 1, not {value}.")
    if uses_ray or asked.workers:
        check_ray(asked.workers)
    if is_zarr(out) and kind == "top":
        raise FxlrpError("A .zarr keeps whole maps; give a folder for --keep top.")
    if is_zarr(out) and find_spec("zarr") is None:
        raise FxlrpError("zarr must be installed for this: pip install 'fxlrp[data]'.")
    find_rulebook(asked.rules)
    check_there(data)
    if out.is_file():
        raise FxlrpError(f"{out} is a file; maps are kept in a folder, give another.")
    check_writable([out / NAME])
    if isinstance(data, str | Path) and str(data) == str(out):
        raise FxlrpError(f"{out} is the data set itself; give another folder for its maps.")
    if out.is_dir() and not (out / NAME).exists() and any(p.name[0] != "." for p in out.iterdir()):
        raise FxlrpError(f"The folder {out} holds other things; give a new one for the maps.")


def _loader(model: Any, labels: Any, preprocess: Any, tokenizer: Any, *how: Any) -> Loader:
    """Return a function that loads the model, in this process and in others."""
    if callable(model) and not isinstance(model, nn.Module):
        return model
    if isinstance(model, Explainer):
        raise FxlrpError("Give the model itself, and rules=…: each worker converts its own.")
    if not isinstance(model, str | Path | nn.Module | LoadedModel):
        raise FxlrpError(f"A {type(model).__name__} is no model; give a module, or a name such as timm:resnet50.")
    return partial(_load, model, labels, preprocess, tokenizer, *how)


def _load(
    model: Any, labels: Any, preprocess: Any, tokenizer: Any, arch: Any, pretrained: bool, trust: bool, device: Any
) -> tuple[LoadedModel, Any]:
    """Return the loaded model and its tokenizer."""
    from dataclasses import replace

    from fxlrp.text.command import load_tokenizer

    if isinstance(model, str | Path):
        loaded = load_model(str(model), arch=arch, trust=trust, pretrained=pretrained)
        loaded.module.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if loaded.reads_text and tokenizer is None:
            tokenizer = load_tokenizer(str(model))
    else:
        loaded = model if isinstance(model, LoadedModel) else loaded_from(model)
    loaded = replace(loaded, preprocess=preprocess or loaded.preprocess, labels=list(labels or loaded.labels or ()))
    return loaded, tokenizer


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Within it torch computes with so many threads, since bits may depend on it."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _run(job: Job, worker: Worker | None, workers: int, ray: str | None, progress: Progress) -> None:
    """Explain the shards that are missing, and tell how far it is."""
    s = job.settings
    done = whole_shards(job.out, s)
    counts = [sum(len(s.range_of(k)) for k in done), sum(done.values())]
    missing = [k for k in range(s.shards) if k not in done]
    progress(counts[0], s.samples, counts[1])

    def tell(samples: int, errors: int) -> None:
        counts[0], counts[1] = counts[0] + samples, counts[1] + errors
        progress(counts[0], s.samples, counts[1])

    if not missing:
        return
    if worker is None:
        make = partial(_shards_of, job)
        for samples, errors in done_by_ray(make, missing, max(1, workers), ray, s.threads, s.device):
            tell(samples, errors)
        return
    for shard in missing:
        tell(0, one_shard(job, worker, shard, lambda count: tell(count, 0)))


def _shards_of(job: Job) -> Callable[[int], tuple[int, int]]:
    """Return what explains and writes a shard, unless it is there: (its samples, how many of them failed)."""
    worker = job.worker()

    def shard(number: int) -> tuple[int, int]:
        errors = 0 if _is_done(job, number) else one_shard(job, worker, number)
        return len(job.settings.range_of(number)), errors

    return shard


def one_shard(job: Job, worker: Worker, shard: int, tell: Callable[[int], None] = lambda count: None) -> int:
    """Explain and write a shard; returns how many of its samples failed.

    Raises FxlrpError for the first of them if the run is to fail fast.
    """
    with aligned(worker.loaded.module):
        rows = worker.shard(shard, tell)
    failed = [row for row in rows if row.get("error") is not None]
    if failed and job.fail_fast:
        raise FxlrpError(f"Sample {failed[0]['index']} ({failed[0]['key']}) failed: {failed[0]['error']}")
    write_shard(job.out, job.settings, shard, rows)
    return len(failed)


def _is_done(job: Job, shard: int) -> bool:
    """Tell whether a shard is there."""
    with suppress(OSError):
        return os.path.getsize(part(job.out, shard)) > 0
    return False
