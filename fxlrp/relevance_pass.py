"""The relevance pass through a rewritten graph that has run: from a seed at the logits to relevance at the readouts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from fxlrp import acceleration
from fxlrp.capture.confine import without_warnings
from fxlrp.engine.seeds import relevance_at_output
from fxlrp.errors import FxlrpError
from fxlrp.graph.lookups import NOWHERE
from fxlrp.graph.plan import Plan
from fxlrp.graph.reads import Place
from fxlrp.rules.quantities import by_parts, relevance
from fxlrp.rules.registry import Rulebook


class Read(NamedTuple):
    """Relevance of each explained input, in its shape, and of each further requested value."""

    inputs: list[Tensor]
    latent: list[Tensor]


class Direction(NamedTuple):
    """The explained direction v over the graph's logits [B, K], and the direction `against` it is set against."""

    logits: Tensor
    v: Tensor
    against: Tensor | None


AT_ONCE = 16
"""The maximum number of maps in one batched pass, which bounds its memory."""
LARGEST = 2**24
"""The maximum number of entries in the seeds of a batched pass."""


def propagate(
    plan: Plan,
    book: Rulebook,
    out: Sequence[Tensor],
    tensors: Sequence[Tensor],
    asked: Sequence[Direction],
    latent: Sequence[Tensor] = (),
    at_once: int = AT_ONCE,
) -> list[Read]:
    """Propagates each direction through the graph that returned `out` for the inputs `tensors`.

    at_once: the number of seeds propagated by one batched pass.
    """
    places = [at for several in plan.readouts.values() for at in several]
    values = [*(out[at] for at in places), *latent]
    pass_each_side = book.contrast_passes == 2
    seeds = [s for direction in asked for s in seeds_of(direction, book)]

    end = out[plan.logits]
    starts = range(0, len(seeds), at_once)
    with acceleration.scratch(end):
        grads = [
            g
            for i in starts
            for g in pull(end, values, at_end(end, seeds[i : i + at_once]), keep=i + at_once < len(seeds))
        ]
    reads = []
    for direction in asked:
        gs = grads.pop(0)
        if pass_each_side and direction.against is not None:
            gs = [p - n for p, n in zip(gs, grads.pop(0), strict=True)]
        reads.append(read_at(plan, book, out, tensors, values, gs))
    return reads


def pull(end: Tensor, values: Sequence[Tensor], gs: Sequence[Tensor], keep: bool = True) -> list[list[Tensor]]:
    """The cotangents of `values` for each of the cotangents `gs` of `end`, by one batched pass if there are several.

    keep: whether another pass through the same graph follows.
    """

    def cotangents(g: Tensor, keep: bool) -> list[Tensor]:
        try:
            grads = torch.autograd.grad(end, values, g, retain_graph=keep, allow_unused=True)
        except RuntimeError as error:
            if (missing := re.search(r"derivative for (\S+) is not implemented", str(error))) is None:
                raise
            raise FxlrpError(
                f"{missing[1]} has no derivative, and this rulebook has no rule for it: give it one, "
                f"@fxlrp.rule(torch.ops.{missing[1].replace('::', '.')}), or choose another rulebook."
            ) from error
        return [torch.zeros_like(a) if d is None else d for a, d in zip(values, grads, strict=True)]

    if len(gs) > 1:
        # vmap loops over ops that it can't batch; if that fails too, each seed gets its own pass
        with suppress(RuntimeError), without_warnings("There is a performance drop"):
            batched = torch.vmap(partial(cotangents, keep=True))(torch.stack(list(gs)))
            return [list(of_one) for of_one in zip(*batched, strict=True)]
    return [cotangents(g, keep or g is not gs[-1]) for g in gs]


def at_end(end: Tensor, seeds: Sequence[Seed]) -> list[Tensor]:
    """The cotangent of the graph's own end for each seed, which may be at a row of it."""
    return [g if logits is end else torch.autograd.grad(logits, end, g, retain_graph=True)[0] for logits, g in seeds]


def read_at(
    plan: Plan,
    book: Rulebook,
    out: Sequence[Tensor],
    tensors: Sequence[Tensor],
    values: Sequence[Tensor],
    gs: Sequence[Tensor],
) -> Read:
    """The relevance, or the gradients, at a plan's readouts and at further values, by their cotangents `gs`."""
    places = [at for several in plan.readouts.values() for at in several]
    whole = book.reads == "relevance"
    # an input may be infinite, such as a mask
    masked = partial(relevance, masked=True)
    read = [by_parts(masked, a.detach(), g) if whole else g for a, g in zip(values, gs, strict=True)]
    return Read(_by_input(plan, out, tensors, dict(zip(places, read, strict=False))), read[len(places) :])


Seed = tuple[Tensor, Tensor]
"""Logits, and their cotangent."""


def seeds_of(direction: Direction, book: Rulebook) -> list[Seed]:
    """One seed of both signs, or one per side."""
    logits, v, against = direction
    sides = [v] if against is None else [v, against] if book.contrast_passes == 2 else [v - against]
    return [(logits, relevance_at_output(book.seed, logits, side)) for side in sides]


def maps_at_once(logits: Tensor) -> int:
    """The number of directions that a batched pass may have, by the size of its logits."""
    return max(1, min(AT_ONCE // max(len(logits), 1), LARGEST // max(logits.numel(), 1)))


def _by_input(plan: Plan, out: Sequence[Tensor], tensors: Sequence[Tensor], read: dict[int, Tensor]) -> list[Tensor]:
    """Sums the readouts of each input; for looked-up vectors, sums relevance at the entries that were looked up."""

    def readout(at: int, i: Place) -> Tensor:
        if at not in plan.positions or isinstance(i, str):
            return read[at]
        return at_positions(read[at], out[plan.positions[at]], tensors[i].numel()).view(tensors[i].shape)

    parts = [[readout(at, i) for at in places] for i, places in plan.readouts.items()]
    return [sum(several[1:], several[0]) for several in parts]


def at_positions(r: Tensor, positions: Tensor, count: int) -> Tensor:
    """Sums relevance r of looked-up vectors at the `count` input entries that they stand for."""
    is_entry = positions.flatten() != NOWHERE
    out = torch.zeros(count, dtype=r.dtype, device=r.device)
    return out.index_add(0, positions.flatten().clamp(min=0), r.flatten() * is_entry)
