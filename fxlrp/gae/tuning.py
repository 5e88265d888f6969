"""Tune the few numbers of the default rulebook on a user's own pictures, with half of them held out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fxlrp.errors import FxlrpError
from fxlrp.explainer import Explainer, convert
from fxlrp.gae.data import Data
from fxlrp.gae.definitions import FIXED
from fxlrp.gae.masking import predict
from fxlrp.gae.measures import curves, localisation
from fxlrp.gae.methods import identify
from fxlrp.gae.plan import Plan
from fxlrp.gae.store import Store
from fxlrp.identity import digest
from fxlrp.methods import DEFAULT
from fxlrp.rules.registry import parameters_of

GRID: dict[str, tuple[Any, ...]] = {
    "sum": ("depth", 0.0, 0.25, 1.0),
    "convolution": (0.25, 1.0, 4.0, 16.0),
    "normed": (0.0, 0.25, 1.0, 4.0),
    "dense": (0.0, 0.02, 0.05, 0.25),
    "contrast": ("softmax", "others", None),
}
"""The values that are tried of each parameter, in this order."""
Scores = dict[str, list[float]]
Tried = Callable[[str, Scores, bool], None]


@dataclass(frozen=True)
class Tuned:
    """The rulebook found, and the scores of every rulebook tried, one for each picture: `abpc` and, if there are masks,
    `pointing` and `relevance_mass` (nan for a picture without).

    tried: on the half of the pictures that the search saw, the default first.
    held_out: on the other half, of the default and of the rulebook found.
    """

    default: str
    rules: str
    tried: dict[str, Scores]
    held_out: dict[str, Scores]

    @property
    def is_better(self) -> bool:
        """Whether the rulebook found is better than the default on the pictures that were held out, too."""
        return goodness(self.held_out[self.rules]).mean().item() > goodness(self.held_out[self.default]).mean().item()


def goodness(scores: Scores) -> Tensor:
    """What is maximised, for each picture: ABPC and, where there is a mask, the pointing game beside it."""
    return torch.tensor(scores["abpc"]) + torch.tensor(scores.get("pointing", 0.0)).nan_to_num()


def tune(
    model: nn.Module,
    dataset: Any,
    *,
    masks: Sequence[Any] | None = None,
    limit: int | None = 64,
    steps: int = 10,
    seed: int = 0,
    batch_size: int = 16,
    out: str | Path | None = None,
    progress: Tried | None = None,
) -> Tuned:
    """Search γ at sums, convolutions and dense layers, and the contrast, of `fxlrp.DEFAULT`: one after the other.

    A value takes the place of the default's if it is better by more than one standard error of the differences on the
    same pictures; what makes no difference to the maps is not tried further.

    model, dataset, masks, limit, steps, batch_size: as of `fxlrp.gae.evaluate`; the class explained is the top one.
    seed: which half of the pictures is held out.
    out: a folder that keeps the scores; a run that was stopped goes on.
    progress(name, scores, held_out): called after each rulebook that was tried.

    Raises FxlrpError as `evaluate` does.
    """
    data = Data(dataset, masks, limit)
    if len(data) < 4:
        raise FxlrpError(f"There are {len(data)} pictures; half are held out, so at least 4 are needed.")
    if model.training:
        raise FxlrpError("The model is in training mode; call model.eval() before tune.")
    plan = Plan(model, data, steps, 1, seed, FIXED, batch_size)
    store = Store(None if out is None else Path(out), plan.manifest() | {"tuned": DEFAULT}, cache(identify))
    try:
        return _search(_Halves(plan, store, convert(model)), progress or (lambda *_: None))
    finally:
        store.close()


def name_of(parameters: dict[str, Any]) -> str:
    """The name of the default rulebook with these parameters, those that are its own left out."""
    defaults = parameters_of(DEFAULT)
    changed = [f"{key}={_spelled(value)}" for key, value in parameters.items() if value != defaults[key]]
    return f"{DEFAULT}:{','.join(changed)}" if changed else DEFAULT


def _spelled(value: Any) -> str:
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


@dataclass
class _Halves:
    """The pictures in two halves, and how a rulebook does on each."""

    plan: Plan
    store: Store
    explainer: Explainer
    by: dict[str, Explainer] = field(default_factory=dict)

    def scores(self, name: str, held_out: bool) -> Scores:
        """Each measure of a rulebook, for each picture of a half."""
        pieces = []
        for number, samples in self._parts(held_out):
            of = None if self.store.folder is None else digest([vars(self.plan.sample(i)) for i in samples])
            if (number, name) not in self.store:
                self.store.add(number, name, of=of, scores=self._measured(name, samples))
            if self.store.kept[number, name]["of"] != of:
                raise FxlrpError(f"{self.store.folder} holds scores of other pictures or masks; give another folder.")
            pieces.append(self.store.kept[number, name]["scores"])
        joined = {measure: [v for piece in pieces for v in piece[measure]] for measure in pieces[0]}
        return {measure: values for measure, values in joined.items() if any(map(math.isfinite, values))}

    def maps(self, name: str) -> Tensor:
        """Maps of the first pictures of the half that is searched on."""
        return self._explained(name, *self._pictures(next(self._parts(False))[1]))

    def _explained(self, name: str, x: Tensor, target: Tensor) -> Tensor:
        if name not in self.by:
            self.by[name] = self.explainer.by(name)
        return self.by[name](x, target=target).heatmap().detach()

    def _parts(self, held_out: bool) -> Iterator[tuple[int, list[int]]]:
        """The numbers of the pictures of a half, in batches, each with a number of its own."""
        every, size = self.plan.rings[0], self.plan.batch_size
        starts = range(held_out, len(every), 2 * size)  # every second picture of an order drawn by the seed
        return ((start, every[start : start + 2 * size : 2]) for start in starts)

    def _pictures(self, samples: Sequence[int]) -> tuple[Tensor, Tensor]:
        x = self.plan.stack(samples)
        return x, predict(self.plan.model, x, self.plan.batch_size).argmax(1)

    def _measured(self, name: str, samples: Sequence[int]) -> Scores:
        plan, (x, target) = self.plan, self._pictures(samples)
        heat = self._explained(name, x, target)
        curve = curves(plan.model, x, target, heat, steps=plan.steps, batch_size=plan.batch_size)
        scores: Scores = {"abpc": curve["abpc"]}
        shown = [plan.sample(i).shown(t, t) for i, t in zip(samples, target.tolist(), strict=True)]
        measures = [{} if m is None else localisation(h, m.to(h.device)) for h, m in zip(heat, shown, strict=True)]
        return scores | {key: [f.get(key, math.nan) for f in measures] for key in ("pointing", "relevance_mass")}


def _search(halves: _Halves, progress: Tried) -> Tuned:
    """Coordinate search from the default on one half; the scores of the default and of what was found on the other."""
    best = {key: parameters_of(DEFAULT)[key] for key in GRID}
    tried = {DEFAULT: halves.scores(DEFAULT, False)}
    progress(DEFAULT, tried[DEFAULT], False)
    for key, values in GRID.items():
        before = halves.maps(name_of(best))
        start = dict(best)
        for value in values:
            name = name_of({**start, key: value})
            if name in tried or torch.equal(halves.maps(name), before):
                continue
            tried[name] = halves.scores(name, False)
            progress(name, tried[name], False)
            gain = goodness(tried[name]) - goodness(tried[name_of(best)])
            if gain.mean() > gain.std() / len(gain) ** 0.5:
                best = {**start, key: value}
    best_name = name_of(best)
    held_out = {}
    for name in dict.fromkeys([DEFAULT, best_name]):
        held_out[name] = halves.scores(name, True)
        progress(name, held_out[name], True)
    return Tuned(DEFAULT, best_name, tried, held_out)
