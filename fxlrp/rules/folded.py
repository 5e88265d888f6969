"""Folded products: a product with weights and the batch norm behind it, which relevance sees as one product."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fxlrp.ops import describe


@dataclass(frozen=True)
class FoldedProduct:
    """FoldedProduct(op)(x, w, b, …, value=z, scale=scale): z ≈ op(x, scale · w, b, …), whose value z is given, as the
    model computes it.  The scale has an entry for each of the outputs, which are along the axis `channels` of w."""

    product: Callable[..., Tensor]
    channels: int = 0

    @property
    def __name__(self) -> str:
        return getattr(self.product, "__name__", str(self.product)).replace(".", "_")

    def __call__(self, *args: object, value: Tensor, scale: Tensor) -> Tensor:
        return value.view_as(value)


describe(FoldedProduct, constants=("value", "scale"))


def unfolded(
    op: Callable,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    memory: Callable[[Tensor], Tensor | None] = lambda w: None,
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of the product that a call of a folded one stands for; the own arguments of any other call.

    memory: where the scaled weight is made, if not in memory of its own.
    """
    if not isinstance(op, FoldedProduct):
        return args, kwargs
    x, w, *rest = args
    scale = kwargs["scale"].view([-1 if d == op.channels else 1 for d in range(w.ndim)])
    return (x, torch.mul(w, scale, out=memory(w)), *rest), {}


def product_of(op: Callable) -> Callable:
    """The product that a folded one stands for; any other op itself."""
    return op.product if isinstance(op, FoldedProduct) else op
