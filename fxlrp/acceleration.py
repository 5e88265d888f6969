"""Calls fxlrp/fast if it is installed and not switched off (FXLRP_FAST=0), and does nothing otherwise.

Relevance is the same without it, up to rounding: `fast` can be deleted.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec

from torch import Tensor, fx

from fxlrp.engine.replaced import ByRule

FAST = os.environ.get("FXLRP_FAST", "1") != "0" and find_spec("fxlrp.fast") is not None


def with_kernel(replaced: ByRule, nonnegs: tuple[bool, ...]) -> ByRule:
    """An op with its rule, or with an equivalent kernel; nonnegs: whether each input in its argnums is known ≥ 0."""
    if not FAST:
        return replaced
    from fxlrp.fast.kernels import kernel_of
    from fxlrp.fast.replaced import Fast

    return Fast(replaced, kernel_of(replaced), nonnegs)


def specialized(gm: fx.GraphModule, logits: int, active: frozenset[str], one_sided: bool) -> fx.GraphModule:
    """A faster version of a rewritten graph, for relevance ≥ 0 at the output `logits` if `one_sided`, else for any."""
    if not FAST:
        return gm
    from fxlrp.fast.specialize import specialized

    return specialized(gm, logits, active, one_sided)


def without_squares(gm: fx.GraphModule) -> fx.GraphModule:
    """A rewritten graph that recomputes attention weights in the relevance pass instead of storing them."""
    if not FAST:
        return gm
    from fxlrp.fast.checkpoint import without_squares

    return without_squares(gm)


def checkpointed(gm: fx.GraphModule, starts: list[fx.Node]) -> fx.GraphModule:
    """A rewritten graph in segments that store only their inputs; the relevance pass ends at `starts`."""
    if not FAST:
        return gm
    from fxlrp.fast.checkpoint import checkpointed

    return checkpointed(gm, starts)


def scratch(out: Tensor) -> AbstractContextManager:
    """A context in which the relevance pass from `out` reuses memory."""
    if not FAST:
        return nullcontext()
    from fxlrp.fast.memory import is_eager, scratch

    return scratch() if is_eager(out) else nullcontext()
