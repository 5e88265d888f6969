"""absLRP rules for sums, products and quotients of two tensors."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from fxlrp.rules.contributions import ByContributions, Contributions, diagonal, keeps_relevance, keeps_sign
from fxlrp.rules.generic import activation, vjp
from fxlrp.rules.quantities import over_abs, times, where_positive


@ByContributions
def add(
    z: Tensor, x: Tensor, y: Tensor, *, alpha: float = 1, nonnegs: tuple[bool, bool] = (False, False)
) -> Contributions:
    """A sum: relevance goes to the positive summands, R_x = 2 x⁺ s and R_y = 2 (αy)⁺ s."""
    to_x, to_y = shift.of(z, x, y), shift_right.of(z, x, y, alpha=alpha)

    def give(s: Tensor) -> tuple[Tensor, Tensor]:
        if nonnegs[1] and alpha == 1:  # s itself is right where y ≥ 0
            return to_x.give(s)[0], s
        return s if nonnegs[0] else to_x.give(s)[0], to_y.give(s)[0]

    return Contributions(give, lambda: to_x.total().add_(to_y.total()), 2)


@ByContributions
def sub(z: Tensor, x: Tensor, y: Tensor, *, alpha: float = 1) -> Contributions:
    """A difference is the sum of x and −y."""
    return add.of(z, x, y, alpha=-alpha)


@ByContributions
def shift(z: Tensor, x: Tensor, y: Tensor | float, *, alpha: float = 1) -> Contributions:
    """A sum with a constant: as a bias does, the constant takes part in |z| only, R_x = 2 x⁺ s."""
    return Contributions(lambda s: (where_positive(s, x),), lambda: x.clamp(min=0), 2)


@ByContributions
def shift_right(z: Tensor, x: Tensor | float, y: Tensor, *, alpha: float = 1) -> Contributions:
    """A constant plus α y: as `shift`."""
    scaled = y if alpha == 1 else y * alpha

    def give(s: Tensor) -> tuple[Tensor]:
        own = where_positive(s, scaled)
        return (own if alpha == 1 else own.mul_(alpha),)

    return Contributions(give, lambda: scaled.clamp(min=0), 2)


@ByContributions
def shift_minus(z: Tensor, x: Tensor | float, y: Tensor, *, alpha: float = 1) -> Contributions:
    """A constant minus α y: as `shift`."""
    return shift_right.of(z, x, y, alpha=-alpha)


@ByContributions
def rsub(z: Tensor, x: Tensor, y: Tensor | float, alpha: float = 1) -> Contributions:
    """A constant y minus α x: as `shift`."""
    return shift_right.of(z, y, x, alpha=-alpha)


@ByContributions
def mul(z: Tensor, x: Tensor, y: Tensor) -> Contributions:
    """A product of two activations (a gate): both factors of a positive product share alike, R_x = R_y = 2 (xy)⁺ s."""

    def give(s: Tensor) -> tuple[Tensor, Tensor]:
        own = where_positive(s, z)
        return y * own, times(own, x)

    return Contributions(give, lambda: z.clamp(min=0).mul_(2), 2)


@keeps_relevance
def div(g: Tensor, z: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """A quotient of two activations: the denominator is a normaliser and takes nothing, as in a layer norm."""
    return g / y


def normaliser(g: Tensor, z: Tensor, x: Tensor) -> tuple[()]:
    """1/x and 1/√x: what is divided by is a constant of the method and takes nothing."""
    return ()


@ByContributions
def gate(z: Tensor, x: Tensor, *constants: Tensor, op: Callable[..., Tensor]) -> Contributions:
    """x · gate(x) written out: the rule of an activation, as for the fused ops."""
    return activation(op).of(z, x, *constants)


@ByContributions
def exp(z: Tensor, x: Tensor) -> Contributions:
    """An exponential keeps the sign of relevance, R_x = 2 |x| z s: the exponent takes it by its distance from 0."""
    return diagonal(x, x.sign().mul_(z), 2)


@keeps_sign
def logsumexp(g: Tensor, z: Tensor, x: Tensor, dim: list[int], keepdim: bool = False) -> Tensor:
    """log Σ exp(x): by its derivative, the softmax, which keeps the sign of relevance as `exp` does."""
    return 2 * x.sign() * vjp(lambda t: t.logsumexp(dim, keepdim), [x], over_abs(g, z))[0]
