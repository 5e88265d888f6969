"""absLRP rules for sums, products and quotients of two tensors."""

from __future__ import annotations

from torch import Tensor

from fxlrp.rules.propagate import over_abs


def add(g: Tensor, z: Tensor, x: Tensor, y: Tensor, *, alpha: float = 1) -> tuple[Tensor, Tensor]:
    """A sum: relevance goes to the positive summands, R_x = 2 x⁺ s and R_y = 2 (αy)⁺ s."""
    s = 2 * over_abs(g, z)
    return s.masked_fill(x <= 0, 0), alpha * s.masked_fill(y * alpha <= 0, 0)


def sub(g: Tensor, z: Tensor, x: Tensor, y: Tensor, *, alpha: float = 1) -> tuple[Tensor, Tensor]:
    """A difference is the sum of x and −y."""
    return add(g, z, x, y, alpha=-alpha)


def shift(g: Tensor, z: Tensor, x: Tensor, y: Tensor | float, *, alpha: float = 1) -> Tensor:
    """A sum with a constant: as a bias does, the constant takes part in |z| only, R_x = 2 x⁺ s."""
    return (2 * over_abs(g, z)).masked_fill_(x <= 0, 0)


def shift_right(g: Tensor, z: Tensor, x: Tensor | float, y: Tensor, *, alpha: float = 1) -> Tensor:
    """A constant plus α y: as `shift`."""
    return (2 * alpha * over_abs(g, z)).masked_fill_(alpha * y <= 0, 0)


def shift_minus(g: Tensor, z: Tensor, x: Tensor | float, y: Tensor, *, alpha: float = 1) -> Tensor:
    """A constant minus α y: as `shift`."""
    return shift_right(g, z, x, y, alpha=-alpha)


def mul(g: Tensor, z: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """A product of two activations (a gate): both factors of a positive product share alike, R_x = R_y = 2 (xy)⁺ s."""
    s = (2 * over_abs(g, z)).masked_fill_(z <= 0, 0)
    return y * s, x * s


def div(g: Tensor, z: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """A quotient of two activations: the denominator is a normaliser and takes nothing, as in a layer norm."""
    return g / y
