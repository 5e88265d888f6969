"""flex_attention, which torch runs as one op whose derivative it has for some devices alone, traced as the products and
the softmax it stands for."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fxlrp.capture.confine import Flag, only_here, replaced

INDICES = 4
"""A score is that of a sample, a head, a query and a key."""


@contextmanager
def flex_attention_spelled(notice: Callable[[], None]) -> Iterator[None]:
    """Within it, flex_attention is computed by ops that have rules, for this thread; `notice` is called before it maps
    over scores, whose ops are seen below autograd alone."""
    from torch.nn.attention import flex_attention as flex  # here, since it takes long to import

    instead = (
        ("flex_attention_hop", only_here(partial(_attention, notice), flex.flex_attention_hop)),
        ("_validate_device", only_here(lambda *_: None, flex._validate_device)),  # which refuses what is to be derived
        ("_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", Flag()),
    )
    with ExitStack() as stack:
        for name, new in instead:
            stack.enter_context(replaced(flex, name, new))
        yield


def _attention(
    notice: Callable[[], None],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    score_mod: Callable,
    block_mask: tuple,
    scale: float,
    *_: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """The attention, and logarithms to base 2 of its normaliser and its largest score."""
    changed, masked = not _named(score_mod, "_identity"), not _named(block_mask[-1], "noop_mask")
    if changed or masked:
        notice()
    groups = q.shape[1] // k.shape[1]
    k, v = (t.repeat_interleave(groups, 1) if groups > 1 else t for t in (k, v))
    scores = (q @ k.mT) * scale
    at = [torch.arange(n, device=q.device) for n in scores.shape]
    if changed:
        scores = _for_each(score_mod, scored=True)(scores, *at)
    if masked:
        scores = scores.masked_fill(~_for_each(block_mask[-1])(*at), -math.inf)
        nothing = (scores == -math.inf).all(-1, keepdim=True)  # rows that see no key are zero
        out = scores.masked_fill(nothing, 0).softmax(-1).masked_fill(nothing, 0) @ v
    else:
        out = scores.softmax(-1) @ v
    return out.to(q.dtype), scores.logsumexp(-1) / math.log(2), scores.amax(-1) / math.log(2)


def _named(f: Callable, name: str) -> bool:
    """Whether a function is the one of that name in torch, which changes nothing."""
    return getattr(f, "__name__", "") == name and f.__module__.startswith("torch.")


def _for_each(f: Callable, scored: bool = False) -> Callable:
    """A function of one score's indices, and perhaps the score, as one of all."""
    first = (0,) if scored else ()
    for mapped in reversed(range(INDICES)):
        f = torch.vmap(f, in_dims=(*first, *(0 if i == mapped else None for i in range(INDICES))))
    return f
