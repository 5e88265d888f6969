"""Sizes of captured tensors, which may be symbols."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx.experimental.symbolic_shapes import ShapeEnv


def free_symbols(size: int | torch.SymInt) -> set:
    """The symbols in a size of a captured tensor: none where export found it to be fixed."""
    return size.node.expr.free_symbols if isinstance(size, torch.SymInt) else set()


def hint(size: int | torch.SymInt) -> int:
    """A size in the example that the graph was captured with."""
    found: Any = size.node.hint if isinstance(size, torch.SymInt) else size
    return found


def let_go(symbols: ShapeEnv) -> None:
    """Take apart the circle from the symbols of shapes to fake tensors and back, which goes through C++, where Python's
    garbage collector does not see it: none of this would ever be freed."""
    symbols.tracked_fakes = []
    symbols.fake_tensor_cache.clear()
