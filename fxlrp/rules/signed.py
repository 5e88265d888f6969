"""Rules of the signed methods (classic LRP, AttnLRP, CP-LRP): calculus, but for what these hold constant or halve.

With R = a ⊙ g, the ε-rule of any linear op is its ordinary derivative at s = R / (z + ε sign z), and for ε → 0 at g.
Achtibat et al., "AttnLRP: Attention-Aware Layer-Wise Relevance Propagation for Transformers", ICML 2024.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fxlrp.rules.generic import vjp
from fxlrp.rules.quantities import by_parts
from fxlrp.rules.weighted import stabilized

aten = torch.ops.aten


def epsilon_rule(g: Tensor, z: Tensor, *, epsilon: float) -> Tensor:
    """s = R / (z + ε sign z): relevance by signed contribution, with ε taking what is too small."""
    return by_parts(lambda g, z: g * (z / stabilized(z, epsilon)), g, z) if epsilon else g


def uniform_rule(g: Tensor, z: Tensor, *, epsilon: float) -> Tensor:
    """The ε-rule of a product of two tensors that carry relevance: half for each (AttnLRP, the uniform rule)."""
    return epsilon_rule(g, z, epsilon=epsilon) / 2


def generic(g: Tensor, z: Tensor, *, epsilon: float) -> Tensor:
    """The ε-rule for an op of which nothing is known but its derivative."""
    return epsilon_rule(g, z, epsilon=epsilon)


def identity(g: Tensor, z: Tensor, x: Tensor, *rest: Any, op: Callable[..., Tensor], **kwargs: Any) -> Tensor:
    """A non-linearity passes R on, R_x = R (1 − f(0)/f(x)): what it gives for nothing, f(0), counts as a bias."""
    nothing = torch.zeros_like(x)
    f0 = op(nothing, *rest, **kwargs)
    f0 = torch.where(f0.isfinite(), f0, 0)
    (slope,) = vjp(lambda t: op(t, *rest, **kwargs), [nothing], g)
    return torch.where(x == 0, slope, g * (z - f0) / torch.where(x == 0, 1, x))


def standardized(x: Tensor, dims: list[int], eps: float) -> Tensor:
    """(x − mean) / σ with σ a constant, which makes it linear in x."""
    variance, mean = torch.var_mean(x, dims, correction=0, keepdim=True)
    return (x - mean) / (variance.detach() + eps).sqrt()


def constant_deviation(f: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The rule of a norm that is computed by f(x, …) with its deviation as a constant: R_x = x ⊙ Jᵀ g."""

    def rule(g: Tensor, z: Tensor, x: Tensor, *args: Any) -> Tensor:
        return vjp(lambda t: f(t, *args), [x], g)[0]

    rule.__name__ = f.__name__
    return rule


@constant_deviation
def layer_norm(
    x: Tensor, shape: list[int], w: Tensor | None = None, b: Any = None, eps: float = 1e-5, *_: Any
) -> Tensor:
    u = standardized(x, list(range(-len(shape), 0)), eps)
    return u if w is None else u * w


@constant_deviation
def group_norm(x: Tensor, groups: int, w: Tensor | None = None, b: Any = None, eps: float = 1e-5, *_: Any) -> Tensor:
    u = standardized(x.unflatten(1, (groups, -1)), list(range(2, x.ndim + 1)), eps).flatten(1, 2)
    return u if w is None else u * w.view(-1, *[1] * (x.ndim - 2))


@constant_deviation
def instance_norm(
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
    if not use_input_stats and var is not None:
        return torch.nn.functional.batch_norm(x, mean, var, w, b, False, momentum, eps)
    u = standardized(x, list(range(2, x.ndim)), eps)
    return u if w is None else u * w.view(-1, *[1] * (x.ndim - 2))
