"""absLRP rules for products with weights (linear, convolution) and of two activations (matmul).

The published rule R_x = x ⊙ (Wᵀs) + |x| ⊙ (|W|ᵀs), s = R/|z|, keeps the positive contributions x_i w_ij > 0 twice:

    R_x = 2 [ x⁺ ⊙ (W⁺ᵀ s) + x⁻ ⊙ (W⁻ᵀ s) ]

so an input known to be ≥ 0 needs one product instead of two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from fxlrp.rules.generic import vjp
from fxlrp.rules.normalise import traits
from fxlrp.rules.quantities import over_abs, where_positive

aten = torch.ops.aten


def positive_contributions(
    s: Tensor, x: Tensor, w: Tensor, transposed: Callable[[Tensor, Tensor], Tensor], nonneg: bool = False
) -> Tensor:
    """Wᵀs + sign(x) ⊙ |W|ᵀs, which is 2 W⁺ᵀs where x > 0 and 2 W⁻ᵀs where x < 0; `transposed(s, w)` is Wᵀs, `nonneg`
    says that x ≥ 0."""
    if nonneg:
        return transposed(s, w.clamp(min=0)).mul_(2)
    return torch.addcmul(transposed(s, w), x.sign(), transposed(s, w.abs()))


def all_contributions(
    z: Tensor,
    x: Tensor,
    w: Tensor,
    product: Callable[[Tensor, Tensor], Tensor],
    nonneg: bool = False,
    bias: Tensor | None = None,
) -> Tensor:
    """Twice the positive contributions to each output, all the relevance that s = 1 there gives: those of
    z − b = product(x, w) and those of product(|x|, |w|); 0 where rounding alone says that there are any."""
    if nonneg:
        return product(x, w.clamp(min=0)).mul_(2)
    size = product(x.abs(), w.abs())
    total = size + z if bias is None else size + z - bias
    return where_positive(total, total - 16 * torch.finfo(size.dtype).eps * size)


LARGE = 2**22
"""How many entries of a weight W⁺ or |W| is made of at once: more are taken in pieces of the outputs they belong to."""


def _pieces(w: Tensor, *along: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Pieces of a weight [K, C], and of tensors [..., K] with them."""
    rows = max(LARGE // w.shape[1], 1)
    return zip(w.split(rows), *(t.split(rows, -1) for t in along), strict=True)


def _total_linear(z: Tensor, x: Tensor, w: Tensor, b: Tensor | None = None, *, nonneg: bool = False) -> Tensor:
    pieces = _pieces(w, z) if b is None else _pieces(w, z, b)
    f = torch.nn.functional.linear
    return torch.cat([all_contributions(z, x, w, f, nonneg, *bias) for w, z, *bias in pieces], -1)


@traits(total=_total_linear)
def linear(g: Tensor, z: Tensor, x: Tensor, w: Tensor, b: Tensor | None = None, *, nonneg: bool = False) -> Tensor:
    """Relevance goes to the positive contributions x_i w_ij > 0; the bias takes part in |z| only."""
    pieces = _pieces(w, over_abs(g, z))
    return reduce(Tensor.add_, (positive_contributions(s, x, w, torch.matmul, nonneg) for w, s in pieces))


def right(s: Tensor, x: Tensor, w: Tensor, nonneg: bool = False) -> Tensor:
    """x's part of x @ w, summed over what x was broadcast along."""

    def transposed(s: Tensor, w: Tensor) -> Tensor:
        if w.ndim == 1:
            return s.unsqueeze(-1) * w
        return (s @ w.mT).sum_to_size(x.shape) if x.ndim > 1 else (s.unsqueeze(-2) @ w.mT).squeeze(-2)

    return positive_contributions(s, x, w, transposed, nonneg)


def left(s: Tensor, w: Tensor, x: Tensor, nonneg: bool = False) -> Tensor:
    """x's part of w @ x, summed over what x was broadcast along."""

    def transposed(s: Tensor, w: Tensor) -> Tensor:
        if x.ndim == 1:
            return (w.mT @ s.unsqueeze(-1)).squeeze(-1).sum_to_size(x.shape)
        return (w.mT @ s if w.ndim > 1 else w.unsqueeze(-1) * s.unsqueeze(-2)).sum_to_size(x.shape)

    return positive_contributions(s, x, w, transposed, nonneg)


def _total_matmul(z: Tensor, x: Tensor, w: Tensor, *, nonneg: bool = False) -> Tensor:
    return all_contributions(z, x, w, torch.matmul, nonneg)


def _total_left(z: Tensor, w: Tensor, x: Tensor, *, nonneg: bool = False) -> Tensor:
    return all_contributions(z, x, w, lambda x, w: w @ x, nonneg)


def _total_both(z: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return 2 * _total_matmul(z, x, y)


@traits(total=_total_matmul)
def right_weight(g: Tensor, z: Tensor, x: Tensor, w: Tensor, *, nonneg: bool = False) -> Tensor:
    """x @ w with a constant w: as `linear`."""
    return right(over_abs(g, z), x, w, nonneg)


@traits(total=_total_left)
def left_weight(g: Tensor, z: Tensor, w: Tensor, x: Tensor, *, nonneg: bool = False) -> Tensor:
    """w @ x with a constant w: as `linear`."""
    return left(over_abs(g, z), w, x, nonneg)


def _total_addmm(z: Tensor, b: Tensor, x: Tensor, w: Tensor, *, nonneg: bool = False, **_: Any) -> Tensor:
    return _total_matmul(x @ w, x, w, nonneg=nonneg)


@traits(total=_total_addmm)
def addmm(g: Tensor, z: Tensor, b: Tensor, x: Tensor, w: Tensor, *, nonneg: bool = False, **_: Any) -> Tensor:
    """b + x @ w with constant b, w: as `linear`."""
    return right_weight(g, z, x, w, nonneg=nonneg)


@traits(total=_total_both)
def matmul(g: Tensor, z: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """A product of two activations: each gets the positive contributions, with the other as its weight."""
    s = over_abs(g, z)
    return right(s, x, y), left(s, x, y)


def _total_grouped(
    z: Tensor, x: Tensor, w: Tensor, offs: Tensor, *rest: Any, op: Callable[..., Tensor], **kwargs: Any
) -> Tensor:
    return all_contributions(z, x, w, lambda x, w: op(x, w, offs, *rest, **kwargs))


@traits(total=_total_grouped)
def grouped_mm(
    g: Tensor, z: Tensor, x: Tensor, w: Tensor, offs: Tensor, *rest: Any, op: Callable[..., Tensor], **kwargs: Any
) -> Tensor:
    """Rows of x in groups, each with a weight of its own (experts): as `linear` for every group."""
    return positive_contributions(over_abs(g, z), x, w, lambda s, w: op(s, w.mT, offs, *rest, **kwargs))


def _total_sum(z: Tensor, x: Tensor, *rest: Any, op: Callable[..., Tensor], **kwargs: Any) -> Tensor:
    return 2 * op(x.clamp(min=0), *rest, **kwargs)


@traits(total=_total_sum)
def positive_sum(g: Tensor, z: Tensor, x: Tensor, *rest: Any, op: Callable[..., Tensor], **kwargs: Any) -> Tensor:
    """A sum with weights ≥ 0 (a mean, a value read between pixels), R_x = 2 x⁺ ⊙ Jᵀs; what says where takes nothing."""
    (d,) = vjp(lambda t: op(t, *rest, **kwargs), [x], over_abs(g, z))
    return where_positive(2 * d, x)


Plain = tuple[Tensor, tuple, tuple[slice, ...]]
"""x, padded where torch pads one side more; the arguments (stride, padding, dilation, transposed, output_padding,
groups) of aten.convolution; and where x stands in what was padded."""


def _plain(n: int, x: Tensor, w: Tensor, stride: Any, padding: Any, dilation: Any, groups: int) -> Plain:
    stride, dilation = _tuple(stride, n), _tuple(dilation, n)
    inside: tuple[slice, ...] = ()
    if isinstance(padding, str):
        total = [d * (k - 1) * (padding == "same") for d, k in zip(dilation, w.shape[2:], strict=True)]
        odd = [p % 2 for p in total]
        if any(odd):  # torch pads one more on the right
            inside = tuple(slice(0, size) for size in x.shape)
            x = torch.nn.functional.pad(x, tuple(side for p in reversed(odd) for side in (0, p)))
        padding = [p // 2 for p in total]
    return x, (stride, _tuple(padding, n), dilation, False, [0] * n, groups), inside


def _plain_transposed(
    n: int, x: Tensor, w: Tensor, stride: Any, padding: Any, output_padding: Any, groups: int, dilation: Any
) -> Plain:
    shape = [_tuple(v, n) for v in (stride, padding, dilation)]
    return x, (*shape, True, _tuple(output_padding, n), groups), ()


def _convolution(name: str, n: int, plain: Callable[..., Plain], defaults: tuple) -> Callable[..., Tensor]:
    """The rule of a convolution whose further arguments `plain` reads, `defaults` if they are left out."""

    def total(z: Tensor, x: Tensor, w: Tensor, b: Tensor | None = None, *rest: Any, nonneg: bool = False) -> Tensor:
        x, arguments, _ = plain(n, x, w, *rest, *defaults[len(rest) :])
        bias = None if b is None else b.view(-1, *[1] * n)
        return all_contributions(z, x, w, lambda x, w: aten.convolution(x, w, None, *arguments), nonneg, bias)

    @traits(total=total)
    def rule(
        g: Tensor, z: Tensor, x: Tensor, w: Tensor, b: Tensor | None = None, *rest: Any, nonneg: bool = False
    ) -> Tensor:
        """A convolution: relevance goes to the positive contributions x_i w_ij > 0."""
        x, arguments, inside = plain(n, x, w, *rest, *defaults[len(rest) :])

        def transposed(s: Tensor, w: Tensor) -> Tensor:
            return aten.convolution_backward(s, x, w, None, *arguments, [True, False, False])[0]

        found = positive_contributions(over_abs(g, z), x, w, transposed, nonneg)
        return found[inside] if inside else found

    rule.__name__ = name
    return rule


def _tuple(v: Any, n: int) -> list[int]:
    values = [v] if isinstance(v, int) else list(v)
    return values * n if len(values) == 1 else values


conv1d, conv2d, conv3d = (_convolution(f"conv{n}d", n, _plain, (1, 0, 1, 1)) for n in (1, 2, 3))
conv_transpose1d, conv_transpose2d, conv_transpose3d = (
    _convolution(f"conv_transpose{n}d", n, _plain_transposed, (1, 0, 0, 1, 1)) for n in (1, 2, 3)
)
