"""Selections: which part of a tensor inside relevance has to pass, as a linear map of the cotangent there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fxlrp.errors import FxlrpError
from fxlrp.graph.plan import Plan
from fxlrp.inside.places import HEADS, Place, place

KEYS = ("channels", "heads", "tokens", "patch", "mask", "direction")
"""What a condition may name at a place, beside `axis`, the axis of its channels."""


class Selection(NamedTuple):
    """What may pass at a place: `what`, one of `KEYS`, and which."""

    place: Place
    what: str
    which: Any

    def __str__(self) -> str:
        shown = "" if isinstance(self.which, Tensor) or self.what == "direction" else f" {_listed(self.which)}"
        return f"{self.place.name}: {self.what}{shown}"

    def passed(self, g: Tensor) -> Tensor:
        """The part of a cotangent g at the place that passes.

        Raises FxlrpError for what the tensor there does not have.
        """
        if self.what == "mask" and isinstance(self.which, Tensor) and self.which.ndim > 1:
            return g * self._mask(g)
        arranged = self.place.arranged(g)
        if self.what == "direction":
            return self.place.back(self._along(arranged), g)
        if self.what in ("channels", "heads"):
            keep = _kept(self.which, arranged.shape[-1], self).to(g)
        elif self.what == "mask":
            keep = _weights(self.which, arranged.shape[-1], self).to(g)
        else:
            keep = self._positions(arranged.shape[1:-1]).to(g)[..., None]
        return self.place.back(arranged * keep, g)

    def _mask(self, g: Tensor) -> Tensor:
        """A mask of the place's shape, with or without its samples."""
        mask = self.which.to(g)
        axis = self.place.samples.axis if self.place.samples[1:] == (1, 1) else 0
        if mask.ndim == g.ndim - 1:
            mask = mask.unsqueeze(max(axis, 0))
        if mask.ndim != g.ndim or any(m not in (1, n) for m, n in zip(mask.shape, g.shape, strict=True)):
            raise FxlrpError(
                f"The mask for {self.place.name!r} has shape {tuple(self.which.shape)}, the tensor there "
                f"{tuple(g.shape)}: give one entry per channel, or that shape with or without the axis of samples."
            )
        return mask

    def _along(self, g: Tensor) -> Tensor:
        """The part of g [batch, …, channels] along a direction d: relevance of (a · e) d, with e = d / |d|² unless it
        is given: of a dictionary's row, its encoder's column."""
        d, e = self.which if isinstance(self.which, tuple | list) else (self.which, None)
        d = _weights(torch.as_tensor(d), g.shape[-1], self).to(g)
        e = d / d.square().sum().clamp(min=torch.finfo(d.dtype).tiny) if e is None else torch.as_tensor(e).to(g)
        return (g @ d)[..., None] * e

    def _positions(self, shape: Sequence[int]) -> Tensor:
        """Ones [*shape] at the positions that pass."""
        if self.what == "tokens":
            return _kept(self.which, int(torch.Size(shape).numel()), self).view(*shape)
        sides = [n for n in shape if n > 1]
        if len(sides) != 2 or len(self.which) != 2:
            raise FxlrpError(
                f"{self.place.name!r} has positions {tuple(sides)}, and a patch is (y, x) in a map: name tokens, which "
                "count them through."
            )
        rows, columns = (_kept([i], n, self) for i, n in zip(self.which, sides, strict=True))
        return (rows[:, None] * columns).view(*shape)


def selections(plan: Plan, condition: Mapping[str, Any]) -> list[Selection]:
    """What a condition lets pass, place by place from the output to the input.

    condition: by the name of a module or node a channel, a list of them, a mask, or a dict of `KEYS`.

    Raises FxlrpError for what is no condition, and for places that are not there.
    """
    if not isinstance(condition, Mapping) or not condition:
        raise FxlrpError(
            f"given={condition!r} is no condition: name a place and what may pass there, "
            'as {"layer3": [17, 42]} or {"blocks.3.attn": {"heads": [0]}}.'
        )
    chosen = [s for name, asked in condition.items() for s in _at(plan, name, asked)]
    order = {n.name: i for i, n in enumerate(plan.graph.graph.nodes)}
    return sorted(chosen, key=lambda s: -order[s.place.node])


def _at(plan: Plan, name: str, asked: Any) -> list[Selection]:
    several = dict(asked) if isinstance(asked, Mapping) else {_kind(asked): asked}
    axis = several.pop("axis", None)
    if unknown := [key for key in several if key not in KEYS] or ([] if several else ["nothing"]):
        raise FxlrpError(f"given at {name!r}: {unknown[0]!r} is none of {', '.join(KEYS)}.")
    return [Selection(place(plan, name, key == HEADS, axis), key, which) for key, which in several.items()]


def _kind(asked: Any) -> str:
    """Whether a bare value names channels by number, or is a mask."""
    return (
        "channels"
        if not isinstance(asked, Tensor) or not (asked.is_floating_point() or asked.dtype == torch.bool)
        else "mask"
    )


def _kept(which: Any, count: int, asked: Selection) -> Tensor:
    """Ones [count] where the numbers in `which` say."""
    index = torch.as_tensor(which, dtype=torch.long).reshape(-1)
    if ((index < -count) | (index >= count)).any():
        wrong = next(i for i in index.tolist() if not -count <= i < count)
        raise FxlrpError(f"{asked}: {wrong} is out of range; there are {count}, 0 to {count - 1}.")
    return torch.zeros(count).index_fill(0, index % count, 1)


def _weights(mask: Tensor, count: int, asked: Selection) -> Tensor:
    if mask.shape != (count,):
        raise FxlrpError(f"{asked}: it has shape {tuple(mask.shape)}; {asked.place.name!r} has {count} channels.")
    return mask


def _listed(which: Any) -> str:
    numbers = which if isinstance(which, list | tuple) else [which]
    return ", ".join(map(str, numbers[:6])) + (", …" if len(numbers) > 6 else "")
