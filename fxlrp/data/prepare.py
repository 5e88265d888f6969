"""Prepare: what a run is made of, found out by one call of the model: shapes, a batch that fits, how texts go together.

A `Job` is all of it, and goes to other processes by pickle; each makes its own `Worker` of it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fxlrp.data.explain_rows import Worker, kept, model_device
from fxlrp.data.settings import Settings, versions
from fxlrp.data.sources import Columns, Source, listing, open_source, take
from fxlrp.errors import FxlrpError
from fxlrp.explainer import Explainer, convert
from fxlrp.explaining import classes_by_number
from fxlrp.export.artifact import ExportedExplainer
from fxlrp.gae.methods import identify
from fxlrp.identity import digest, sources
from fxlrp.inputs import LoadedModel
from fxlrp.inputs.pictures import channels_of
from fxlrp.methods import DEFAULT
from fxlrp.text.ask import padding_is_ignored
from fxlrp.text.encode import Encoded, batched, encode
from fxlrp.text.questions import NOT_NAMED
from fxlrp.text.tasks import Task, find_label, labels_of, probe

SHARD, MOST_SHARD_BYTES = 256, 2**26
"""Samples in a file, and the most bytes of relevance."""
MOST_AT_ONCE = {"cpu": 16, "cuda": 256}
"""Samples in one call, if memory allows: more are not faster."""
TRIED = 64
"""How many of the first samples are tried, to find one that can be read."""
ONE_ANSWER = (Task.CLASSES, Task.NEXT, Task.MASKED, Task.DECODED)
Loader = Callable[[], tuple[LoadedModel, Any]]


@dataclass(frozen=True)
class Asked:
    """What a run was asked for, as the user says it: see `fxlrp.data.explain`."""

    target: Any = None
    contrast: Any = "default"
    rules: Any = DEFAULT
    keep: str = "heat"
    dtype: str = "float16"
    columns: Columns = field(default_factory=Columns)
    batch: int | None = None
    shard: int | None = None
    threads: int = 1
    workers: int = 0
    limit: int | None = None
    thumbnails: bool = True
    truncate: bool = False


@dataclass(frozen=True)
class Job:
    """A run that is ready to be worked on, in any process."""

    load: Loader
    source: Source
    settings: Settings
    shapes: tuple[tuple[str, tuple[int, ...], torch.dtype], ...]
    rules: Any
    out: Path
    fail_fast: bool

    def worker(self) -> Worker:
        """Load the model here.  Raises FxlrpError if it is another than the run began with."""
        loaded, tokenizer = self.load()
        if digest(loaded.module) != self.settings.weights:
            raise FxlrpError(f"{self.settings.model} is another model here than where the run began.")
        loaded = replace(loaded, labels=self.settings.labels)  # which a first answer may have told
        worker = Worker(_explainer(loaded, self.rules), ready(loaded), self.source, self.settings, tokenizer)
        worker.shapes = self.shapes
        return worker


def prepare(
    load: Loader, data: Any, asked: Asked, out: Path, made: Settings | None, fail_fast: bool
) -> tuple[Job, Worker]:
    """Load the model, open the data set and find out what a run needs; returns the job and a worker of this process.

    made: the settings of an OUT that is there, whose batch is taken if none was asked for.

    Raises FxlrpError for a model, data set or question that can't be.
    """
    loaded, tokenizer = load()
    if isinstance(loaded.module, ExportedExplainer):
        raise FxlrpError(f"{loaded.name} is an exported explainer; give the model it was made from.")
    weights = digest(loaded.module)
    source = open_source(data, asked.columns, loaded.reads_text)
    if loaded.reads_text and tokenizer is None:
        raise FxlrpError("A module that reads texts needs its tokenizer: explain(…, tokenizer=…).")
    if source.kind == "pictures":
        loaded = ready(loaded)
    explainer = _explainer(loaded, asked.rules)
    settings = _settings(data, asked, loaded, weights, source, explainer, made.batch if made else 0)
    worker = Worker(explainer, loaded, source, settings, tokenizer)
    tried = _try_texts if source.kind == "texts" else _try_tensors
    worker.s, size = tried(worker, settings)
    per_sample = 2 * int(torch.Size(worker.s.shape).numel()) if worker.s.shape else 4096
    batch = worker.s.batch or _batch_that_fits(size, worker.s.device, max(1, asked.workers))
    shard = worker.s.shard or max(1, min(SHARD, MOST_SHARD_BYTES // per_sample) // batch) * batch
    worker.s = replace(worker.s, batch=batch, shard=shard)
    return Job(load, source, worker.s, worker.shapes, asked.rules, out, fail_fast), worker


def _settings(
    data: Any, asked: Asked, loaded: LoadedModel, weights: str, source: Source, explainer: Explainer, batch: int
) -> Settings:
    """The settings of a run before one sample was tried.  batch: that of an earlier run, or 0."""
    samples = len(source) if asked.limit is None else min(asked.limit, len(source))
    return Settings(
        data=data if isinstance(data, str) else str(data) if isinstance(data, Path) else type(data).__name__,
        model=loaded.name,
        kind=source.kind,
        samples=samples,
        files=listing(source),
        columns=[asked.columns.sample, asked.columns.label, asked.columns.key],
        weights=weights,
        labels=list(loaded.labels or ()),
        rules=explainer.rulebook.name,
        book=identify(explainer.rulebook),
        target=asked.target,
        contrast=asked.contrast,
        keep=asked.keep,
        dtype=asked.dtype,
        shape=[],
        batch=asked.batch or batch,
        shard=asked.shard or 0,
        threads=asked.threads,
        device=model_device(loaded),
        preprocess=asdict(loaded.preprocess) if source.kind == "pictures" else {},
        thumbnails=asked.thumbnails and source.kind == "pictures",
        truncate=asked.truncate,
        together=True,
        code=sources(),
        versions=versions(),
    )


def ready(loaded: LoadedModel) -> LoadedModel:
    """Return a model of pictures with the number of colours that it takes."""
    if loaded.reads_text:
        return loaded
    return replace(loaded, preprocess=loaded.preprocess.but(channels=channels_of(loaded.module)))


def _explainer(loaded: LoadedModel, rules: Any) -> Explainer:
    module: nn.Module = loaded.module
    return module if isinstance(module, Explainer) else convert(module, rules=rules)


def _try_tensors(worker: Worker, s: Settings) -> tuple[Settings, int]:
    """Explain one sample: the settings with its shape, and the bytes that it took between forward and relevance.

    Raises FxlrpError if none of the first samples can be read, and as the explainer does.
    """
    names = worker.loaded.labels or ()
    target, contrast = (classes_by_number(c, names) for c in (s.target, s.contrast))
    s = worker.s = replace(s, target=target, contrast=contrast)
    worker.question |= {"target": target, "contrast": contrast}
    if s.kind == "pictures":
        generator = torch.Generator().manual_seed(0)
        size = worker.loaded.preprocess.channels, *worker.loaded.preprocess.size
        sample = {"": torch.rand(size, generator=generator)}
    else:
        sample = _first(worker)
    worker.shapes = tuple((n, tuple(t.shape), t.dtype) for n, t in sample.items())
    a, held = _held_by(worker, lambda: worker.call([sample]))
    s = _with_contrast(worker, s, a.contrast)
    relevance = kept(a, s.keep)
    if len(relevance) != 1 or len(a.logits) != 1:
        raise FxlrpError(f"The model takes one sample of {s.data} for {len(a.logits)}; give it one at a time.")
    keep = s.keep
    if keep.startswith("top") and not keep.partition(":")[2]:
        keep = f"top:{min(100, relevance[0].numel())}"
    return replace(s, shape=list(relevance.shape[1:]), keep=keep), held


def _first(worker: Worker) -> dict[str, Tensor]:
    """Return the first sample that can be read, as tensors by argument."""
    reason = "nothing"
    for i in range(min(TRIED, worker.s.samples)):
        sample = take(worker.source, i)
        if sample.error is None:
            return worker._input(sample.value, {})
        reason = sample.error
    raise FxlrpError(f"None of the first samples of {worker.s.data} can be read: {reason}")


def _try_texts(worker: Worker, s: Settings) -> tuple[Settings, int]:
    """Explain some texts: the settings with whether a batch says of each what it says of it alone, and its bytes.

    Raises FxlrpError if none of the first can be read, and for a model that answers several questions of one text.
    """
    if s.keep != "heat":
        raise FxlrpError("Of texts the relevance of each token is kept; leave --keep out.")
    model, reason = worker.explainer.model, "nothing"
    texts: list[Encoded] = []
    for i in range(min(TRIED, s.samples)):
        sample = take(worker.source, i)
        try:
            if sample.error is None and len(texts) < MOST_AT_ONCE["cpu"]:
                texts.append(encode(model, worker.tokenizer, str(sample.value), None, s.truncate))
        except FxlrpError as error:
            reason = str(error)
        reason = sample.error or reason
    if not texts:
        raise FxlrpError(f"None of the first texts of {s.data} can be read: {reason}")
    inputs = batched(model, worker.tokenizer, texts)
    task, _, outputs = probe(model, worker.tokenizer, inputs, worker.explainer.settings.output)
    if task not in ONE_ANSWER:
        raise FxlrpError(f"The model answers {task.value}, more than one thing of a text: explain it text by text.")
    together = task is Task.CLASSES and "attention_mask" in inputs
    together = together and padding_is_ignored(worker.explainer, worker.tokenizer, texts, outputs)
    if task is Task.CLASSES:
        labels = labels_of(model, outputs["logits"].shape[-1])
        target, contrast = (_by_label(c, labels) for c in (s.target, s.contrast))
        s = replace(s, target=target, contrast=contrast, labels=labels)
        worker.loaded = replace(worker.loaded, labels=labels)
    worker.s = s = replace(s, together=together)
    worker.question |= {"target": s.target, "contrast": s.contrast}
    rows, held = _held_by(worker, lambda: worker._of_texts(texts[:1]))
    s = _with_contrast(worker, s, rows[0]["contrast"])
    return s, held * max(1, max(len(t.ids) for t in texts) // len(texts[0].ids))


def _with_contrast(worker: Worker, s: Settings, meant: Any) -> Settings:
    """Settles the contrast that "default" means, as the first sample's answer has it; returns the worker's settings."""
    s = replace(s, contrast=meant) if s.contrast == "default" else s
    worker.s, worker.question = s, worker.question | {"contrast": s.contrast}
    return s


def _by_label(asked: Any, labels: Sequence[str]) -> Any:
    return asked if asked in NOT_NAMED else find_label(asked, labels)


def _held_by(worker: Worker, ask: Callable[[], Any]) -> tuple[Any, int]:
    """Return what a call returns, and the bytes that autograd kept for it, without the weights'."""
    seen = {p.untyped_storage().data_ptr() for p in worker.loaded.module.parameters()}
    held = 0

    def pack(t: Tensor) -> Tensor:
        nonlocal held
        storage = t.untyped_storage() if t.layout is torch.strided else None
        if storage is not None and storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            held += storage.nbytes()
        return t

    ask()  # captured first: what is traced then is not what a call keeps
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        return ask(), held


def _batch_that_fits(size: int, device: str, workers: int) -> int:
    """Return how many samples, a power of two, go into a quarter of the memory that is free."""
    if device == "cuda":
        free, most = torch.cuda.mem_get_info()[0], MOST_AT_ONCE["cuda"]
    else:
        free, most = _free_memory() // workers, MOST_AT_ONCE["cpu"]
    fits = free // 4 // max(1, 2 * size)
    return max(1, min(most, 1 << max(0, fits.bit_length() - 1)))


def _free_memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 2**32
