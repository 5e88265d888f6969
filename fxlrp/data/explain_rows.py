"""Samples → rows: one way to explain a shard, in the one process as in an actor of many.

Batches are cut by the samples' numbers and what can't be read has a blank in its place, so that a row's bits depend
neither on who computes it nor on what is broken beside it.
"""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fxlrp.attribution import Attribution
from fxlrp.capture.confine import without_warnings
from fxlrp.data.settings import Settings
from fxlrp.data.sources import Sample, Source, one_line, take
from fxlrp.data.writing import LARGEST, Row
from fxlrp.errors import FxlrpError
from fxlrp.explainer import Explainer
from fxlrp.inputs import LoadedModel
from fxlrp.show.words import name_of, probabilities
from fxlrp.text.ask import explain_encoded
from fxlrp.text.encode import Encoded, batched, encode

CLASSES = 5
"""How many of the likeliest classes are kept."""
THUMBNAIL = 128
"""The longest side of the small picture in a row, in pixels."""
READERS = 1, 8
"""The threads that read samples: for a CPU, which is busy itself, and for a GPU."""


class Worker:
    """Explains samples of a source by settings that are known.

    tokenizer: of a model of texts.
    """

    shapes: tuple[tuple[str, tuple[int, ...], torch.dtype], ...] = ()
    """Of each tensor of a sample, by argument, as the first sample has it."""

    def __init__(self, explainer: Explainer, loaded: LoadedModel, source: Source, s: Settings, tokenizer: Any) -> None:
        self.explainer, self.loaded, self.source, self.s, self.tokenizer = explainer, loaded, source, s, tokenizer
        latent = s.keep.partition("latent:")[2]
        self.question: dict[str, Any] = {"target": s.target, "contrast": s.contrast}
        self.question |= {"at": (latent,)} if latent else {}

    def shard(self, number: int, tell: Callable[[int], None] = lambda count: None) -> list[Row]:
        """Return the rows of a shard; the next batches are read while one is explained.

        tell: called with the number of rows after each batch.
        """
        rows: list[Row] = []
        with ThreadPoolExecutor(READERS[self.s.device != "cpu"]) as readers:
            for batch in _ahead(readers, self._read, self._batches(number), 2 * READERS[self.s.device != "cpu"]):
                rows += self._explained(batch)
                tell(len(batch))
        return rows

    def _batches(self, number: int) -> list[range]:
        of = self.s.range_of(number)
        return [of[i : i + self.s.batch] for i in range(0, len(of), self.s.batch)]

    def _read(self, indices: range) -> list[tuple[Row, Any]]:
        """Read samples and prepare them: a row of what is known, and the tensors or encoded text, None if broken."""
        return [self._prepared(take(self.source, i)) for i in indices]

    def _prepared(self, sample: Sample) -> tuple[Row, Any]:
        label = sample.label
        label = name_of(self.loaded.labels or (), label) if isinstance(label, int) else label
        row: Row = {"index": sample.index, "key": sample.key, "label": label, "error": sample.error}
        if sample.error is not None:
            return row, None
        try:
            return row, self._input(sample.value, row)
        except Exception as error:  # whatever goes wrong with a sample is written in its row
            row["error"] = one_line(error)
            return row, None

    def _input(self, value: Any, row: Row) -> Any:
        """Return what the model takes of a sample.  Raises FxlrpError for one of another kind or size."""
        if self.s.kind == "texts":
            row["text"] = value
            with without_warnings():
                return encode(self.explainer.model, self.tokenizer, value, None, self.s.truncate)
        if self.s.kind == "pictures":
            if not isinstance(value, Image.Image):
                raise FxlrpError(f"It is a {type(value).__name__}, no picture.")
            x, seen = self.loaded.preprocess(value)
            if self.s.thumbnails:
                row["picture"] = _jpeg(seen)
            return {"": x}
        named = value if isinstance(value, Mapping) else {"": torch.as_tensor(value)}
        return dict(named)

    def _explained(self, batch: list[tuple[Row, Any]]) -> list[Row]:
        """Explain a batch; where that fails, one sample at a time finds those that it fails for."""
        rows = [row for row, _ in batch]
        inputs = self._alike([x for _, x in batch], rows)
        if all(x is None for x in inputs):
            return rows
        try:
            answers = self._with_blanks(inputs)
        except Exception as error:
            if _is_out_of_memory(error) and len(batch) > 1:
                half = len(batch) // 2
                free()
                return self._explained(batch[:half]) + self._explained(batch[half:])
            if len(batch) == 1:
                rows[0]["error"] = one_line(error)
                return rows
            alone = [self._explained([(row, x)]) for row, x in zip(rows, inputs, strict=True)]
            good = [None if of_one[0].get("error") else x for of_one, x in zip(alone, inputs, strict=True)]
            try:  # together again, so that those which are fine are as they would have been
                answers = self._with_blanks(good) if any(x is not None for x in good) else [None] * len(good)
            except Exception:
                return [row for of_one in alone for row in of_one]
        for row, answer in zip(rows, answers, strict=True):
            if answer is not None and row["error"] is None:
                self._fill(row, answer)
        return rows

    def _alike(self, inputs: list[Any], rows: Sequence[Row]) -> list[Any]:
        """Return the inputs without those of another shape than most, whose rows say so."""
        if self.s.kind == "texts":
            return inputs
        shapes = [None if x is None else tuple((n, tuple(t.shape), t.dtype) for n, t in x.items()) for x in inputs]
        usual = self.shapes
        for i, shape in enumerate(shapes):
            if shape is not None and shape != usual:
                got, want = (", ".join(f"{n} {list(s)}".strip() for n, s, _ in parts) for parts in (shape, usual))
                rows[i]["error"] = f"It has shape {got}, and the first sample {want}."
                inputs[i] = None
        return inputs

    def _with_blanks(self, inputs: Sequence[Any]) -> list[Row | None]:
        """Explain a batch with a blank for each sample that is None; returns what it adds to each row."""
        present = next(x for x in inputs if x is not None)
        filled = [present if x is None else x for x in inputs]
        with without_warnings():
            answers = self._of_texts(filled) if self.s.kind == "texts" else self._of_tensors(filled)
        return [None if x is None else answer for x, answer in zip(inputs, answers, strict=True)]

    def call(self, samples: Sequence[Mapping[str, Tensor]]) -> Attribution:
        """Explain tensors, as the model takes them."""
        kwargs = {name: self._like(torch.stack([s[name] for s in samples])) for name in samples[0]}
        args = (kwargs.pop(""),) if "" in kwargs else ()
        return self.explainer(*args, **kwargs, **self.question)

    def _like(self, x: Tensor) -> Tensor:
        device = next((p.device for p in self.loaded.module.parameters()), x.device)
        return self.loaded.like(x) if x.is_floating_point() else x.to(device)

    def _of_tensors(self, samples: Sequence[Mapping[str, Tensor]]) -> list[Row]:
        a = self.call(samples)
        measured = _measured(kept(a, self.s.keep), self.s)
        return [{**answer, **row} for answer, row in zip(self._answers(a), measured, strict=True)]

    def _answers(self, a: Attribution) -> list[Row]:
        """Return what the model says of each sample, and what of it was explained."""
        names, logits = tuple(self.loaded.labels or a.labels), a.logits.detach().float().cpu()
        contrast = name_of(names, a.contrast) if isinstance(a.contrast, int) else a.contrast
        rows: list[Row] = [{"contrast": contrast, "name": "the score"} for _ in logits]
        if a.target is not None and a.target.ndim == 1:
            for row, k in zip(rows, a.target.tolist(), strict=True):
                row |= {"target": k, "name": name_of(names, k)}
        if logits.ndim == 2 and logits.shape[1] == 1:
            scores = (logits.sigmoid() if a.independent else logits).tolist()
            rows = [{"contrast": None, "name": "the score", "classes": [0], "scores": each} for each in scores]
        elif logits.ndim == 2:
            best = probabilities(logits, a.independent).topk(min(CLASSES, logits.shape[1]), 1)
            for row, classes, scores in zip(rows, best.indices.tolist(), best.values.tolist(), strict=True):
                row |= {"classes": classes, "scores": scores}
        return rows

    def _of_texts(self, texts: Sequence[Encoded]) -> list[Row]:
        if not self.s.together:
            return [self._of_text(explain_encoded(self.explainer, self.tokenizer, [t], **self.asked)[0]) for t in texts]
        inputs = batched(self.explainer.model, self.tokenizer, texts)
        a = self.explainer(**inputs, **self.question)
        lengths = torch.tensor([len(t.ids) for t in texts])
        relevance = a.named["input_ids"].detach().cpu()
        relevance = relevance.where(torch.arange(relevance.shape[1]) < lengths[:, None], 0)
        of_each = zip(self._answers(a), texts, _measured(relevance, self.s, lengths.tolist()), strict=True)
        return [row | {"pieces": t.pieces} | measured for row, t, measured in of_each]

    @property
    def asked(self) -> dict[str, Any]:
        """The question as it is put to texts one by one."""
        return {"target": self.s.target, "contrast": self.s.contrast, "position": None}

    def _of_text(self, a: Any) -> Row:
        asked = a.asked[0]
        row: Row = {"contrast": asked.contrast, "name": asked.target, "pieces": a.pieces}
        row |= _measured(a.matrix[:1], self.s)[0]
        says = asked.score if asked.probability is None else asked.probability
        return row | ({} if says is None else {"scores": [says]})

    def _fill(self, row: Row, answer: Row) -> None:
        """Add to a row what was found, or why it can't be kept."""
        most, shape, pieces = answer.pop("most"), answer.pop("shape"), answer.pop("pieces", None)
        try:
            if not np.isfinite(most):
                raise FxlrpError("Its relevance is not finite.")
            if pieces is None and shape != self.s.shape:
                raise FxlrpError(f"Its relevance has shape {shape}, the first's {self.s.shape}.")
            if most > LARGEST[self.s.dtype]:
                raise FxlrpError(f"Its relevance is too large for {self.s.dtype}; keep float32 (--dtype).")
            row |= answer
            if pieces is not None:
                row |= {"tokens": [p.token for p in pieces], "start": [p.start for p in pieces]}
                row |= {"end": [p.end for p in pieces]}
        except FxlrpError as error:
            of_sample: Row = {name: row[name] for name in ("index", "key", "label", "text", "picture") if name in row}
            row.clear()
            row |= {**of_sample, "error": str(error)}


