"""Sizes of captured tensors, which may be symbols."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx.experimental.symbolic_shapes import ShapeEnv


def free_symbols(size: int | torch.SymInt) -> set:
    """The symbols in a size of a captured tensor; none where export fixed the size."""
    return size.node.expr.free_symbols if isinstance(size, torch.SymInt) else set()


def hint(size: int | torch.SymInt) -> int | None:
    """The size in the example that the graph was captured with; None if values decide it, as a mask's do."""
    value: Any = size.node.hint if isinstance(size, torch.SymInt) else size
    return value


def let_go(symbols: ShapeEnv) -> None:
    """Breaks the reference cycle between shape symbols and fake tensors, which would never be freed: it goes through
    C++, where Python's garbage collector does not see it."""
    symbols.tracked_fakes = []
    symbols.fake_tensor_cache.clear()
