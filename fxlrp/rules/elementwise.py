"""absLRP rules for sums, products and quotients of two tensors."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from fxlrp.rules.generic import activation, vjp
from fxlrp.rules.normalise import traits
from fxlrp.rules.quantities import over_abs, where_positive


def _total_add(z: Tensor, x: Tensor, y: Tensor, *, alpha: float = 1) -> Tensor:
    return x.clamp(min=0).add_((y if alpha == 1 else alpha * y).clamp(min=0)).mul_(2)


def _total_sub(z: Tensor, x: Tensor, y: Tensor, *, alpha: float = 1) -> Tensor:
    return _total_add(z, x, y, alpha=-alpha)


def _total_mul(z: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return 4 * z.clamp(min=0)


@traits(total=_total_add)
def add(g: Tensor, z: Tensor, x: Tensor, y: Tensor, *, alpha: float = 1) -> tuple[Tensor, Tensor]:
    """A sum: relevance goes to the positive summands, R_x = 2 x⁺ s and R_y = 2 (αy)⁺ s."""
    s = over_abs(g, z).mul_(2)
    if alpha == 1:
        return where_positive(s, x), where_positive(s, y)
    return where_positive(s, x), where_positive(s, y * alpha).mul_(alpha)


@traits(total=_total_sub)
def sub(g: Tensor, z: Tensor, x: Tensor, y: Tensor, *, alpha: float = 1) -> tuple[Tensor, Tensor]:
    """A difference is the sum of x and −y."""
    return add(g, z, x, y, alpha=-alpha)


@traits(entrywise=True, keeps_sign=True)
def shift(g: Tensor, z: Tensor, x: Tensor, y: Tensor | float, *, alpha: float = 1) -> Tensor:
    """A sum with a constant: as a bias does, the constant takes part in |z| only, R_x = 2 x⁺ s."""
    return where_positive(2 * over_abs(g, z), x)


@traits(entrywise=True, keeps_sign=True)
def shift_right(g: Tensor, z: Tensor, x: Tensor | float, y: Tensor, *, alpha: float = 1) -> Tensor:
    """A constant plus α y: as `shift`."""
    return where_positive(2 * alpha * over_abs(g, z), alpha * y)


@traits(entrywise=True, keeps_sign=True)
def shift_minus(g: Tensor, z: Tensor, x: Tensor | float, y: Tensor, *, alpha: float = 1) -> Tensor:
    """A constant minus α y: as `shift`."""
    return shift_right(g, z, x, y, alpha=-alpha)


@traits(total=_total_mul)
def mul(g: Tensor, z: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """A product of two activations (a gate): both factors of a positive product share alike, R_x = R_y = 2 (xy)⁺ s."""
    s = where_positive(2 * over_abs(g, z), z)
    return y * s, x * s


@traits(entrywise=True, keeps_sign=True)
def div(g: Tensor, z: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """A quotient of two activations: the denominator is a normaliser and takes nothing, as in a layer norm."""
    return g / y


@traits(entrywise=True, keeps_sign=True)
def rsub(g: Tensor, z: Tensor, x: Tensor, y: Tensor | float, alpha: float = 1) -> Tensor:
    """A constant y minus α x: as `shift`."""
    return shift_right(g, z, y, x, alpha=-alpha)


def normaliser(g: Tensor, z: Tensor, x: Tensor) -> tuple[()]:
    """1/x and 1/√x: what is divided by is a constant of the method and takes nothing."""
    return ()


@traits(entrywise=True)
def gate(g: Tensor, z: Tensor, x: Tensor, *constants: Tensor, op: Callable[..., Tensor]) -> Tensor:
    """x · gate(x) written out: the rule of an activation, as for the fused ops."""
    return activation(op)(g, z, x, *constants)


@traits(entrywise=True, keeps_sign=True)
def exp(g: Tensor, z: Tensor, x: Tensor) -> Tensor:
    """An exponential keeps the sign of relevance, R_x = 2 |x| z s: the exponent takes it by its distance from 0."""
    return 2 * x.sign() * z * over_abs(g, z)


@traits(keeps_sign=True)
def logsumexp(g: Tensor, z: Tensor, x: Tensor, dim: list[int], keepdim: bool = False) -> Tensor:
    """log Σ exp(x): by its derivative, the softmax, which keeps the sign of relevance as `exp` does."""
    return 2 * x.sign() * vjp(lambda t: t.logsumexp(dim, keepdim), [x], over_abs(g, z))[0]
