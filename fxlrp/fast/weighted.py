"""Kernels of the classic rules for products with weights: by known signs, scratch memory and weights in pieces."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import reduce

import torch
from torch import Tensor

from fxlrp.fast import convolutions
from fxlrp.fast.memory import borrow, clamped, rows_at_once, times
from fxlrp.fast.products import MATMULS, after, before
from fxlrp.rules.calculus import vjp
from fxlrp.rules.quantities import ratio, where_positive
from fxlrp.rules.weighted import Product, Weighted, signs, stabilized

aten = torch.ops.aten


@dataclass(frozen=True)
class FastProduct(Product):
    """A product with weights, and whether x is known to be ≥ 0."""

    nonneg: bool = False

    @property
    def no_bias(self) -> Tensor | None:
        """A bias of zeros, if there is one."""
        b = self.operands[2]
        return None if b is None else torch.zeros_like(b)

    def pieces(self, g: Tensor, z: Tensor) -> Iterator[tuple[Tensor, Tensor, FastProduct]]:
        """The product with g and z of its outputs, cut into pieces of the outputs where a dense layer's weight is
        large."""
        x, w, b = self.operands
        rows = rows_at_once(w) if self.op is aten.linear.default else len(w)
        if len(w) <= rows:
            yield g, z, self
            return
        for i in range(0, len(w), rows):
            cut = slice(i, i + rows)
            args = (x, w[cut], None if b is None else b[cut])
            yield g[..., cut], z[..., cut], replace(self, args=args)


def transposed(f: FastProduct) -> Callable[[Tensor, Tensor], Tensor]:
    """(s, w) ↦ Jᵀs of a product by x, with a weight of the shape of its own."""
    x, w, _ = f.operands
    if f.op is aten.linear.default:
        return torch.matmul
    if f.op in MATMULS and not f.kwargs:
        return before(x) if f.places[0] == 0 else after(x)
    if f.op is aten.addmm.default and not f.kwargs:
        return before(x)
    known = None if f.kwargs else convolutions.transposed_of(f.op, x, w, *f.args[3:])
    return known or (lambda s, w: vjp(lambda t: f(t, w, f.no_bias), [x], s)[0])


Sums = tuple[Tensor, Callable[[Tensor], Tensor]]
"""The sum of contributions at each output, and the function s = R / sum → g at x."""


def contributions(f: FastProduct, sign: int) -> Sums:
    """The contributions of one sign: f(x⁺; w±, b±) + f(x⁻; w∓, 0)."""
    x, w, b = f.operands
    halves = [(1, x)] if f.nonneg else [(1, x.clamp(min=0)), (-1, x.clamp(max=0))]
    biases = [f.no_bias if b is None or half < 0 else clamped(b, sign) for half, _ in halves]
    weights = [clamped(w.detach(), sign * half, borrow(f"part{half}", w)) for half, _ in halves]
    sums = [f(part, weight, bias) for (_, part), weight, bias in zip(halves, weights, biases, strict=True)]
    back = transposed(f)

    def pull(s: Tensor) -> Tensor:
        if f.nonneg:
            return back(s, weights[0])
        above, below = (back(s, weight) for weight in weights)
        return where_positive(above, x) + (below - where_positive(below, x))  # what x > 0 says, fast on a CPU

    return sum(sums[1:], sums[0]), pull


def alpha_beta(g: Tensor, z: Tensor, f: FastProduct, *, alpha: float, beta: float, stabilizer: float) -> Tensor:
    """R_i = Σ_j (α z⁺_ij / Σ_i z⁺_ij − β z⁻_ij / Σ_i z⁻_ij) R_j, with b_j⁺ and b_j⁻ in the sums."""
    r, out = z * g, torch.zeros_like(f.operands[0])
    for factor, sign in ((alpha, 1), (-beta, -1)):
        if factor:
            total, pull = contributions(f, sign)
            out = out + factor * pull(ratio(r, stabilized(total, stabilizer)))
    return out


def z_plus(g: Tensor, z: Tensor, f: FastProduct, *, stabilizer: float) -> Tensor:
    """R_i = Σ_j z⁺_ij / Σ_i z⁺_ij R_j: αβ with α = 1 and β = 0."""
    return alpha_beta(g, z, f, alpha=1, beta=0, stabilizer=stabilizer)


def gamma(g: Tensor, z: Tensor, f: FastProduct, *, gamma: float, stabilizer: float) -> Tensor:
    """R_i = Σ_j (z_ij + γ z±_ij) / Σ_i (z_ij + γ z±_ij) R_j, ± the sign of z_j (generalized to inputs of any sign).

    z± = (z ± |z|)/2 makes of it the signed contribution and absLRP's absolute one: with h = γ/2, A = f(|x|; |w|, |b|),
    s = R / ((1 + h) z + h A sign(z)) and J the product's derivative,  g = (1 + h) Jᵀ s + h sign(x) |J|ᵀ (s sign(z)).
    """
    x, w, b = f.operands
    h, back = gamma / 2, transposed(f)
    size = torch.abs(w.detach(), out=borrow("magnitude", w))
    total = f(x if f.nonneg else x.abs(), size, None if b is None else b.abs())
    sign = signs(z)
    s = ratio(z * g, stabilized(((1 + h) * z).addcmul_(sign, total, value=h), stabilizer))
    del total
    signed = back(s, w)
    absolute = back(times(s, sign), size)
    return signed.mul_(1 + h).add_(absolute if f.nonneg else times(absolute, x.sign()), alpha=h)


@dataclass(frozen=True)
class InPieces:
    """A kernel as the rule of an op."""

    kernel: Callable[..., Tensor]
    rule: Weighted

    def __call__(
        self, g: Tensor, z: Tensor, *args: object, op: Callable[..., Tensor], nonneg: bool, **kwargs: object
    ) -> Tensor:
        product = FastProduct(op, args, kwargs, self.rule.places, nonneg)
        parts = (self.kernel(*part, **dict(self.rule.parameters)) for part in product.pieces(g, z))
        return reduce(Tensor.add_, parts)
