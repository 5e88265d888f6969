"""Kernels of absLRP for normalisations and softmax, and of the signed methods for layer norm."""

from __future__ import annotations

import torch
from torch import Tensor

from fxlrp.fast.contributions import Contributions, diagonal, entrywise
from fxlrp.fast.memory import less
from fxlrp.rules import absolute
from fxlrp.rules.absolute import per_channel
from fxlrp.rules.quantities import Maybe


def standardized(x: Tensor, u: Tensor, by: Tensor, w: Maybe) -> Contributions:
    """The rule of z = w u + b, u = (x − mean) · by, with mean and by = 1/σ constants: R_x = x ⊙ (w + sign(u) |w|) s by
    (2024-04)."""
    w = u.new_ones(()) if w is None else w
    return diagonal(x, (u.sign() * w.abs()).add_(w).mul_(by))


def deviation(x: Tensor, first: int, eps: float) -> tuple[Tensor, Tensor]:
    """u = (x − mean) / σ, and 1/σ, over the axes from `first` on."""
    u, _, by = torch.native_layer_norm(x, x.shape[first:], None, None, eps)
    return u, by.to(x.dtype)


def layer_norm(
    z: Tensor, x: Tensor, shape: list[int], w: Maybe = None, b: Maybe = None, eps: float = 1e-5, *_: object
) -> Contributions:
    """Layer norm with mean and deviation as constants: R_x = x ⊙ (w + sign(u) |w|) s / σ."""
    return standardized(x, *deviation(x, x.ndim - len(shape), eps), w)


def group_norm(
    z: Tensor, x: Tensor, groups: int, w: Maybe = None, b: Maybe = None, eps: float = 1e-5, *_: object
) -> Contributions:
    """Group norm: as layer norm, over each group of channels."""
    u, by = deviation(x.unflatten(1, (groups, -1)), 2, eps)
    return standardized(x, u.flatten(1, 2), by.expand_as(u).flatten(1, 2), w if w is None else per_channel(w, x))


by_formula = entrywise(absolute.instance_norm)


def instance_norm(
    z: Tensor,
    x: Tensor,
    w: Maybe,
    b: Maybe,
    mean: Maybe,
    var: Maybe,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    *_: object,
) -> Contributions:
    """Instance norm: as layer norm, over each channel."""
    if not use_input_stats and var is not None:
        return by_formula(z, x, w, b, mean, var, use_input_stats, momentum, eps)
    return standardized(x, *deviation(x, 2, eps), w if w is None else per_channel(w, x))


def softmax(z: Tensor, x: Tensor, dim: int, dtype: torch.dtype | None = None, *_: object) -> Contributions:
    """Softmax with the denominator as a constant: R_x = 2 x z s, with the sign of the logit."""
    return diagonal(x, z, 2)


def signed_layer_norm(
    g: Tensor, z: Tensor, x: Tensor, shape: list[int], w: Maybe = None, b: Maybe = None, eps: float = 1e-5, *_: object
) -> Tensor:
    """Jᵀg of a layer norm with its deviation as a constant, as the signed methods have it."""
    g = (g if w is None else g * w) * deviation(x, x.ndim - len(shape), eps)[1]
    return less(g, g.mean(list(range(-len(shape), 0)), keepdim=True))
