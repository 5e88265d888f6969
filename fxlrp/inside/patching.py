"""Patching: what replacing each place inside by its value for another input would do to a score.

Estimated for all places from one relevance pass as (a_corrupted − a_clean) ⊙ g, with g the cotangents of a rulebook:
Jafari et al., "RelP: Faithful and Efficient Circuit Discovery via Relevance Patching", 2025; by the rulebook
gradient-input it is attribution patching (Nanda 2023).  Or measured, by running the network with the place replaced.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from rich.table import Table
from torch import Tensor, nn

from fxlrp.engine.seeds import Contrast, Position, Question, Target
from fxlrp.errors import FxlrpError
from fxlrp.inside.blocks import nodes_of
from fxlrp.inside.parts import BY
from fxlrp.inside.places import HEADS, place
from fxlrp.inside.runs import Asked, Run, arguments, calls, run
from fxlrp.methods import DEFAULT
from fxlrp.reports.report import Tabled
from fxlrp.rules.registry import Rulebook

if TYPE_CHECKING:
    from fxlrp.explainer import Explainer

WHOLE_PLACE = "place"


@dataclass(frozen=True, repr=False)
class Patching(Tabled):
    """What patching places from a corrupted call into a clean one does to a score.

    by: what was patched at once: the whole "place", or each of its "tokens", "heads" or "channels".
    estimated, exact: by the place's name, the change of the score [B, N]; exact is empty unless it was asked for.
    effects: the estimate for every entry, in the place's own shape.
    """

    by: str
    estimated: dict[str, Tensor]
    exact: dict[str, Tensor]
    effects: dict[str, Tensor] = field(repr=False, default_factory=dict)
    rules: str = ""

    @property
    def correlation(self) -> float:
        """Pearson's, of the estimates with the exact changes, over all samples, places and parts.

        Raises FxlrpError unless exact=True.
        """
        if not self.exact:
            raise FxlrpError("Nothing was patched: patching(…, exact=True) runs the network with each place replaced.")
        a, b = (torch.cat([t.flatten() for t in of.values()]).double() for of in (self.estimated, self.exact))
        return float(torch.corrcoef(torch.stack([a, b]))[0, 1]) if len(a) > 1 else float("nan")

    def top(self, most: int = 20, index: int = 0) -> list[tuple[str, int, float]]:
        """The places and parts whose patch would change the score of sample `index` the most, by the estimate."""
        every = [(name, i, float(v)) for name, row in self.estimated.items() for i, v in enumerate(row[index])]
        return sorted(every, key=lambda part: -abs(part[2]))[:most]

    def table(self, most: int = 20, index: int = 0) -> Table:
        """A rich table of the largest changes of a sample's score."""
        caption = f"correlation with the exact changes: {self.correlation:.3f}" if self.exact else None
        out = Table(title=f"patching by {self.rules}", caption=caption)
        for column in (
            "place",
            *([self.by] if self.by != WHOLE_PLACE else []),
            "estimated",
            *["exact"] * bool(self.exact),
        ):
            out.add_column(column, justify="left" if column == "place" else "right")
        for name, i, value in self.top(most, index):
            part = [str(i)] if self.by != WHOLE_PLACE else []
            out.add_row(name, *part, f"{value:+.4g}", *[f"{float(t[name][index, i]):+.4g}" for t in [self.exact] if t])
        return out

    def __repr__(self) -> str:
        return f"<Patching of {len(self.estimated)} places by {self.rules}>"


def patching(
    model: nn.Module | Explainer,
    clean: Any,
    corrupted: Any,
    at: Sequence[str] | None = None,
    *,
    metric: Target = None,
    contrast: Contrast = None,
    position: Position = None,
    by: str = WHOLE_PLACE,
    rules: str | Rulebook = DEFAULT,
    exact: bool = False,
    depth: int | None = None,
    at_once: int = 16,
) -> Patching:
    """What replacing places inside by their values for `corrupted` would do to a score of `clean`.

    model: a module, or an explainer of one, which keeps its rules.
    clean, corrupted: two calls of the same shapes: a tensor, a tuple of arguments or a dict of them.
    at: modules or nodes; without it those of a `depth`, or every attention and pair of layers found by structure.
    metric: the score: a callable on the output that returns one per sample, a class, whose logit it is, weights over
      the logits, or None for the top class of the clean call.  contrast, position: as in a call of an explainer; a
      contrast's logit is taken off.
    by: what is patched at once: a whole "place", or each of its "tokens", "heads" or "channels".
    exact: also run the network with each of them replaced, at_once of them in a batch.

    Raises FxlrpError for calls of different shapes, and as an explainer's call does.
    """
    from fxlrp.explainer import Explainer, convert

    if by != WHOLE_PLACE and by not in BY:
        raise FxlrpError(f"by={by!r} is none of {', '.join((WHOLE_PLACE, *BY))}.")
    explainer = model if isinstance(model, Explainer) else convert(model, rules=rules)
    first, second = arguments(clean), arguments(corrupted)
    with torch.inference_mode(False), torch.enable_grad():
        question = Question(metric, contrast, position)
        pairs = zip(calls(explainer, *first, question), calls(explainer, *second, question), strict=True)
        patched = [_patched(a, b, at, depth, by, exact, at_once) for a, b in pairs]

    def joined(of_each: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        return {name: torch.cat([each[name] for each in of_each]) for name in of_each[0]}

    estimated, measured, effects = (joined(several) for several in zip(*patched, strict=True))
    return Patching(by, estimated, measured, effects, explainer.rulebook.name)


Found = tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]


