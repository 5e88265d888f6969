"""Traces flex_attention as its matrix products and softmax: torch runs it as one op, and has the op's derivative on
some devices only."""

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
"""The indices of a score: sample, head, query and key."""


@contextmanager
def flex_attention_spelled(notice: Callable[[], None]) -> Iterator[None]:
    """Within it, computes this thread's flex_attention by ops that have rules.  Calls `notice` before it maps a
    function over scores, because the function's ops are visible only below autograd."""
    from torch.nn.attention import flex_attention as flex  # imported here because it takes long

    replacements = (
        ("flex_attention_hop", only_here(partial(_attention, notice), flex.flex_attention_hop)),
        ("_validate_device", only_here(lambda *_: None, flex._validate_device)),  # it refuses inputs that require grad
        ("_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", Flag()),
    )
    with ExitStack() as stack:
        for name, replacement in replacements:
            stack.enter_context(replaced(flex, name, replacement))
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
    """The attention output, and the base-2 logarithms of its softmax normaliser and of its largest exp(score)."""
    has_score_mod, has_mask = not _is_noop(score_mod, "_identity"), not _is_noop(block_mask[-1], "noop_mask")
    if has_score_mod or has_mask:
        notice()
    groups = q.shape[1] // k.shape[1]
    k, v = (t.repeat_interleave(groups, 1) if groups > 1 else t for t in (k, v))
    scores = (q @ k.mT) * scale
    indices = [torch.arange(n, device=q.device) for n in scores.shape]
    if has_score_mod:
        scores = _for_each(score_mod, scored=True)(scores, *indices)
    if has_mask:
        scores = scores.masked_fill(~_for_each(block_mask[-1])(*indices), -math.inf)
        no_key = (scores == -math.inf).all(-1, keepdim=True)  # queries without any key give zeros
        out = scores.masked_fill(no_key, 0).softmax(-1).masked_fill(no_key, 0) @ v
    else:
        out = scores.softmax(-1) @ v
    return out.to(q.dtype), scores.logsumexp(-1) / math.log(2), scores.amax(-1) / math.log(2)


def _is_noop(f: Callable, name: str) -> bool:
    """Whether a function is torch's no-op function of that name."""
    return getattr(f, "__name__", "") == name and f.__module__.startswith("torch.")


def _for_each(f: Callable, scored: bool = False) -> Callable:
    """Maps a function of one score's indices, and of the score if `scored`, over all scores."""
    first = (0,) if scored else ()
    for mapped in reversed(range(INDICES)):
        f = torch.vmap(f, in_dims=(*first, *(0 if i == mapped else None for i in range(INDICES))))
    return f
