"""Kernels of absLRP for sums and products of two tensors, and for functions that work entry by entry."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fxlrp.fast.contributions import Contributions, diagonal
from fxlrp.fast.memory import times
from fxlrp.rules import signed
from fxlrp.rules.calculus import slope
from fxlrp.rules.quantities import where_positive

aten = torch.ops.aten


def add(
    z: Tensor, x: Tensor, y: Tensor, *, alpha: float = 1, nonnegs: tuple[bool, bool] = (False, False)
) -> Contributions:
    """A sum: relevance goes to the positive summands, R_x = 2 x⁺ s and R_y = 2 (αy)⁺ s."""
    to_x, to_y = shift(z, x, y), shift_right(z, x, y, alpha=alpha)

    def give(s: Tensor) -> tuple[Tensor, Tensor]:
        if nonnegs[1] and alpha == 1:  # s itself is right where y ≥ 0
            return to_x.give(s)[0], s
        return s if nonnegs[0] else to_x.give(s)[0], to_y.give(s)[0]

    return Contributions(give, lambda: to_x.total().add_(to_y.total()), 2)


def sub(z: Tensor, x: Tensor, y: Tensor, *, alpha: float = 1) -> Contributions:
    """A difference is the sum of x and −y."""
    return add(z, x, y, alpha=-alpha)


def shift(z: Tensor, x: Tensor, y: Tensor | float, *, alpha: float = 1) -> Contributions:
    """A sum with a constant, which takes part in |z| only, as a bias does: R_x = 2 x⁺ s."""
    return Contributions(lambda s: (where_positive(s, x),), lambda: x.clamp(min=0), 2)


def shift_right(z: Tensor, x: Tensor | float, y: Tensor, *, alpha: float = 1) -> Contributions:
    """A constant plus α y: as `shift`."""
    scaled = y if alpha == 1 else y * alpha

    def give(s: Tensor) -> tuple[Tensor]:
        own = where_positive(s, scaled)
        return (own if alpha == 1 else own.mul_(alpha),)

    return Contributions(give, lambda: scaled.clamp(min=0), 2)


def shift_minus(z: Tensor, x: Tensor | float, y: Tensor, *, alpha: float = 1) -> Contributions:
    """A constant minus α y: as `shift`."""
    return shift_right(z, x, y, alpha=-alpha)


def rsub(z: Tensor, x: Tensor, y: Tensor | float, alpha: float = 1) -> Contributions:
    """A constant y minus α x: as `shift`."""
    return shift_right(z, y, x, alpha=-alpha)


def mul(z: Tensor, x: Tensor, y: Tensor) -> Contributions:
    """A product of two activations (a gate): both factors of a positive product share alike, R_x = R_y = 2 (xy)⁺ s."""

    def give(s: Tensor) -> tuple[Tensor, Tensor]:
        own = where_positive(s, z)
        return y * own, times(own, x)

    return Contributions(give, lambda: z.clamp(min=0).mul_(2), 2)


SLOPES = {aten.gelu.default: aten.gelu_backward.default, aten.silu.default: aten.silu_backward.default}
"""Derivatives of functions that are expensive to compute again."""


def activation(z: Tensor, x: Tensor, *args: object, op: Callable[..., Tensor], **kwargs: object) -> Contributions:
    """A non-linearity: R_x = 2 x⁺ f'(x) s."""
    if op in SLOPES:
        d = SLOPES[op](x.new_ones(()).expand_as(x), x, *args, **kwargs)
    else:
        d = slope(lambda t: op(t, *args, **kwargs), x)
    return diagonal(x, where_positive(d, x), 2)


def identity(g: Tensor, z: Tensor, x: Tensor, *rest: object, op: Callable[..., Tensor], **kwargs: object) -> Tensor:
    """The identity rule of the signed methods, R_x = R (1 − f(0)/f(x)): f(0) is one number if f takes x alone."""
    if not getattr(op, "broadcasts", True) or any(isinstance(a, Tensor) for a in (*rest, *kwargs.values())):
        return signed.identity(g, z, x, *rest, op=op, **kwargs)
    nothing = x.new_zeros(())
    f0 = op(nothing, *rest, **kwargs)
    at_zero = slope(lambda t: op(t, *rest, **kwargs), nothing)
    quotient = (z - torch.where(f0.isfinite(), f0, 0)).div_(x)
    return times(quotient.masked_fill_(x == 0, at_zero), g)
