"""The relevance pass over a rewritten graph that has run: from a seed at the logits to relevance at what is read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fxlrp.rewrite import Plan, at_positions
from fxlrp.rules.propagate import relevance
from fxlrp.rules.registry import Rulebook
from fxlrp.seeds import relevance_at_output


class Read(NamedTuple):
    """Relevance of each explained input, shaped like it, and of each further value asked for."""

    inputs: list[Tensor]
    latent: list[Tensor]


def propagate(
    plan: Plan,
    book: Rulebook,
    out: Sequence[Tensor],
    logits: Tensor,
    tensors: Sequence[Tensor],
    v: Tensor,
    against: Tensor | None,
    latent: Sequence[Tensor] = (),
    keep: bool = False,
) -> Read:
    """Relevance for the direction v over the logits, set against another one if there is one.

    out: what the plan's graph returned for the inputs `tensors`, logits: those [B, K] in it that are asked about.
    keep: whether another pass over the graph will follow.
    """
    places = [at for several in plan.readouts.values() for at in several]
    values = [*(out[at] for at in places), *latent]

    def run(direction: Tensor, keep: bool) -> list[Tensor]:
        seed = relevance_at_output(book.seed, logits, direction)
        found = torch.autograd.grad(logits, values, seed, retain_graph=keep, allow_unused=True)
        return [torch.zeros_like(a) if g is None else g for a, g in zip(values, found, strict=True)]

    if against is None or book.contrast == "signed":  # one pass for a seed of both signs, or one a side
        grads = run(v if against is None else v - against, keep)
    else:
        grads = [p - n for p, n in zip(run(v, True), run(against, keep), strict=True)]
    whole = book.reads == "relevance"
    read = [relevance(a.detach(), g) if whole else g for a, g in zip(values, grads, strict=True)]
    return Read(_by_input(plan, out, tensors, dict(zip(places, read, strict=False))), read[len(places) :])


def _by_input(plan: Plan, out: Sequence[Tensor], tensors: Sequence[Tensor], read: dict[int, Tensor]) -> list[Tensor]:
    """What was read, summed for each input; at integers, summed at the entries that were looked up."""

    def one(at: int, x: Tensor) -> Tensor:
        if at not in plan.positions:
            return read[at]
        return at_positions(read[at], out[plan.positions[at]], x.numel()).view(x.shape)

    parts = [[one(at, tensors[i]) for at in places] for i, places in plan.readouts.items()]
    return [sum(several[1:], several[0]) for several in parts]
