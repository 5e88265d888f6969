"""Plan an evaluation on texts: which samples make up a chunk, and how each is measured."""

from __future__ import annotations

import functools
import platform
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from fxlrp.explainer import convert
from fxlrp.gae.plan import Remembered, version_of
from fxlrp.gae.texts.attention import Base
from fxlrp.gae.texts.case import Case, make_case
from fxlrp.gae.texts.data import Sample, Texts
from fxlrp.gae.texts.methods import Explain, Method, explain_by, run
from fxlrp.gae.texts.rationales import agreement
from fxlrp.gae.texts.removal import removal
from fxlrp.gae.texts.stability import Shadow, change, correlation
from fxlrp.identity import digest, sources


@dataclass
class TextPlan:
    """What an evaluation on texts is made of; chunks are of `size` samples each.

    share: which part of a text's words people mark on average, None where there are no rationales.
    without: how many texts have no continuation, 0 where none has one.
    stability: whether sensitivity and randomization are measured.
    """

    model: nn.Module
    tokenizer: Any
    data: Texts
    steps: int
    seed: int
    batch_size: int
    stability: bool = True
    size: int = 4
    what = "texts, labels, continuations or rationales"
    made: dict[tuple[str, bool], Explain] = field(default_factory=dict)

    def __post_init__(self) -> None:
        weight = next((p for p in self.model.parameters() if p.is_floating_point()), torch.empty(0))
        self.device, self.dtype = weight.device, weight.dtype
        self.sample = Remembered[Sample](self.data.__getitem__, 8 * self.size)
        self.case = Remembered[Case](self._case, 8 * self.size)
        self.chunks = -(-len(self.data) // self.size)
        marks, given = [], 0
        for sample in map(self.data.__getitem__, range(len(self.data))):
            marks += [] if sample.rationale is None else [sample.rationale]
            given += sample.continuation is not None
        self.without = given and len(self.data) - given
        self.share = sum(sum(r) / len(r) for r in marks) / len(marks) if marks else None

    def manifest(self) -> dict[str, Any]:
        """Return all that results depend on, but for methods and samples; as `gae.plan.Plan.manifest`."""
        tokenizer = getattr(self.tokenizer, "backend_tokenizer", None)
        spelled = tokenizer.to_str() if tokenizer is not None else repr(self.tokenizer)
        return {
            "samples": len(self.data),
            "steps": self.steps,
            "seed": self.seed,
            "stability": self.stability,
            "marked": None if self.share is None else round(self.share, 12),
            "batch_size": self.batch_size,
            "model": digest(self.model),
            "tokenizer": digest((spelled, sorted(map(str, self.tokenizer.special_tokens_map.items())))),
            "dtype": str(self.dtype),
            "device": self.device.type,
            "python": ".".join(platform.python_version_tuple()[:2]),
            "torch": torch.__version__,
            "transformers": version_of("transformers"),
            "captum": version_of("captum"),
            "fxlrp": sources(),
        }

    def rows(self, chunk: int) -> list[int]:
        """Return the samples of a chunk."""
        return list(range(chunk * self.size, min((chunk + 1) * self.size, len(self.data))))

    def content(self, chunk: int) -> str:
        """Return a digest of the samples of a chunk."""
        return digest([vars(self.sample(i)) for i in self.rows(chunk)])

    def trial(self, chunk: int) -> list[tuple[int, Case]]:
        """Return the samples of a chunk as cases.  Raises FxlrpError for one that the model can't take."""
        return [(i, self.case(i)) for i in self.rows(chunk)]

    def _case(self, index: int) -> Case:
        return make_case(self.model, self.tokenizer, self.sample(index), index)

    @functools.cached_property
    def shadow(self) -> Shadow:
        """A copy of the model, to change."""
        return Shadow(self.model, self.seed, self.case(0).inputs)

    @functools.cached_property
    def bases(self) -> dict[bool, Base]:
        """The explainers of the model, and of its shadow."""
        models = {False: self.model} | ({True: self.shadow.model} if self.stability else {})
        return {shadow: Base(convert(model)) for shadow, model in models.items()}

    def explain(self, name: str, method: Method, shadow: bool = False) -> Explain:
        """Return a method ready to explain the model, or its shadow; made once."""
        if (name, shadow) not in self.made:
            self.made[name, shadow] = explain_by(method, self.bases[shadow], self.seed)
        return self.made[name, shadow]

    def measure(self, trial: list[tuple[int, Case]], name: str, method: Method) -> list[dict[str, Any]]:
        """Return a row for each case: every measure of one method."""
        explain = self.explain(name, method)
        maps = [run(explain, case) for _, case in trial]
        stability = self._stability(trial, maps, name, method) if self.stability else [{}] * len(trial)
        rows = []
        for (i, case), heat, more in zip(trial, maps, stability, strict=True):
            sample = self.sample(i)
            row: dict[str, Any] = {"sample": i, "label": None if sample.label is None else str(sample.label)}
            row |= {"predicted": case.predicted, "tokens": int(case.free.sum()), "dropped": case.text.dropped}
            row |= removal(self.model, case, heat, steps=self.steps, batch_size=self.batch_size)
            row |= {} if self.share is None else agreement(case, heat, self.share)
            rows.append({**row, **more, **({} if sample.name is None else {"name": sample.name})})
        return rows

    def _stability(
        self, trial: list[tuple[int, Case]], maps: list[Tensor], name: str, method: Method
    ) -> list[dict[str, float | None]]:
        """Return how much each map [T] changes under noise, and how much it is like that of random weights."""
        explain = self.explain(name, method, shadow=True)

        def maps_of(copy: str) -> list[Tensor]:
            return [run(explain, replace(case, key=f"{case.key}:{copy}")) for _, case in trial]

        noisy = [maps_of(f"noise {draw}") for draw, _ in enumerate(self.shadow.noisy())]
        with self.shadow.randomized():
            random = maps_of("random")
        measures = []
        for (_, case), heat, other, *others in zip(trial, maps, random, *noisy, strict=True):
            free = case.free
            size = change(heat[free], [o[free] for o in others])
            measures.append(
                {"max_sensitivity": size, "randomization": correlation(heat[free].abs(), other[free].abs())}
            )
        return measures
