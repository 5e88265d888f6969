"""Rules of the signed methods (classic LRP, AttnLRP, CP-LRP): calculus, but for what these hold constant or halve.

With R = a ⊙ g, the ε-rule of any linear op is its ordinary derivative at s = R / (z + ε sign z), and for ε → 0 at g.
Achtibat et al., "AttnLRP: Attention-Aware Layer-Wise Relevance Propagation for Transformers", ICML 2024.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fxlrp.rules.absolute import norm_scale, per_channel, standardize
from fxlrp.rules.calculus import vjp
from fxlrp.rules.quantities import by_parts
from fxlrp.rules.registry import Derivative, Parts
from fxlrp.rules.weighted import stabilized

aten = torch.ops.aten


def epsilon_rule(g: Tensor, z: Tensor, *, epsilon: float) -> Tensor:
    """s = R / (z + ε sign z): relevance by signed contribution, with ε taking what is too small."""
    return by_parts(lambda g, z: g * (z / stabilized(z, epsilon)), g, z) if epsilon else g


def uniform_rule(g: Tensor, z: Tensor, *, epsilon: float) -> Tensor:
    """The ε-rule of a product of two tensors that carry relevance: half for each (AttnLRP, the uniform rule)."""
    return epsilon_rule(g, z, epsilon=epsilon) / 2


def by_contribution(epsilon: float) -> Derivative | Parts:
    """The ε-rule."""
    return Derivative(epsilon_rule, (("epsilon", epsilon),)) if epsilon else Parts("epsilon_rule")


def halves(epsilon: float) -> Derivative | Parts:
    """The uniform rule."""
    return Derivative(uniform_rule, (("epsilon", epsilon),)) if epsilon else Parts("uniform_rule", (1 / 2, 1 / 2))


ATTENTION = Parts("attention", (1 / 4, 1 / 4, 1 / 2))
"""softmax(q kᵀ) v by its derivative, which is the softmax's Taylor expansion, and the uniform rule for two products."""


def generic(g: Tensor, z: Tensor, *, epsilon: float) -> Tensor:
    """The ε-rule for an op of which nothing is known but its derivative."""
    return epsilon_rule(g, z, epsilon=epsilon)


def attention_to_values(
    g: Tensor, z: Tensor, q: Tensor, k: Tensor, v: Tensor, *rest: object, op: Callable[..., Tensor], **kwargs: object
) -> Tensor:
    """softmax(q kᵀ) v with constant weights."""
    return vjp(lambda v: op(q, k, v, *rest, **kwargs), [v], g)[0]


def identity(g: Tensor, z: Tensor, x: Tensor, *rest: object, op: Callable[..., Tensor], **kwargs: object) -> Tensor:
    """A non-linearity passes R on, R_x = R (1 − f(0)/f(x)): what it gives for nothing, f(0), counts as a bias."""
    nothing = torch.zeros_like(x)
    f0 = op(nothing, *rest, **kwargs)
    slope = vjp(lambda t: op(t, *rest, **kwargs), [nothing], torch.ones_like(x))[0]
    return torch.where(x == 0, slope, (z - torch.where(f0.isfinite(), f0, 0)) / x) * g


def standardized(g: Tensor, x: Tensor, first: int, eps: float) -> Tensor:
    """Jᵀg of (x − mean) / σ over the axes from `first` on, with σ a constant, which makes it linear in x."""
    g = g / standardize(x, first, eps)[1]
    return g - g.mean(list(range(first, x.ndim)), keepdim=True)


def layer_norm(
    g: Tensor,
    z: Tensor,
    x: Tensor,
    shape: list[int],
    w: Tensor | None = None,
    b: Tensor | None = None,
    eps: float = 1e-5,
    *_: object,
) -> Tensor:
    """Layer norm with its deviation as a constant, R_x = x ⊙ Jᵀ g; the other norms likewise."""
    return standardized(g if w is None else g * w, x, x.ndim - len(shape), eps)


def group_norm(
    g: Tensor,
    z: Tensor,
    x: Tensor,
    groups: int,
    w: Tensor | None = None,
    b: Tensor | None = None,
    eps: float = 1e-5,
    *_: object,
) -> Tensor:
    g, x = ((t.unflatten(1, (groups, -1))) for t in (g if w is None else g * per_channel(w, x), x))
    return standardized(g, x, 2, eps).flatten(1, 2)


def instance_norm(
    g: Tensor,
    z: Tensor,
    x: Tensor,
    w: Tensor | None,
    b: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    *_: object,
) -> Tensor:
    if not use_input_stats and var is not None:
        return g * per_channel(norm_scale(w, var, eps), x)
    return standardized(g if w is None else g * per_channel(w, x), x, 2, eps)
