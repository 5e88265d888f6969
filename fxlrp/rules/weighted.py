"""Classic LRP rules for products with weights: ε is plain calculus (rules/signed.py); z⁺, αβ and γ split by sign.

Bach et al., "On Pixel-Wise Explanations …", PLoS ONE 2015 (ε, αβ); Montavon et al., "Explaining NonLinear
Classification Decisions with Deep Taylor Decomposition", Pattern Recognition 2017 (z⁺, zᴮ); Montavon et al.,
"Layer-Wise Relevance Propagation: An Overview", 2019 (γ); Lapuschkin et al., Nature Communications 2019 (flat).

Every rule here is R_i = Σ_j (contribution of i to j) / (sum of contributions to j) R_j for a choice of contributions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fxlrp.ops import of_kind
from fxlrp.rules.calculus import vjp
from fxlrp.rules.folded import product_of, unfolded
from fxlrp.rules.quantities import clamped, ratio

aten = torch.ops.aten


def stabilized(z: Tensor, epsilon: float) -> Tensor:
    """z + ε sign(z), with sign(0) = 1."""
    return z + signs(z, epsilon)


def signs(z: Tensor, size: float = 1) -> Tensor:
    """± size by the sign of z, with sign(0) = 1."""
    return torch.copysign(z.new_full((), size), z)


Bound = float | Sequence[float] | Tensor
"""A bound of the inputs: one for all, or one for each channel."""
Places = tuple[int, int, "int | None"]
"""The indices of x, w and b (None without a bias) among an op's arguments."""

Products = tuple[tuple[Places, tuple], ...]
"""Ops that are linear in x and in their weights, by the places of their operands."""
DENSE: Products = (
    ((0, 1, 2), (aten.linear,)),
    ((0, 1, None), (*of_kind("matmul"), "aten::_grouped_mm", "transformers::grouped_mm_fallback")),
    ((1, 0, None), of_kind("matmul")),
    ((1, 2, 0), (aten.addmm.default,)),
)
CONVOLVING: Products = (((0, 1, 2), of_kind("convolution")),)


