"""Parts: the relevance of each channel, head or token at a place, ranked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from rich.table import Table
from torch import Tensor

from fxlrp.capture.objects import open_objects
from fxlrp.engine.seeds import Question
from fxlrp.errors import FxlrpError
from fxlrp.inside.places import HEADS, Place, place
from fxlrp.inside.runs import Run, each_run, joined_classes, relevance_of
from fxlrp.reports.report import Tabled

if TYPE_CHECKING:
    from fxlrp.explainer import Explainer

BY = ("channels", "heads", "tokens")


@dataclass(frozen=True, repr=False)
class Parts(Tabled):
    """The parts of a place and what they are worth.

    relevance: of each part [B, N], summed over positions (of tokens, over channels).
    activation: its largest value [B, N].
    target: the class explained per sample [B], or None where a callable target was.
    """

    at: str
    by: str
    relevance: Tensor
    activation: Tensor
    target: Tensor | None = None

    @property
    def share(self) -> Tensor:
        """The relevance of each part over the Σ|R| of all of them [B, N]."""
        size = self.relevance.abs().sum(1, keepdim=True)
        return self.relevance / size.clamp(min=torch.finfo(size.dtype).tiny)

    def ranked(self, index: int = 0, most: int | None = None) -> list[tuple[int, float]]:
        """The parts of sample `index` with their shares, the most relevant first."""
        share = self.share[index]
        order = share.argsort(descending=True, stable=True)[:most]
        return [(int(i), float(share[i])) for i in order]

    def table(self, index: int = 0, most: int = 20) -> Table:
        """A rich table of the most relevant parts of a sample."""
        out = Table(title=f"{self.at}: {self.by} by relevance", caption=f"{self.relevance.shape[1]} in all")
        for column in (self.by.removesuffix("s"), "share", "relevance", "activation"):
            out.add_column(column, justify="right")
        for i, share in self.ranked(index, most):
            values = (float(t[index, i]) for t in (self.relevance, self.activation))
            out.add_row(str(i), f"{share:+.1%}", *(f"{v:.4g}" for v in values))
        return out

    def __repr__(self) -> str:
        return f"<Parts of {self.at}: {self.relevance.shape[1]} {self.by}>"


def parts_at(
    explainer: Explainer, at: str, args: tuple, kwargs: dict[str, Any], question: Question, by: str, axis: int | None
) -> Parts:
    """The parts of a place by relevance: see `Explainer.parts`."""
    if by not in BY:
        raise FxlrpError(f"by={by!r} is none of {', '.join(BY)}.")
    args, kwargs = open_objects((args, kwargs))
    of_runs: list[tuple[Tensor, Tensor]] = []
    classes = []
    for run in each_run(explainer, args, kwargs, question, lambda plan: [place(plan, at, by == HEADS, axis).node]):
        here = place(run.call.plan, at, by == HEADS, axis)
        of_runs.append(parts_of_run(run, here, by))
        classes.append(run.classes)
    relevance, activation = (torch.cat(several) for several in zip(*of_runs, strict=True))
    target = joined_classes(classes)
    return Parts(at, by, relevance, activation, target)


def parts_of_run(
    run: Run, here: Place, by: str, directions: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """The relevance and the largest activation of each part [B, N].

    directions: rows d and e [N, C]: the parts are then a ↦ (a · e) d, of relevance (a · e)(d · g), activation a · e.
    """
    (g,) = run.cotangents([here.node])
    a = run.opened.values[here.node].detach()
    if directions is not None:
        a, g = here.arranged(a), here.arranged(g)
        if directions[0].shape[1] != a.shape[-1]:
            width, count = directions[0].shape[1], a.shape[-1]
            raise FxlrpError(f"directions have {width} entries; {here.name!r} has {count} channels.")
        d, e = (rows.to(a) for rows in directions)
        a = a @ e.T
        return _over_positions(a * (g @ d.T)).sum(1), _over_positions(a).amax(1)
    r, a = (here.arranged(t) for t in (relevance_of(run.call.explainer.rulebook, a, g), a))
    if by == "tokens":
        return r.sum(-1).flatten(1), a.amax(-1).flatten(1)
    return _over_positions(r).sum(1), _over_positions(a).amax(1)


def _over_positions(t: Tensor) -> Tensor:
    """A tensor [B, …, parts] as [B, positions, parts]."""
    return t.flatten(1, -2) if t.ndim > 2 else t[:, None]
