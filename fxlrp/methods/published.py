"""The rulebooks `abslrp-2024-04` and `abslrp-2024-12`: two versions of the authors' published code, to the letter.

The side effects of their modules, at reshapes, dropouts and picks of the class token, are in these tables alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from fxlrp.methods.abslrp import ABSLRP
from fxlrp.patterns.attention import expand_attention
from fxlrp.patterns.batch_norm import split_batch_norm
from fxlrp.patterns.dropout import skip_position_dropout
from fxlrp.patterns.projections import split_projections
from fxlrp.patterns.residual import Residual, join_branches
from fxlrp.rules import absolute
from fxlrp.rules.calculus import vjp
from fxlrp.rules.normalise import UNIT
from fxlrp.rules.quantities import Maybe, over_abs
from fxlrp.rules.registry import ABSOLUTE, Rule, Rulebook, publish, table

aten = torch.ops.aten


def max_pool_april(g: Tensor, z: Tensor, x: Tensor, *args: object) -> Tensor:
    """A maximum takes its window's relevance twice if it is positive, and none if it is negative."""
    return vjp(lambda t: aten.max_pool2d.default(t, *args), [x], (1 + z.sign()) * over_abs(g, z))[0]


APRIL = publish(
    ABSLRP.extend(
        table(
            # their reshapes have the default rule, which keeps what stands at positive entries
            (ABSOLUTE, aten.reshape, aten.view, aten.flatten, aten.select, aten.cat),
            (max_pool_april, aten.max_pool2d.default),
            # a position embedding takes its share, which is then lost
            (Rule(absolute.add, argnums=(0, 1)), (0,), aten.add.Tensor),
        ),
        name="abslrp-2024-04",
        doc="absLRP as in the authors' code of April 2024: mass kept by sign; reshapes drop negative entries",
        passes=(split_projections, expand_attention, split_batch_norm),
        seed="relevance",
    )
)


def by_definition(h: Callable[..., Tensor], h_abs: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The rule g = (J_h + J_h_abs)ᵀ s for a function and its absolute companion, by autograd.

    What is a constant of the method (a mean, a norm, a denominator) is detached inside h and h_abs.
    """

    def rule(g: Tensor, z: Tensor, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        s = over_abs(g, z)
        return vjp(lambda t: h(t, *args, **kwargs), [x], s)[0] + vjp(lambda t: h_abs(t, *args, **kwargs), [x], s)[0]

    rule.__name__ = h.__name__.strip("_")
    return rule


def _layer_norm(x: Tensor, shape: list[int], w: Maybe = None, b: Maybe = None, eps: float = 1e-5, *_: object) -> Tensor:
    dims = list(range(-len(shape), 0))
    variance, mean = torch.var_mean(x.detach(), dims, correction=0, keepdim=True)
    u = (x - mean) / (variance + eps).sqrt()
    u = u if w is None else u * w
    return u if b is None else u + b


def _layer_norm_abs(
    x: Tensor, shape: list[int], w: Maybe = None, b: Maybe = None, eps: float = 1e-5, *_: object
) -> Tensor:
    return _layer_norm(x.abs(), shape, None if w is None else w.abs(), b, eps)


def _softmax(x: Tensor, dim: int, *_: object) -> Tensor:
    top = x.detach().amax(dim, keepdim=True)
    e = (x - top).exp()
    return e / e.detach().sum(dim, keepdim=True)


def _softmax_abs(x: Tensor, dim: int, *_: object) -> Tensor:
    return _softmax(torch.where(x == -torch.inf, x, x.abs()), dim)  # a masked entry stays masked


def max_pool_december(
    g: Tensor, z: Tensor, x: Tensor, kernel: list[int], stride: Sequence[int] = (), *rest: object
) -> Tensor:
    """The maxima of x and of |x| in a window take its s; if windows do not overlap, its R, not divided by |z|."""
    apart = list(stride or kernel) == list(kernel)
    s = z * g if apart else over_abs(g, z)

    def pool(t: Tensor) -> Tensor:
        return aten.max_pool2d.default(t, kernel, list(stride), *rest)

    return vjp(pool, [x], s)[0] + x.sign() * vjp(pool, [x.abs()], s)[0]


def residual_december(
    g: Tensor, z: Tensor, x: Tensor, y: Tensor, *given: object, op: Residual
) -> tuple[Tensor, Tensor]:
    """A sum x + y of a branch x = f(y) and the shortcut y, as their code computes it: because autograd knows that x
    depends on y, y also gets x's cotangent, through the ordinary Jacobian of f."""
    s = over_abs(g, z)
    own = (1 + x.sign()) * s
    return own, (1 + y.sign()) * s + vjp(lambda t: op.body(t, *given), [y], own)[0]


@publish
def abslrp_2024_12(leak: float = 0) -> Rulebook:
    """absLRP as in the authors' code of December 2024: every input of every rule normalised to Σ|R| = 1; leak=1: to the
    letter, what their residual sums leak into the shortcut included"""
    join = partial(join_branches, instead={aten.layer_norm.default: _layer_norm, aten.softmax.int: _softmax})
    return ABSLRP.extend(
        table(
            # their dropouts, flattens, class-token picks and identities have the default rule
            (ABSOLUTE, aten.gelu.default, aten.dropout, aten.flatten, aten.select, aten.alias),
            (by_definition(_layer_norm, _layer_norm_abs), aten.layer_norm.default),
            (by_definition(_softmax, _softmax_abs), aten.softmax.int),
            (max_pool_december, aten.max_pool2d.default),
            (Rule(residual_december, argnums=(0, 1)), None, Residual),
        ),
        normalise=UNIT,
        passes=(expand_attention, skip_position_dropout, *([join] if leak else [])),
        seed="relevance",
        contrast_passes=2,
    )