def kept(a: Attribution, keep: str) -> Tensor:
    """Return what is kept of an attribution [B, …]: of a picture the channels' sum, of a layer inside likewise."""
    if keep.startswith("latent:"):
        return a.latent[keep.partition(":")[2]]
    r = a.each[0]
    return r if keep == "full" or r.ndim != 4 else r.sum(1)


def _ahead(readers: ThreadPoolExecutor, read: Callable, batches: Sequence[range], most: int) -> Iterator[Any]:
    """Yield what is read of each batch, while at most so many of the next ones are being read."""
    coming = deque(readers.submit(read, batch) for batch in batches[:most])
    for following in [*batches[most:], *[None] * len(coming)]:
        yield coming.popleft().result()
        if following is not None:
            coming.append(readers.submit(read, following))


def _measured(relevance: Tensor, s: Settings, lengths: Sequence[int] | None = None) -> list[Row]:
    """Return what is kept of relevance [B, …] of each sample: it, in its type and where it is strongest, the share of
    it that speaks for the target, in 0…1, and for checks its shape and largest value, NaN if any is.

    lengths: of texts, whose relevance [B, T] is zero beyond them.
    """
    flat = relevance.detach().float().flatten(1)
    total, positive = flat.abs().double().sum(1), flat.clamp(min=0).double().sum(1)
    share = torch.where(total > 0, positive / total, 0).tolist()
    most = torch.where(flat.isfinite().all(1), flat.abs().amax(1), torch.nan).tolist()
    rows: list[Row] = [
        {"positive": p, "most": m, "shape": list(relevance.shape[1:])} for p, m in zip(share, most, strict=True)
    ]
    number = getattr(torch, s.dtype)
    if s.keep.startswith("top"):
        strongest = flat.abs().sort(dim=1, descending=True, stable=True).indices[:, : int(s.keep.partition(":")[2])]
        places = strongest.sort(1).values
        values = flat.gather(1, places).to(number).cpu().numpy()
        for row, where, r in zip(rows, places.cpu().numpy(), values, strict=True):
            row |= {"places": where, "relevance": r}
        return rows
    ends = [None] * len(rows) if lengths is None else lengths
    for row, r, end in zip(rows, relevance.detach().to(number).cpu().numpy(), ends, strict=True):
        row["relevance"] = r[:end]
    return rows


def _jpeg(seen: Tensor) -> bytes:
    """Return what was seen [H, W, 3], in 0…1, as a small JPEG."""
    out = io.BytesIO()
    picture = Image.fromarray((seen * 255).round().byte().numpy())
    picture.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.BILINEAR)
    picture.save(out, "jpeg", quality=85)
    return out.getvalue()


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def free() -> None:
    """Give back the GPU's memory that nothing uses."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def model_device(loaded: LoadedModel) -> str:
    """Return the kind of device a model is on."""
    return next((p.device.type for p in loaded.module.parameters()), "cpu")
