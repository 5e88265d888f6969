"""Kernels of absLRP for convolutions: products with weights (fast/products.py) in their own layout."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fxlrp.fast.contributions import Contributions
from fxlrp.fast.products import product
from fxlrp.ops import overloads

aten = torch.ops.aten

Sizes = int | Sequence[int]
"""An argument for every spatial axis, or one for each."""
Plain = tuple[Tensor, tuple, tuple[slice, ...]]
"""x, padded where torch pads one side more; the arguments (stride, padding, dilation, transposed, output_padding,
groups) of aten.convolution; and where x stands in what was padded."""


def _plain(n: int, x: Tensor, w: Tensor, stride: Sizes, padding: Sizes | str, dilation: Sizes, groups: int) -> Plain:
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
    n: int, x: Tensor, w: Tensor, stride: Sizes, padding: Sizes, output_padding: Sizes, groups: int, dilation: Sizes
) -> Plain:
    shape = [_tuple(v, n) for v in (stride, padding, dilation)]
    return x, (*shape, True, _tuple(output_padding, n), groups), ()


FEW = 16
"""The number of channels below which the vectors of a CPU are not filled."""


def _pull(
    s: Tensor,
    x: Tensor,
    w: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
    groups: int,
) -> Tensor:
    """Jᵀs of a convolution by x.

    Calls torch's own derivative, except where a CPU computes it several times slower than its products: windows that
    don't overlap are one product, and a stride over few channels is an ordinary convolution to more channels.
    """
    kernel = list(w.shape[2:])
    plain = not transposed and groups == 1 and max(dilation) == 1 and s.ndim == w.ndim
    if plain and not any(padding) and (kernel == stride or max(kernel) == 1):
        g = (w.flatten(1).t() @ s.flatten(2)).unflatten(2, s.shape[2:])
        return _fitted(_interleaved(g, kernel), x, padding) if kernel == stride else _apart(g, x, stride)
    if plain and w.shape[1] < FEW and max(stride) > 1:
        return _fitted(_interleaved(_phases(s, w, stride), stride), x, padding)
    arguments = (stride, padding, dilation, transposed, output_padding, groups)
    return aten.convolution_backward(s, x, w, None, *arguments, [True, False, False])[0]


def _phases(s: Tensor, w: Tensor, stride: list[int]) -> Tensor:
    """Jᵀs of a strided, unpadded convolution: every stride-th entry from the k-th on is the k-th of its channels."""
    n = len(stride)
    taps = [-(-k // d) for k, d in zip(w.shape[2:], stride, strict=True)]
    room = [m * d - k for m, d, k in zip(taps, stride, w.shape[2:], strict=True)]
    w = torch.nn.functional.pad(w, [side for r in reversed(room) for side in (0, r)])
    for i, (m, d) in enumerate(zip(taps, stride, strict=True)):
        w = w.unflatten(2 + 2 * i, (m, d))
    w = w.permute(1, *range(3, 3 + 2 * n, 2), 0, *range(2, 2 + 2 * n, 2)).flatten(0, n)
    ones = [1] * n
    return aten.convolution(s, w.flip(*range(2, 2 + n)), None, ones, [m - 1 for m in taps], ones, False, [0] * n, 1)


def _interleaved(t: Tensor, by: list[int]) -> Tensor:
    """[B, C · Π by, *size] → [B, C, *(size · by)], a pixel shuffle of any dimension."""
    n, size = len(by), t.shape[2:]
    if max(by) == 1:
        return t
    t = t.unflatten(1, (-1, *by)).permute(0, 1, *(d for i in range(n) for d in (2 + n + i, 2 + i)))
    return t.reshape(*t.shape[:2], *(a * b for a, b in zip(size, by, strict=True)))


def _apart(t: Tensor, x: Tensor, stride: list[int]) -> Tensor:
    """Spread t over every stride-th entry of a tensor shaped like x, which is 0 elsewhere."""
    for i, step in enumerate(stride, 2):
        sizes = [*t.shape[:i], x.shape[i], *t.shape[i + 1 :]]
        t = aten.slice_backward(t, sizes, i, 0, x.shape[i], step)
    return t


def _fitted(t: Tensor, x: Tensor, padding: list[int]) -> Tensor:
    """Cut t down to x, which was padded; add zeros for the last entries of x that no window reached."""
    if t.shape[2:] == x.shape[2:] and not any(padding):
        return t
    after = [n + p - m for m, n, p in zip(t.shape[2:], x.shape[2:], padding, strict=True)]
    sides = [side for p, a in zip(reversed(padding), reversed(after), strict=True) for side in (-p, a)]
    return torch.nn.functional.pad(t, sides)


def convolution(
    z: Tensor, x: Tensor, w: Tensor, b: Tensor | None = None, *rest: object, op: Callable, nonneg: bool = False
) -> Contributions:
    """A convolution: relevance goes to the positive contributions x_i w_ij > 0.  rest: its arguments after the bias."""
    n, plain, defaults = CONVOLUTIONS[op]
    x, arguments, inside = plain(n, x, w, *rest, *defaults[len(rest) :])

    def transposed(s: Tensor, w: Tensor) -> Tensor:
        return _pull(s, x, w, *arguments)

    def forward(x: Tensor, w: Tensor) -> Tensor:
        return aten.convolution(x, w, None, *arguments)

    bias = None if b is None else b.view(-1, *[1] * n)
    whole = product(z, x, w, forward, transposed, nonneg, bias, constant=True)
    return replace(whole, give=lambda s: (whole.give(s)[0][inside],)) if inside else whole


def transposed_of(op: Callable, x: Tensor, w: Tensor, *rest: object) -> Callable[[Tensor, Tensor], Tensor] | None:
    """(s, w) ↦ Jᵀs of a convolution of a batch by x, if op is one; rest: its arguments after the bias."""
    if op not in CONVOLUTIONS or x.ndim != w.ndim:
        return None
    n, plain, defaults = CONVOLUTIONS[op]
    padded, arguments, inside = plain(n, x, w, *rest, *defaults[len(rest) :])

    def transposed(s: Tensor, w: Tensor) -> Tensor:
        g = _pull(s, padded, w, *arguments)
        return g[inside] if inside else g

    return transposed


def _tuple(v: Sizes, n: int) -> list[int]:
    values = [v] if isinstance(v, int) else list(v)
    return values * n if len(values) == 1 else values


CONVOLUTIONS = {
    overload: (n, *form)
    for name, form in (("conv", (_plain, (1, 0, 1, 1))), ("conv_transpose", (_plain_transposed, (1, 0, 0, 1, 1))))
    for n in (1, 2, 3)
    for overload in overloads(getattr(aten, f"{name}{n}d"))
}
"""The number of axes of each convolution, the function that reads its arguments after the bias, and their defaults."""
