"""absLRP rules for normalisations and softmax: what they divide by is a constant of the method."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fxlrp.rules.normalise import traits
from fxlrp.rules.products import positive_contributions
from fxlrp.rules.quantities import over_abs, where_positive


def standardized(g: Tensor, z: Tensor, centred: Tensor, sigma: Tensor, w: Tensor | None) -> Tensor:
    """z = w u + b with u = centred / σ, mean and σ constants: R_x = x ⊙ (w + sign(u) |w|) s / σ   (2024-04)."""
    s = over_abs(g, z)
    w = torch.ones_like(centred) if w is None else w
    return (w + centred.sign() * w.abs()) * s / sigma


def _deviation(x: Tensor, dims: list[int], eps: float) -> tuple[Tensor, Tensor]:
    """x less its mean, and the standard deviation, over `dims`."""
    variance, mean = torch.var_mean(x, dims, correction=0, keepdim=True)
    return x - mean, (variance + eps).sqrt()


@traits(entrywise=True)
def layer_norm(
    g: Tensor,
    z: Tensor,
    x: Tensor,
    shape: list[int],
    w: Tensor | None = None,
    b: Any = None,
    eps: float = 1e-5,
    *_: Any,
) -> Tensor:
    """Layer norm with mean and deviation as constants: R_x = x ⊙ (w + sign(u) |w|) s / σ."""
    return standardized(g, z, *_deviation(x, list(range(-len(shape), 0)), eps), w)


@traits(entrywise=True)
def group_norm(
    g: Tensor, z: Tensor, x: Tensor, groups: int, w: Tensor | None = None, b: Any = None, eps: float = 1e-5, *_: Any
) -> Tensor:
    """Group norm: as layer norm, over each group of channels."""
    centred, sigma = _deviation(x.unflatten(1, (groups, -1)), list(range(2, x.ndim + 1)), eps)
    sigma = sigma.expand_as(centred).flatten(1, 2)
    return standardized(g, z, centred.flatten(1, 2), sigma, _per_channel(w, x))


@traits(entrywise=True)
def instance_norm(
    g: Tensor,
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
) -> Tensor:
    """Instance norm: as layer norm, over each channel."""
    if not use_input_stats and var is not None:
        return batch_norm(g, z, x, w, b, mean, var, False, momentum, eps)
    return standardized(g, z, *_deviation(x, list(range(2, x.ndim)), eps), _per_channel(w, x))


@traits(entrywise=True, keeps_sign=True)
def rms_norm(
    g: Tensor, z: Tensor, x: Tensor, shape: list[int], w: Tensor | None = None, eps: float | None = None
) -> Tensor:
    """RMS norm with the root mean square as a constant: a scaling, which leaves R as it is (so do its parts)."""
    dims = list(range(-len(shape), 0))
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    g = g * (x.square().mean(dims, keepdim=True) + eps).rsqrt()
    return g if w is None else g * w


@traits(entrywise=True)
def centred(g: Tensor, z: Tensor, x: Tensor, mean: Tensor) -> Tensor:
    """x − mean(x) with the mean as a constant, as in a layer norm with γ > 0: R_x = 2 x u⁺ s / u, u = x − mean."""
    return where_positive(2 * g, z)


@traits(entrywise=True)
def offset(g: Tensor, z: Tensor, x: Tensor, top: Tensor) -> Tensor:
    """x − max(x): what shifts the logits of a softmax cancels from it, R_x = x g."""
    return g


@traits(entrywise=True, keeps_sign=True)
def batch_norm(
    g: Tensor,
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
) -> Tensor:
    """A batch norm with no product before it to fold into: one affine op, R_x = 2 (γx)⁺ s / √(v + ε)."""
    scale = _per_channel(norm_scale(w, var, eps), x)
    return positive_contributions(over_abs(g, z), x, scale, torch.mul)


def norm_scale(w: Tensor | None, var: Tensor, eps: float) -> Tensor:
    """γ / √(v + ε), a factor per channel."""
    scale = (var + eps).rsqrt()
    return scale if w is None else w * scale


def _per_channel(w: Tensor | None, x: Tensor) -> Any:
    return None if w is None else w.view(-1, *[1] * (x.ndim - 2))


@traits(entrywise=True)
def softmax(g: Tensor, z: Tensor, x: Tensor, dim: int, dtype: Any = None, *_: Any) -> Tensor:
    """Softmax with the denominator as a constant: R_x = 2 x z s, with the sign of the logit."""
    return 2 * z * over_abs(g, z)
