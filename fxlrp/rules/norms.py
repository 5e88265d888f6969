"""absLRP rules for normalisations and softmax: what they divide by is a constant of the method."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from fxlrp.rules.contributions import ByContributions, Contributions, diagonal, keeps_relevance
from fxlrp.rules.quantities import where_positive

mixes_signs = partial(ByContributions, keeps_sign=False)
"""For rules by which relevance may change its sign: an x above its mean may be negative."""


def standardized(x: Tensor, u: Tensor, by: Tensor, w: Tensor | None) -> Contributions:
    """z = w u + b with u = (x − mean) by, mean and by = 1/σ constants: R_x = x ⊙ (w + sign(u) |w|) s by  (2024-04)."""
    w = u.new_ones(()) if w is None else w
    return diagonal(x, _doubled(w, u).mul_(by))


def _doubled(w: Tensor, u: Tensor) -> Tensor:
    """w + sign(u) |w|."""
    return (u.sign() * w.abs()).add_(w)


def deviation(x: Tensor, first: int, eps: float) -> tuple[Tensor, Tensor]:
    """u = (x − mean) / σ, and 1/σ, over the axes from `first` on."""
    u, _, by = torch.native_layer_norm(x, x.shape[first:], None, None, eps)
    return u, by.to(x.dtype)


@mixes_signs
def layer_norm(
    z: Tensor,
    x: Tensor,
    shape: list[int],
    w: Tensor | None = None,
    b: Any = None,
    eps: float = 1e-5,
    *_: Any,
) -> Contributions:
    """Layer norm with mean and deviation as constants: R_x = x ⊙ (w + sign(u) |w|) s / σ."""
    return standardized(x, *deviation(x, x.ndim - len(shape), eps), w)


@mixes_signs
def group_norm(
    z: Tensor, x: Tensor, groups: int, w: Tensor | None = None, b: Any = None, eps: float = 1e-5, *_: Any
) -> Contributions:
    """Group norm: as layer norm, over each group of channels."""
    u, by = deviation(x.unflatten(1, (groups, -1)), 2, eps)
    return standardized(x, u.flatten(1, 2), by.expand_as(u).flatten(1, 2), per_channel(w, x))


@mixes_signs
def instance_norm(
    z: Tensor,
    x: Tensor,
    w: Tensor | None,
    b: Any,
    mean: Tensor | None,
    var: Tensor | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    *_: Any,
) -> Contributions:
    """Instance norm: as layer norm, over each channel."""
    if not use_input_stats and var is not None:
        return _affine(x, norm_scale(w, var, eps))
    return standardized(x, *deviation(x, 2, eps), per_channel(w, x))


@keeps_relevance
def rms_norm(
    g: Tensor, z: Tensor, x: Tensor, shape: list[int], w: Tensor | None = None, eps: float | None = None
) -> Tensor:
    """RMS norm with the root mean square as a constant: a scaling, which leaves R as it is (so do its parts)."""
    dims = list(range(-len(shape), 0))
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    g = g * (x.square().mean(dims, keepdim=True) + eps).rsqrt()
    return g if w is None else g * w


@mixes_signs
def centred(z: Tensor, x: Tensor, mean: Tensor) -> Contributions:
    """x − mean(x) with the mean as a constant, as in a layer norm with γ > 0: R_x = 2 x u⁺ s / u, u = x − mean."""
    return Contributions(lambda s: (where_positive(s, z),), lambda: where_positive(x.abs(), z), 2)


def offset(g: Tensor, z: Tensor, x: Tensor, top: Tensor) -> Tensor:
    """x − max(x): what shifts the logits of a softmax cancels from it, R_x = x g."""
    return g


@ByContributions
def batch_norm(
    z: Tensor,
    x: Tensor,
    w: Tensor | None,
    b: Any,
    mean: Tensor | None,
    var: Tensor,
    training: bool,
    momentum: float,
    eps: float,
    *_: Any,
) -> Contributions:
    """A batch norm with no product before it to fold into: one affine op, R_x = 2 (γx)⁺ s / √(v + ε)."""
    return _affine(x, norm_scale(w, var, eps))


def _affine(x: Tensor, scale: Tensor) -> Contributions:
    return diagonal(x, _doubled(per_channel(scale, x), x))


def norm_scale(w: Tensor | None, var: Tensor, eps: float) -> Tensor:
    """γ / √(v + ε), a factor per channel."""
    scale = (var + eps).rsqrt()
    return scale if w is None else w * scale


def per_channel(w: Tensor | None, x: Tensor) -> Any:
    return None if w is None else w.view(-1, *[1] * (x.ndim - 2))


@mixes_signs
def softmax(z: Tensor, x: Tensor, dim: int, dtype: Any = None, *_: Any) -> Contributions:
    """Softmax with the denominator as a constant: R_x = 2 x z s, with the sign of the logit."""
    return diagonal(x, z, 2)