def _patched(
    clean: Asked, corrupted: Asked, at: Sequence[str] | None, depth: int | None, by: str, exact: bool, at_once: int
) -> Found:
    """The estimated and the exact changes by place, and the effect of every entry."""
    shapes = [[tuple(t.shape) for t in call.tensors] for call in (clean, corrupted)]
    if shapes[0] != shapes[1]:
        raise FxlrpError(f"The clean call has shapes {shapes[0]}, the corrupted one {shapes[1]}; give two of the same.")
    names = _names(clean, at, depth, by)
    places = {name: place(clean.plan, name, by == HEADS) for name in names}
    nodes = [p.node for p in places.values()]
    with clean.plan.in_its_types():
        ran = run(clean, nodes)
        gs = ran.cotangents(nodes)
        others = run(corrupted, [place(corrupted.plan, name, by == HEADS).node for name in names])
    instead = [others.opened.values[place(corrupted.plan, n, by == HEADS).node].detach() for n in names]
    here = [ran.opened.values[p.node].detach() for p in places.values()]
    effects = {n: (b - a) * g for n, a, b, g in zip(names, here, instead, gs, strict=True)}
    estimated = {n: _by(places[n].arranged(e), by) for n, e in effects.items()}
    if not exact:
        return estimated, {}, effects
    with torch.no_grad():
        measured = {n: _exact(clean, ran, n, v, by, at_once) for n, v in zip(names, instead, strict=True)}
    return estimated, measured, effects


def _names(clean: Asked, at: Sequence[str] | None, depth: int | None, by: str) -> list[str]:
    """The names of the places: those asked for, or those found by structure, of which only attentions have heads."""
    if by != HEADS:
        return list(nodes_of(clean.plan, at, depth))
    if at is not None:
        return list(at)
    names = []
    for name in nodes_of(clean.plan, None, depth):
        with suppress(FxlrpError):
            place(clean.plan, name, True)
            names.append(name)
    if not names:
        raise FxlrpError("This model has no attention whose heads could be patched: patch by tokens or channels.")
    return names


def _by(arranged: Tensor, by: str) -> Tensor:
    """The sums of effects [batch, …, parts] over what is patched at once [batch, N]."""
    flat = arranged.flatten(1, -2) if arranged.ndim > 2 else arranged[:, None]
    if by == WHOLE_PLACE:
        return flat.sum((1, 2))[:, None]
    return flat.sum(2 if by == "tokens" else 1)


def _exact(clean: Asked, ran: Run, name: str, instead: Tensor, by: str, at_once: int) -> Tensor:
    """The changes of the score [batch, N], each by a run with a part of a place replaced."""
    here = place(clean.plan, name, by == HEADS)
    other = here.arranged(instead)
    tokens = other.shape[1:-1].numel() if other.ndim > 2 else 1
    count = {WHOLE_PLACE: 1, "tokens": tokens}.get(by, other.shape[-1])
    before = _score(ran)
    rows = []
    for start in range(0, count, at_once):
        which = range(start, min(start + at_once, count))
        alone = clean.plan.axes.whole or clean.plan.is_for_one
        for group in [[i] for i in which] if alone else [list(which)]:
            rows.append(_run_patched(clean, name, other, by, group, ran) - before)
    return torch.cat(rows).T


def _run_patched(clean: Asked, name: str, other: Tensor, by: str, group: Sequence[int], ran: Run) -> Tensor:
    """The score of each sample with each of some parts of a place replaced [parts, batch]."""
    explainer, axes, count = clean.explainer, clean.plan.axes, len(group)
    args, kwargs = clean.args, clean.kwargs
    if count > 1:
        args, kwargs = axes.each(lambda t, axis: torch.cat([t] * count, axis), (args, kwargs))
    call = explainer.call(args, kwargs)
    here = place(call.plan, name, by == HEADS)

    def replaced(value: Tensor) -> Tensor:
        own = here.arranged(value)
        flat = own.reshape(count, len(other), -1, own.shape[-1]).clone()
        new = other.reshape(len(other), -1, own.shape[-1])
        for row, i in zip(flat, group, strict=True):
            at = (
                (..., slice(None), slice(None))
                if by == WHOLE_PLACE
                else (..., i, slice(None))
                if by == "tokens"
                else (..., i)
            )
            row[at] = new[at]
        return here.back(flat.reshape(own.shape), value)

    question = replace(clean.question, target=_again(clean.question.target, ran, count))
    question = replace(question, position=_again(question.position, None, count))
    with call.plan.in_its_types():
        patched = run(Asked(**vars(call), question=question), (), instead={here.node: replaced})
        return _score(patched).unflatten(0, (count, -1))


def _again(asked: Any, ran: Run | None, count: int) -> Any:
    """What is asked about each sample, for so many copies of the batch; the top class is that of the clean call."""
    asked = ran.classes if ran is not None and asked is None else asked
    return torch.cat([asked] * count) if isinstance(asked, Tensor) and asked.ndim else asked


def _score(ran: Run) -> Tensor:
    """The score of each sample [batch]."""
    plan, model_out, target = ran.call.plan, ran.forward.model_out, ran.call.question.target
    if callable(target):
        answer = target(plan.capture.unflatten(tuple(model_out[: len(plan.capture.output_names)])))
        return answer.detach().reshape(-1)
    logits, v, against = ran.direction
    weighted = logits.detach() * (v if against is None else v - against)
    return weighted.flatten(1).sum(1) if weighted.ndim > 1 else weighted
