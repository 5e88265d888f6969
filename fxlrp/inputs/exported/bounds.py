"""Find how large the tensors of a network become, before any of them is made."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

from fxlrp.errors import FxlrpError, InputsRefused

LEAST = 2**27
"""Numbers that a network may always make in one pass: half a gigabyte."""
FACTOR = 2**12
"""How many numbers it may make for each of its inputs and weights; one with skip connections makes some hundred."""
LARGEST_SIZE = 2**40


def check_bounds(module: nn.Module, inputs: Sequence[Tensor]) -> None:
    """Run a loaded network on tensors without storage, of the shapes of `inputs`, and add up what it makes.

    Raises FxlrpError if that is out of proportion to its inputs and weights, or its operators don't fit each other.
    """
    if not isinstance(module, fx.GraphModule):
        return
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    shapes = [[n if isinstance(n, int) else n.node.hint for n in t.shape] for t in inputs]
    weights = sum(t.numel() for t in (*module.parameters(), *module.buffers()))
    allowed = max(LEAST, FACTOR * (weights + sum(map(math.prod, shapes))))
    try:
        with torch.no_grad(), mode:
            empty = [torch.empty(s, dtype=t.dtype, device=t.device) for s, t in zip(shapes, inputs, strict=True)]
            _Adding(module, [allowed]).run(*empty, enable_io_processing=False)
    except FxlrpError:
        raise
    except Exception as error:
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        named = " and ".join(map(str, shapes))
        raise InputsRefused(f"The exported network does not run for inputs of shape {named} ({reason}).") from error


class _Adding(fx.Interpreter):
    """Counts the numbers in all tensors that a graph makes; `left` holds how many more it may make."""

    def __init__(self, module: fx.GraphModule, left: list[int]) -> None:
        super().__init__(module)
        self.left = left

    def call_function(self, target: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Call a function, or count inside the body of a `with` block."""
        place = next((i for i, arg in enumerate(args) if isinstance(arg, fx.GraphModule)), None)
        if place is not None:
            return _Adding(args[place], self.left).run(*args[place + 1 :], enable_io_processing=False)
        return super().call_function(target, args, kwargs)

    def run_node(self, n: fx.Node) -> Any:
        """Run a node and count what it makes.  Raises FxlrpError if that is too much."""
        value = super().run_node(n)
        if n.op != "call_function":
            return value
        for leaf in pytree.tree_leaves(value):
            if isinstance(leaf, Tensor):
                self.left[0] -= int(leaf.numel())
            if isinstance(leaf, int) and abs(leaf) > LARGEST_SIZE:
                raise FxlrpError(
                    f"The exported network computes a size of {leaf:.0e} at {n.name}; no network has that."
                )
        if self.left[0] < 0:
            raise FxlrpError(
                f"The exported network makes tensors out of proportion to its inputs and weights at {n.name}: "
                "give smaller inputs (--size), or --trust if you trust whoever made it."
            )
        return value
