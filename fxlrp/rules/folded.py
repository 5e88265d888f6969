"""Folded products: a product with weights and the batch norm behind it, which relevance sees as one product."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

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

    def __call__(self, *args: Any, value: Tensor, scale: Tensor) -> Tensor:
        return value.view_as(value)

    def scaled(self, w: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """w, and the scale shaped so that it is multiplied by it."""
        return w, scale.view([-1 if d == self.channels else 1 for d in range(w.ndim)])


describe(FoldedProduct, constants=("value", "scale"))


def unfolded(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """The product that a call of a folded one stands for, with its arguments; any other call as it is."""
    if not isinstance(op, FoldedProduct):
        return op, args, kwargs
    x, w, *rest = args
    w, scale = op.scaled(w, kwargs["scale"])
    return op.product, (x, w * scale, *rest), {}
