"""Rules of the signed methods (classic LRP, AttnLRP, CP-LRP): derivatives, with some values held constant, some halved.

With R = a ⊙ g, the ε-rule of any linear op is its ordinary derivative at s = R / (z + ε sign z), and for ε → 0 at g.
Achtibat et al., "AttnLRP: Attention-Aware Layer-Wise Relevance Propagation for Transformers", ICML 2024.
Its rule of the softmax, R_i = x_i (R_i − z_i Σ_j R_j) (Proposition 3.1), is the ordinary derivative too: it has no
function here.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fxlrp.rules.absolute import norm_scale, per_channel, standardize
from fxlrp.rules.calculus import vjp
from fxlrp.rules.quantities import Maybe, by_parts
from fxlrp.rules.registry import Derivative, ScaledDerivative
from fxlrp.rules.weighted import stabilized

aten = torch.ops.aten


def epsilon_rule(g: Tensor, z: Tensor, *, epsilon: float) -> Tensor:
    """The ε-rule (Bach et al. 2015, eq. 58; AttnLRP, eq. 8), s = R / (z + ε sign z) = g z / (z + ε sign z): ε takes
    relevance where |z| is small."""
    return by_parts(lambda g, z: g * (z / stabilized(z, epsilon)), g, z) if epsilon else g


def uniform_rule(g: Tensor, z: Tensor, *, epsilon: float) -> Tensor:
    """The ε-rule of a product of two tensors that carry relevance, half for each (AttnLRP, Propositions 3.2 and
    3.3)."""
    return epsilon_rule(g, z, epsilon=epsilon) / 2


def by_contribution(epsilon: float) -> Derivative | ScaledDerivative:
    """The ε-rule."""
    return Derivative(epsilon_rule, (("epsilon", epsilon),)) if epsilon else ScaledDerivative("epsilon_rule")


def halves(epsilon: float) -> Derivative | ScaledDerivative:
    """The uniform rule."""
    exact = ScaledDerivative("uniform_rule", (1 / 2, 1 / 2))
    return Derivative(uniform_rule, (("epsilon", epsilon),)) if epsilon else exact


ATTENTION_FACTORS = ScaledDerivative("attention", (1 / 4, 1 / 4, 1 / 2))
"""softmax(q kᵀ) v in one op: v gets ½ of the second product; the other ½ goes through the softmax, by its derivative
(AttnLRP, Proposition 3.1), to the first product, whose factors q and k get half of it each."""


def generic(g: Tensor, z: Tensor, *, epsilon: float) -> Tensor:
    """The ε-rule, for an op without an entry."""
    return epsilon_rule(g, z, epsilon=epsilon)


def attention_to_values(
    g: Tensor, z: Tensor, q: Tensor, k: Tensor, v: Tensor, *rest: object, op: Callable[..., Tensor], **kwargs: object
) -> Tensor:
    """softmax(q kᵀ) v with the softmax as constant weights, as in CP-LRP."""
    return vjp(lambda v: op(q, k, v, *rest, **kwargs), [v], g)[0]


def identity(g: Tensor, z: Tensor, x: Tensor, *rest: object, op: Callable[..., Tensor], **kwargs: object) -> Tensor:
    """The identity rule (AttnLRP, eq. 9) of a function f, entry by entry: R_x = R (1 − f(0)/f(x)), as f(0) is a
    bias."""
    nothing = torch.zeros_like(x)
    f0 = op(nothing, *rest, **kwargs)
    slope = vjp(lambda t: op(t, *rest, **kwargs), [nothing], torch.ones_like(x))[0]
    return torch.where(x == 0, slope, (z - torch.where(f0.isfinite(), f0, 0)) / x) * g


def standardized(g: Tensor, x: Tensor, first: int, eps: float) -> Tensor:
    """Jᵀg of (x − mean) / σ over the axes from `first` on, with σ a constant, which makes it linear in x."""
    g = g / standardize(x, first, eps)[1]
    return g - g.mean(list(range(first, x.ndim)), keepdim=True)


def layer_norm(
    g: Tensor, z: Tensor, x: Tensor, shape: list[int], w: Maybe = None, b: Maybe = None, eps: float = 1e-5, *_: object
) -> Tensor:
    """Layer norm with its deviation as a constant (AttnLRP, Proposition 3.4): R_x = x ⊙ Jᵀ g."""
    return standardized(g if w is None else g * w, x, x.ndim - len(shape), eps)


def group_norm(
    g: Tensor, z: Tensor, x: Tensor, groups: int, w: Maybe = None, b: Maybe = None, eps: float = 1e-5, *_: object
) -> Tensor:
    """Group norm: as layer norm, over each group of channels."""
    g, x = ((t.unflatten(1, (groups, -1))) for t in (g if w is None else g * per_channel(w, x), x))
    return standardized(g, x, 2, eps).flatten(1, 2)


def instance_norm(
    g: Tensor,
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
) -> Tensor:
    """Instance norm: as layer norm, over each channel; with running statistics, a scaling."""
    if not use_input_stats and var is not None:
        return g * per_channel(norm_scale(w, var, eps), x)
    return standardized(g if w is None else g * per_channel(w, x), x, 2, eps)
