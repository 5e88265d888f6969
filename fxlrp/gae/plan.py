"""Plan an evaluation: which samples make up a chunk, and what they go through before any method."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from fxlrp.errors import FxlrpError
from fxlrp.gae.data import Data, Sample, ring
from fxlrp.gae.definitions import PUBLISHED
from fxlrp.gae.masking import predict
from fxlrp.gae.methods import Method, explain_by, run
from fxlrp.gae.metric import Explain, Trial, Views, fixed_trial, published_trial
from fxlrp.identity import digest, sources

Item = TypeVar("Item")


class Remembered(Generic[Item]):
    """What `read` gives for a number; remembers the latest `count`, which don't go to other processes."""

    def __init__(self, read: Callable[[int], Item], count: int) -> None:
        self.read, self.count = read, count
        self._latest = functools.lru_cache(count)(read)

    def __call__(self, number: int) -> Item:
        return self._latest(number)

    def __reduce__(self) -> tuple[Any, ...]:
        return Remembered, (self.read, self.count)


@dataclass
class Plan:
    """What an evaluation is made of, and how its samples are shared out into chunks.

    size: how many samples a chunk has.  chunks: how many there are.  rings: for each mosaic, the samples in the order
    in which they stand beside each other.
    """

    model: nn.Module
    data: Data
    steps: int
    mosaics: int
    seed: int
    definition: str
    batch_size: int
    quantus: str | None = None
    maskings: tuple[str, ...] = ("zero",)
    made: dict[tuple[str, bool], Explain] = field(default_factory=dict)
    what = "pictures, labels or masks"

    def __post_init__(self) -> None:
        weight = next((p for p in self.model.parameters() if p.is_floating_point()), torch.empty(0))
        self.device, self.dtype = weight.device, weight.dtype
        self.sample = Remembered[Sample](self.data.__getitem__, 8 * self.batch_size)
        count = len(self.data)
        if self.definition == PUBLISHED:
            self.size, self.chunks = self.batch_size, count // self.batch_size
            generator = torch.Generator().manual_seed(self.seed)
            self.rings = [torch.randperm(count, generator=generator).tolist()]
        else:
            self.size = max(1, self.batch_size // 2)
            self.chunks = -(-count // self.size)
            self.rings = [ring(count, self.seed, turn) for turn in range(self.mosaics)]
            self.where = [{i: p for p, i in enumerate(r)} for r in self.rings]

    def manifest(self) -> dict[str, Any]:
        """Return all that results depend on: runs share a folder only where it is the same.

        Two things are kept with each piece of work instead: the method's digest, since methods may be added, and that
        of its samples, since reading all of them at the start would take too long.
        """
        files = getattr(self.data.dataset, "files", None)
        preprocess = getattr(self.data.dataset, "preprocess", None)
        settings = {}
        if dataclasses.is_dataclass(preprocess) and not isinstance(preprocess, type):
            settings = dataclasses.asdict(preprocess)
        return {
            "definition": self.definition,
            "steps": self.steps,
            "mosaics": self.mosaics,
            "seed": self.seed,
            "batch_size": self.batch_size,
            "maskings": list(self.maskings),
            "samples": len(self.data),
            "files": None if files is None else digest([file.name for file in files]),
            **{f"preprocess.{name}": value for name, value in settings.items()},
            "model": digest(self.model),
            "dtype": str(self.dtype),
            "device": self.device.type,
            "python": ".".join(platform.python_version_tuple()[:2]),
            "torch": torch.__version__,
            "captum": version_of("captum"),
            "quantus": self.quantus,
            "fxlrp": sources(),
        }

    def content(self, chunk: int) -> str:
        """Return a digest of the samples that a chunk's scores depend on: pictures, labels and masks."""
        samples = [self.sample(i) for i in self.rows(chunk)]
        return digest([(s.x, s.label, s.mask) for s in samples])

    def explain(self, name: str, method: Method, randomized: nn.Module | None = None) -> Explain:
        """Return a method ready to explain, made once.

        randomized: the model with random weights instead, which are the same whenever they are drawn.
        """
        key = (name, randomized is not None)
        if key not in self.made:
            self.made[key] = explain_by(method, randomized or self.model, self.seed, self.definition)
        return self.made[key]

    def members(self, chunk: int) -> list[int]:
        """Return the samples of a chunk."""
        return self.rings[0][chunk * self.size : (chunk + 1) * self.size]

    def rows(self, chunk: int) -> list[int]:
        """Return the samples of a chunk, and behind them those that stand beside them in mosaics."""
        ids = self.members(chunk)
        turns = range(0 if self.definition == PUBLISHED else self.mosaics)
        return list(dict.fromkeys([*ids, *(other for turn in turns for i in ids for other in self._beside(turn, i))]))

    def _beside(self, turn: int, sample: int) -> list[int]:
        """Return the three samples that stand beside a sample in one of its mosaics."""
        order, at = self.rings[turn], self.where[turn][sample]
        return [order[(at + step) % len(order)] for step in (1, 2, 3)]

    def stack(self, indices: Sequence[int]) -> Tensor:
        """Return samples [n, C, H, W] on the model's device.  Raises FxlrpError if they are of several sizes."""
        xs = [self.sample(i).x for i in indices]
        if other := next((i for i, x in zip(indices, xs, strict=True) if x.shape != xs[0].shape), None):
            raise FxlrpError(
                f"Sample {other} has shape {list(self.sample(other).x.shape)} and sample {indices[0]} "
                f"{list(xs[0].shape)}; mosaics need pictures of one size."
            )
        return torch.stack(xs).to(self.device, self.dtype)

    def trial(self, chunk: int) -> Trial:
        """Return what a chunk's samples go through before any method.

        Raises FxlrpError for pictures of several sizes and, by definition 2024-12, for samples without labels.
        """
        ids = self.members(chunk)
        if self.definition == PUBLISHED:
            labels = [self.sample(i).label for i in ids]
            if None in labels:
                raise FxlrpError(
                    f"Definition {PUBLISHED} scores mosaics by labels, and sample {ids[labels.index(None)]} has none."
                )
            generator = torch.Generator().manual_seed(self.seed + 1 + chunk)
            return published_trial(
                self.model, self.stack(ids), torch.tensor(labels), ids=ids, steps=self.steps, generator=generator
            )
        rows = self.rows(chunk)
        beside = torch.empty(self.mosaics, len(ids), 3, dtype=torch.long)
        places = torch.empty(self.mosaics, len(ids), dtype=torch.long)
        for turn in range(self.mosaics):
            for j, i in enumerate(ids):
                beside[turn, j] = torch.tensor([rows.index(r) for r in self._beside(turn, i)])
                places[turn, j] = hashlib.sha256(f"place:{self.seed}:{turn}:{i}".encode()).digest()[0] % 4
        return fixed_trial(
            self.model,
            self.stack(rows),
            beside,
            ids=ids,
            places=places,
            steps=self.steps,
            batch_size=self.batch_size,
            mask_of=lambda row, predicted, cls: self.sample(rows[row]).shown(cls, predicted),
        )

    def example(self, named: Mapping[str, Method], method: str, samples: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return samples and a method's relevance of them, for pictures: two of [m, C, H, W]."""
        x = self.stack(samples)
        target = predict(self.model, x, self.batch_size).argmax(1)
        shown = [self.sample(i).shown(t, t) for i, t in zip(samples, target.tolist(), strict=True)]
        truth = None if any(s is None for s in shown) else torch.stack([s for s in shown if s is not None])[:, None]
        views = Views(x, target, [f"{i}:x" for i in samples], None if truth is None else truth.to(x))
        return x, run(self.explain(method, named[method]), views, self.batch_size)


def version_of(package: str) -> str | None:
    """Return the version of an installed package, None if it is not."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
