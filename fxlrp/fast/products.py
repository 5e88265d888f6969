"""Kernels of absLRP for products with weights (convolutions: fast/convolutions.py) and of two activations.

The published rule R_x = x ⊙ (Wᵀs) + |x| ⊙ (|W|ᵀs), s = R/|z|, keeps the positive contributions x_i w_ij > 0 twice:

    R_x = 2 [ x⁺ ⊙ (W⁺ᵀ s) + x⁻ ⊙ (W⁻ᵀ s) ]

so an input known to be ≥ 0 needs one product instead of two.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, reduce

import torch
from torch import Tensor

from fxlrp.fast.contributions import Contributions
from fxlrp.fast.memory import add_product, borrow, clamped, keep_positive, rows_at_once
from fxlrp.rules.calculus import vjp
from fxlrp.rules.quantities import ROUNDING, where_positive

aten = torch.ops.aten
MATMULS = (aten.matmul.default, aten.mm.default, aten.bmm.default)
Two = Callable[[Tensor, Tensor], Tensor]


def product(
    z: Tensor,
    x: Tensor,
    w: Tensor,
    forward: Two,
    transposed: Two,
    nonneg: bool = False,
    bias: Tensor | None = None,
    keep: bool = True,
    constant: bool = False,
) -> Contributions:
    """The positive contributions to z = forward(x, w) + bias, whose `transposed(s, w)` is Wᵀs.

    Where x ≥ 0 (nonneg), they give W⁺ᵀs. Else they give Wᵀs + sign(x) ⊙ |W|ᵀs, which is 2 W⁺ᵀs where x > 0 and 2 W⁻ᵀs
    where x < 0; their sum is z − b + |W||x|, and 0 where only rounding makes it positive.

    keep: whether W⁺ or |W| is kept from one use to the next.
    constant: whether w is a constant, so that these are made in scratch memory.
    """

    def made() -> Tensor:
        out = borrow("magnitude", w) if constant else None
        return clamped(w, 1, out) if nonneg else torch.abs(w, out=out)

    magnitude = cache(made) if keep else made

    def give(s: Tensor) -> tuple[Tensor]:
        if nonneg:
            return (transposed(s, magnitude()),)
        return (add_product(transposed(s, w), x.sign(), transposed(s, magnitude())),)

    def total() -> Tensor:
        if nonneg:
            return forward(x, magnitude())
        size = forward(x.abs(), magnitude())
        both = size + z if bias is None else (size + z).sub_(bias)
        return keep_positive(both, size.mul_(-ROUNDING * torch.finfo(size.dtype).eps).add_(both))

    return Contributions(give, total, 2 if nonneg else 1)


def linear(z: Tensor, x: Tensor, w: Tensor, b: Tensor | None = None, *, nonneg: bool = False) -> Contributions:
    """Relevance goes to the positive contributions x_i w_ij > 0; the bias takes part in |z| only."""
    rows = rows_at_once(w)
    f, whole = torch.nn.functional.linear, len(w) <= rows
    parts = (w.split(rows), z.split(rows, -1), [None] * max(len(w), 1) if b is None else b.split(rows))
    pieces = [
        product(z, x, w, f, torch.matmul, nonneg, b, keep=whole, constant=True) for w, z, b in zip(*parts, strict=False)
    ]
    if whole:
        return pieces[0]

    def give(s: Tensor) -> tuple[Tensor]:
        given = (p.give(t)[0] for p, t in zip(pieces, s.split(rows, -1), strict=True))
        return (reduce(Tensor.add_, given),)

    return Contributions(give, lambda: torch.cat([p.total() for p in pieces], -1), pieces[0].factor)


def before(x: Tensor) -> Two:
    """(s, w) ↦ x's part of x @ w, summed over what x was broadcast along."""

    def transposed(s: Tensor, w: Tensor) -> Tensor:
        if w.ndim == 1:
            return s.unsqueeze(-1) * w
        return (s @ w.mT).sum_to_size(x.shape) if x.ndim > 1 else (s.unsqueeze(-2) @ w.mT).squeeze(-2)

    return transposed


def after(x: Tensor) -> Two:
    """(s, w) ↦ x's part of w @ x, summed over what x was broadcast along."""

    def transposed(s: Tensor, w: Tensor) -> Tensor:
        if x.ndim == 1:
            return (w.mT @ s.unsqueeze(-1)).squeeze(-1).sum_to_size(x.shape)
        return (w.mT @ s if w.ndim > 1 else w.unsqueeze(-1) * s.unsqueeze(-2)).sum_to_size(x.shape)

    return transposed


def right_weight(z: Tensor, x: Tensor, w: Tensor, *, nonneg: bool = False) -> Contributions:
    """x @ w with a constant w: as `linear`."""
    return product(z, x, w, torch.matmul, before(x), nonneg)


def left_weight(z: Tensor, w: Tensor, x: Tensor, *, nonneg: bool = False) -> Contributions:
    """w @ x with a constant w: as `linear`."""
    return product(z, x, w, lambda x, w: w @ x, after(x), nonneg)


def addmm(z: Tensor, b: Tensor, x: Tensor, w: Tensor, *, nonneg: bool = False, **_: object) -> Contributions:
    """b + x @ w with constant b, w: as `linear`."""
    return product(z if nonneg else x @ w, x, w, torch.matmul, before(x), nonneg)


def matmul(z: Tensor, x: Tensor, y: Tensor, *, nonneg: bool = False) -> Contributions:
    """A product of two activations: each gets the positive contributions, with the other as its weight. nonneg says
    that x ≥ 0, as attention weights are."""
    if nonneg:  # and so is y's weight: y⁺ alone contributes
        positive = y.clamp(min=0)

        def give(s: Tensor) -> tuple[Tensor, Tensor]:
            return before(x)(s, positive), where_positive(after(y)(s, x), y)

        return Contributions(give, lambda: (x @ positive).mul_(2), 2)
    to_x = product(z, x, y, torch.matmul, before(x))
    to_y = product(z, y, x, lambda y, x: x @ y, after(y))
    return Contributions(lambda s: (*to_x.give(s), *to_y.give(s)), lambda: to_x.total().mul_(2))


def grouped_mm(
    z: Tensor, x: Tensor, w: Tensor, offs: Tensor, *rest: object, op: Callable[..., Tensor], **kwargs: object
) -> Contributions:
    """Rows of x in groups, each with a weight of its own (experts): as `linear` for every group."""

    def forward(x: Tensor, w: Tensor) -> Tensor:
        return op(x, w, offs, *rest, **kwargs)

    return product(z, x, w, forward, lambda s, w: forward(s, w.mT))


def positive_sum(z: Tensor, x: Tensor, *rest: object, op: Callable[..., Tensor], **kwargs: object) -> Contributions:
    """A sum with weights ≥ 0 (a mean, a value read between pixels), R_x = 2 x⁺ ⊙ Jᵀs. Arguments that say where to read
    take nothing."""

    def give(s: Tensor) -> tuple[Tensor]:
        (d,) = vjp(lambda t: op(t, *rest, **kwargs), [x], s)
        return (where_positive(d, x),)

    return Contributions(give, lambda: op(x.clamp(min=0), *rest, **kwargs), 2)
