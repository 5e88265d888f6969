"""Quantities that rules are written in: s = R / |z|, relevance where something is positive, ratios, complex numbers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Maybe = Tensor | None
"""An argument that may be left out, such as a bias."""


def as_pair(t: Tensor) -> Tensor:
    """A complex tensor as the real one it is made of, with one more axis of two; a real one as it is."""
    return torch.view_as_real(t.resolve_conj()) if t.is_complex() else t


def by_parts(f: Callable[..., Tensor], *ts: Tensor) -> Tensor:
    """f of the real and the imaginary parts of complex tensors, each apart; f itself of real ones."""
    out = f(*map(as_pair, ts))
    return torch.view_as_complex(out) if ts[0].is_complex() else out


def over_abs(g: Tensor, z: Tensor) -> Tensor:
    """s = R / |z| = sign(z) g, with s = 0 where z = 0."""
    return by_parts(lambda g, z: z.sign() * g, g, z)


def where_positive(g: Tensor, x: Tensor) -> Tensor:
    """g where x > 0, else 0: the backward pass of a ReLU, which is one pass over memory."""
    return torch.ops.aten.threshold_backward.default(g, x, 0)


def clamped(t: Tensor, sign: int) -> Tensor:
    """t⁺ or t⁻, of a sparse tensor too."""
    if t.layout is not torch.strided:
        return t.relu() if sign > 0 else -(-t).relu()
    return t.clamp(min=0) if sign > 0 else t.clamp(max=0)


def ratio(a: Tensor, b: Tensor) -> Tensor:
    """a / b, or 0 where b is (nearly) 0: relevance that nothing can take is dropped."""
    least = torch.finfo(b.dtype).tiny * (1 if b.dtype == torch.float16 else 1e8)  # below it, a / b may overflow
    return torch.ops.aten.threshold_backward.default(a / b, b.abs(), least)


ROUNDING = 16
"""The error of a sum of terms that cancel, in units of rounding."""


def placeable(mass: Tensor, offered: Tensor) -> Tensor:
    """The mass that a rule can place: all of it, or 0 where what the rule offers is only rounding error."""
    return mass.where(offered > ROUNDING * torch.finfo(mass.dtype).eps * mass, 0)


def relevance(a: Tensor, g: Tensor, masked: bool = False) -> Tensor:
    """R = a ⊙ g; where `masked`, a may be infinite (a masked logit) and R is 0 wherever g is."""
    r = a * g
    return r.masked_fill_(g == 0, 0) if masked else r