@dataclass(frozen=True)
class Product:
    """A call f(x; w, b) that is linear in x and in (w, b), whatever its op."""

    op: Callable[..., Tensor]
    args: tuple
    kwargs: dict[str, object]
    places: Places

    def __call__(self, x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        args = list(self.args)
        for place, value in zip(self.places, (x, w, b), strict=True):
            if place is not None and place < len(args):
                args[place] = value
        return self.op(*args, **self.kwargs)

    @property
    def operands(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """x, w and b, the bias or None."""
        x, w, b = (None if p is None or p >= len(self.args) else self.args[p] for p in self.places)
        assert x is not None
        assert w is not None
        return x, w, b


def contributions(f: Product, sign: int) -> tuple[Callable[[Tensor, Tensor], Tensor], tuple[Tensor, Tensor]]:
    """The contributions of one sign, Σ_i z±_ij + b_j± = f(x⁺; w±, b±) + f(x⁻; w∓, 0), as a function of x⁺ and x⁻; and
    x⁺ and x⁻ themselves."""
    x, w, b = f.operands
    same, other = clamped(w, sign), clamped(w, -sign)
    bias, none = (None, None) if b is None else (clamped(b, sign), torch.zeros_like(b))

    def total(positive: Tensor, negative: Tensor) -> Tensor:
        return f(positive, same, bias) + f(negative, other, none)

    return total, (x.clamp(min=0), x.clamp(max=0))


def alpha_beta(g: Tensor, z: Tensor, f: Product, *, alpha: float, beta: float, stabilizer: float) -> Tensor:
    """R_i = Σ_j (α z⁺_ij / Σ_i z⁺_ij − β z⁻_ij / Σ_i z⁻_ij) R_j, with b_j⁺ and b_j⁻ in the sums
    (Bach et al. 2015, eq. 60)."""
    x, _, _ = f.operands
    out = torch.zeros_like(x)
    for factor, sign in ((alpha, 1), (-beta, -1)):
        if factor:
            total, xs = contributions(f, sign)
            above, below = vjp(total, xs, ratio(z * g, stabilized(total(*xs), stabilizer)))
            out = out + factor * torch.where(x > 0, above, below)
    return out


def z_plus(g: Tensor, z: Tensor, f: Product, *, stabilizer: float) -> Tensor:
    """R_i = Σ_j z⁺_ij / Σ_i z⁺_ij R_j (Montavon et al. 2017): αβ with α = 1 and β = 0."""
    return alpha_beta(g, z, f, alpha=1, beta=0, stabilizer=stabilizer)


def gamma(g: Tensor, z: Tensor, f: Product, *, gamma: float, stabilizer: float) -> Tensor:
    """R_i = Σ_j (z_ij + γ z±_ij) / Σ_i (z_ij + γ z±_ij) R_j, ± the sign of z_j.

    For z_j > 0 and inputs ≥ 0 this is the γ-rule of Montavon et al. 2019, Σ_j a_i (w_ij + γ w⁺_ij) / Σ_i (…) R_j.

    By z± = (z ± |z|)/2 it is a weighted sum of the signed contribution and absLRP's absolute one: with h = γ/2,
    A = f(|x|; |w|, |b|), s = R / ((1 + h) z + h A sign(z)) and J the product's derivative,
    g = (1 + h) Jᵀ s + h sign(x) |J|ᵀ (s sign(z)).
    """
    x, w, b = f.operands
    h, none = gamma / 2, None if b is None else torch.zeros_like(b)
    sign = signs(z)
    total = (1 + h) * z + h * sign * f(x.abs(), w.abs(), None if b is None else b.abs())
    s = ratio(z * g, stabilized(total, stabilizer))
    (signed,) = vjp(lambda t: f(t, w, none), [x], s)
    (absolute,) = vjp(lambda t: f(t, w.abs(), none), [x.abs()], sign * s)
    return (1 + h) * signed + h * x.sign() * absolute


def flat(g: Tensor, z: Tensor, ones: Tensor, f: Product, *, stabilizer: float) -> Tensor:
    """R_i = Σ_j R_j / (number of inputs of j), at an input layer (Lapuschkin et al. 2019).  Returns R itself, the
    cotangent of ones."""
    _, w, b = f.operands
    none = None if b is None else torch.zeros_like(b)
    sizes = f(ones, torch.ones_like(w), none)
    return vjp(lambda t: f(t, torch.ones_like(w), none), [ones], ratio(z * g, stabilized(sizes, stabilizer)))[0]


def z_box(g: Tensor, z: Tensor, ones: Tensor, f: Product, *, low: Bound, high: Bound, stabilizer: float) -> Tensor:
    """R_i = Σ_j (x_i w_ij − l_i w⁺_ij − h_i w⁻_ij) / Σ_i (…) R_j, at an input layer with l ≤ x ≤ h
    (Montavon et al. 2017).  Returns R itself, as `flat` does.

    low, high: numbers, or one for each channel.
    """
    x, w, b = f.operands
    above, below = (None if b is None else clamped(b, sign) for sign in (1, -1))

    def bound(v: Bound) -> Tensor:
        v = torch.as_tensor(v, dtype=x.dtype, device=x.device)
        return v.view(-1, *[1] * (x.ndim - 2)) if v.ndim else v

    def total(t: Tensor) -> Tensor:
        return f(t * x, w, b) - f(t * bound(low), clamped(w, 1), above) - f(t * bound(high), clamped(w, -1), below)

    return vjp(total, [ones], ratio(z * g, stabilized(total(ones), stabilizer)))[0]


@dataclass(frozen=True)
class Weighted:
    """One of the rules above for an op whose operands x, w, b stand at `places` among its arguments."""

    rule: Callable[..., Tensor]
    places: Places
    parameters: tuple[tuple[str, object], ...]

    @property
    def __name__(self) -> str:
        return self.rule.__name__

    def __call__(self, g: Tensor, z: Tensor, *args: object, op: Callable[..., Tensor], **kwargs: object) -> Tensor:
        return self.rule(g, z, Product(op, args, kwargs, self.places), **dict(self.parameters))


def ones_for(x: Tensor) -> Tensor:
    """Ones in the place of an input, one for each of its entries."""
    return x * 0 + 1


@dataclass(frozen=True)
class FirstLayer:
    """A product of the input with weights, which also takes `ones`, laid out like x, at which relevance is read.

    The rules of first layers give relevance to inputs that are 0, which R = x ⊙ g could not carry; R = 1 ⊙ g can.
    """

    op: Callable[..., Tensor]
    places: Places

    @property
    def __name__(self) -> str:
        return "first_" + getattr(self.op, "__name__", str(self.op)).replace(".", "_")

    def __call__(self, ones: Tensor, *args: object, **kwargs: object) -> Tensor:
        return self.op(*args, **kwargs)


@dataclass(frozen=True)
class AtInput:
    """`flat` or `z_box` as the rule of first layers."""

    rule: Callable[..., Tensor]
    parameters: tuple[tuple[str, object], ...]

    @property
    def __name__(self) -> str:
        return self.rule.__name__

    def __call__(self, g: Tensor, z: Tensor, ones: Tensor, *args: object, op: FirstLayer, **kwargs: object) -> Tensor:
        product, (args, kwargs) = product_of(op.op), unfolded(op.op, args, kwargs)
        return self.rule(g, z, ones, Product(product, args, kwargs, op.places), **dict(self.parameters))
