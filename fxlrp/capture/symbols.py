"""Sizes of captured tensors, which may be symbols."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.overrides import TorchFunctionMode


def free_symbols(size: int | torch.SymInt) -> set:
    """The symbols in a size of a captured tensor; none where export fixed the size."""
    return size.node.expr.free_symbols if isinstance(size, torch.SymInt) else set()


def hint(size: int | torch.SymInt) -> int | None:
    """The size in the example that the graph was captured with; None if values decide it, as a mask's do."""
    value: Any = size.node.hint if isinstance(size, torch.SymInt) else size
    return value


LONGEST = 24
"""The operations in an expression for a size; with more, torch takes minutes to compare sizes."""


class SizesStayShort(TorchFunctionMode):
    """Within it, a size that has become a long expression of the inputs' sizes is an error: tracing goes on with these
    sizes fixed.  Networks that pad each convolution by the size of its input nest one expression in the next."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        sizes = result.shape if isinstance(result, Tensor) else ()
        if any(isinstance(size, torch.SymInt) and size.node.expr.count_ops() > LONGEST for size in sizes):
            raise ValueError(f"a size has become an expression of more than {LONGEST} operations")
        return result


def let_go(symbols: ShapeEnv) -> None:
    """Breaks the reference cycle between shape symbols and fake tensors, which would never be freed: it goes through
    C++, where Python's garbage collector does not see it."""
    symbols.tracked_fakes = []
    symbols.fake_tensor_cache.clear()
