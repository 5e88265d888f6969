"""absLRP rules for products with weights (linear, convolution) and of two activations (matmul).

The published rule R_x = x ⊙ (Wᵀs) + |x| ⊙ (|W|ᵀs), s = R/|z|, keeps the positive contributions x_i w_ij > 0 twice:

    R_x = 2 [ x⁺ ⊙ (W⁺ᵀ s) + x⁻ ⊙ (W⁻ᵀ s) ]

so an input known to be ≥ 0 needs one product instead of two.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fxlrp.rules.generic import vjp
from fxlrp.rules.propagate import over_abs, where_positive

aten = torch.ops.aten


def positive_contributions(
    s: Tensor, x: Tensor, w: Tensor, transposed: Callable[[Tensor, Tensor], Tensor], nonneg: bool = False
) -> Tensor:
    """2 W⁺ᵀs where x > 0 and 2 W⁻ᵀs where x < 0; `transposed(s, w)` is Wᵀs, `nonneg` says that x ≥ 0."""
    plus = transposed(s, w.clamp(min=0)).mul_(2)
    return plus if nonneg else torch.where(x > 0, plus, transposed(s, w.clamp(max=0)).mul_(2))


def linear(g: Tensor, z: Tensor, x: Tensor, w: Tensor, b: Tensor | None = None, *, nonneg: bool = False) -> Tensor:
    """Relevance goes to the positive contributions x_i w_ij > 0; the bias takes part in |z| only."""
    return positive_contributions(over_abs(g, z), x, w, torch.matmul, nonneg)


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


def right_weight(g: Tensor, z: Tensor, x: Tensor, w: Tensor, *, nonneg: bool = False) -> Tensor:
    """x @ w with a constant w: as `linear`."""
    return right(over_abs(g, z), x, w, nonneg)


def left_weight(g: Tensor, z: Tensor, w: Tensor, x: Tensor, *, nonneg: bool = False) -> Tensor:
    """w @ x with a constant w: as `linear`."""
    return left(over_abs(g, z), w, x, nonneg)


def addmm(g: Tensor, z: Tensor, b: Tensor, x: Tensor, w: Tensor, *, nonneg: bool = False, **_: Any) -> Tensor:
    """b + x @ w with constant b, w: as `linear`."""
    return right_weight(g, z, x, w, nonneg=nonneg)


def matmul(g: Tensor, z: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """A product of two activations: each gets the positive contributions, with the other as its weight."""
    s = over_abs(g, z)
    return right(s, x, y), left(s, x, y)


def grouped_mm(
    g: Tensor, z: Tensor, x: Tensor, w: Tensor, offs: Tensor, *rest: Any, op: Callable[..., Tensor], **kwargs: Any
) -> Tensor:
    """Rows of x in groups, each with a weight of its own (experts): as `linear` for every group."""
    return positive_contributions(over_abs(g, z), x, w, lambda s, w: op(s, w.mT, offs, *rest, **kwargs))


def read_between(g: Tensor, z: Tensor, x: Tensor, *where: Any, op: Callable[..., Tensor], **kwargs: Any) -> Tensor:
    """Values read at places between pixels: a sum with weights ≥ 0; the places are addresses and take nothing."""
    (d,) = vjp(lambda t: op(t, *where, **kwargs), [x], over_abs(g, z))
    return where_positive(2 * d, x)


def convolution(g: Tensor, z: Tensor, x: Tensor, w: Tensor, arguments: tuple, nonneg: bool) -> Tensor:
    """Any convolution; arguments are (stride, padding, dilation, transposed, output_padding, groups)."""

    def transposed(s: Tensor, w: Tensor) -> Tensor:
        return aten.convolution_backward(s, x, w, None, *arguments, [True, False, False])[0]

    return positive_contributions(over_abs(g, z), x, w, transposed, nonneg)


def _conv(n: int) -> Callable[..., Tensor]:
    def conv(
        g: Tensor,
        z: Tensor,
        x: Tensor,
        w: Tensor,
        b: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
        *,
        nonneg: bool = False,
    ) -> Tensor:
        """A convolution: relevance goes to the positive contributions x_i w_ij > 0."""
        stride, dilation = _tuple(stride, n), _tuple(dilation, n)
        if isinstance(padding, str):
            total = [d * (k - 1) * (padding == "same") for d, k in zip(dilation, w.shape[2:], strict=True)]
            odd = [p % 2 for p in total]
            if any(odd):  # torch pads one more on the right
                one = tuple(side for p in reversed(odd) for side in (0, p))
                rest = [p // 2 for p in total]
                g = conv(g, z, torch.nn.functional.pad(x, one), w, None, stride, rest, dilation, groups, nonneg=nonneg)
                return g[tuple(slice(0, size) for size in x.shape)]
            padding = [p // 2 for p in total]
        arguments = (stride, _tuple(padding, n), dilation, False, [0] * n, groups)
        return convolution(g, z, x, w, arguments, nonneg)

    conv.__name__ = f"conv{n}d"
    return conv


def _conv_transpose(n: int) -> Callable[..., Tensor]:
    def conv_transpose(
        g: Tensor,
        z: Tensor,
        x: Tensor,
        w: Tensor,
        b: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        output_padding: Any = 0,
        groups: int = 1,
        dilation: Any = 1,
        *,
        nonneg: bool = False,
    ) -> Tensor:
        """A transposed convolution: relevance goes to the positive contributions."""
        shape = [_tuple(v, n) for v in (stride, padding, dilation)]
        arguments = (*shape, True, _tuple(output_padding, n), groups)
        return convolution(g, z, x, w, arguments, nonneg)

    conv_transpose.__name__ = f"conv_transpose{n}d"
    return conv_transpose


def _tuple(v: Any, n: int) -> list[int]:
    values = [v] if isinstance(v, int) else list(v)
    return values * n if len(values) == 1 else values


conv1d, conv2d, conv3d = map(_conv, (1, 2, 3))
conv_transpose1d, conv_transpose2d, conv_transpose3d = map(_conv_transpose, (1, 2, 3))
