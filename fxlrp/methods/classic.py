"""The rulebooks of classic LRP: epsilon, zplus, alpha-beta, gamma, and the composites that mix them by layer.

Composites as in zennit (Anders et al. 2021): a rule for convolutions, ε for dense layers, at times one for the first
layer.  Everything else is common to them: sums and averages by ε, norms and activations passed through, ½ for each
factor of a product.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from fxlrp.capture.functions import Entrywise, Stepwise
from fxlrp.errors import FxlrpError
from fxlrp.ops import is_pointwise, of_kind
from fxlrp.patterns.centring import centred, offset
from fxlrp.patterns.elementwise import Elementwise, Gate
from fxlrp.patterns.first_layers import mark_first_layers
from fxlrp.patterns.masks import masked
from fxlrp.patterns.plain_form import PLAIN_FORM
from fxlrp.rules import passing, signed, weighted
from fxlrp.rules.normalise import NONE
from fxlrp.rules.registry import STRUCTURAL, STRUCTURAL_ENTRIES, Derivative, Entry, Key, Rule, Rulebook, publish, table
from fxlrp.rules.residual import ResidualSum
from fxlrp.rules.weighted import CONVOLVING, DENSE, AtInput, FirstLayer, Products, Weighted

aten = torch.ops.aten
PRODUCTS = (*CONVOLVING, *DENSE)
IMAGENET_LOW, IMAGENET_HIGH = -2.118, 2.640
"""The lowest and the highest value, in any channel, of pictures scaled by ImageNet's mean and standard deviation."""


def common(epsilon: float) -> Mapping[Key, Entry]:
    """The entries of ops without weights, the same in all signed methods."""
    by_contribution, half = signed.by_contribution(epsilon), signed.halves(epsilon)
    return {
        **STRUCTURAL_ENTRIES,
        **table(
            (
                by_contribution,
                aten.add,
                aten.sub,
                aten.rsub,
                aten.batch_norm,
                *of_kind("positive sum", "sum", "fourier"),
            ),
            (by_contribution, aten.grid_sampler, aten.grid_sampler_2d, "torchvision::roi_align"),
            (half, (0, 1), aten.mul, aten.multiply, aten.bilinear, *(op for _, ops in PRODUCTS for op in ops)),
            (Rule(passing.div, argnums=(0,)), (0, 1), aten.div.Tensor, aten.divide.Tensor),
            (Rule(passing.normaliser, argnums=()), aten.rsqrt.default, aten.reciprocal.default),
            (passing.rounding, *of_kind("step"), Stepwise),
            (signed.layer_norm, aten.layer_norm.default),
            (signed.group_norm, aten.group_norm.default),
            (signed.instance_norm, aten.instance_norm.default),
            (passing.rms_norm, aten.rms_norm.default),
            (
                STRUCTURAL,  # of the softmax: see fxlrp.rules.signed
                aten.softmax,
                aten.log_softmax,
                aten._softmax,
                aten.logsumexp,
                aten.var,
                aten.std,
                aten.prod,
                masked,
                centred,
            ),
            *((Rule(passing.offset, argnums=(0,)), at, offset) for at in ((0,), (0, 1))),
            *((signed.identity, op) for op in (*of_kind("activation"), aten.exp.default, Elementwise, Entrywise, Gate)),
            *((signed.identity, op) for op in of_kind("function") if is_pointwise(op)),
        ),
    }


def by_epsilon(ops: Products, epsilon: float) -> Iterator[tuple]:
    """Rows that give `ops` the ε-rule."""
    yield (signed.by_contribution(epsilon), *(op for _, packets in ops for op in packets))


def by_rule(ops: Products, rule: Callable[..., Tensor], **parameters: float) -> Iterator[tuple]:
    """Rows that give `ops` a rule of fxlrp.rules.weighted."""
    for places, packets in ops:
        yield (Weighted(rule, places, tuple(parameters.items())), (places[0],), *packets)


def at_input(rule: Callable[..., Tensor], **parameters: object) -> tuple:
    """The row that gives first layers a rule."""
    return (Rule(AtInput(rule, tuple(parameters.items())), argnums=(0,)), None, FirstLayer)


def residual_sums(gamma: float) -> Iterator[tuple]:
    """Rows that give sums of two tensors with relevance the rule of ResLRP, if γ > 0."""
    if gamma:
        yield (ResidualSum(gamma), (0, 1), aten.add.Tensor)
        yield (ResidualSum(gamma, (1, -1)), (0, 1), aten.sub.Tensor)
        yield (ResidualSum(gamma, (-1, 1), scaled=0), (0, 1), aten.rsub.Tensor)


def composite(*rows: tuple, epsilon: float, seed: str = "gradient") -> Rulebook:
    """A rulebook of `rows` and the entries common to the signed methods."""
    return Rulebook(
        "",
        "",
        {**common(epsilon), **table(*rows)},
        NONE,
        (*PLAIN_FORM, mark_first_layers) if any(FirstLayer in row for row in rows) else PLAIN_FORM,
        unknown=Derivative(signed.generic, (("epsilon", epsilon),)),
        seed=seed,
    )


@publish
def epsilon(epsilon: float = 1e-6) -> Rulebook:
    """LRP-ε at every layer: relevance by signed contribution."""
    return composite(*by_epsilon(PRODUCTS, epsilon), epsilon=epsilon)


@publish
def zplus(stabilizer: float = 1e-6) -> Rulebook:
    """LRP-z⁺ at every layer: positive contributions alone."""
    return composite(*by_rule(PRODUCTS, weighted.z_plus, stabilizer=stabilizer), epsilon=stabilizer, seed="relevance")


@publish
def alpha_beta(alpha: float = 2.0, beta: float = 1.0, stabilizer: float = 1e-6) -> Rulebook:
    """LRP-αβ at every layer: α parts of positive contributions, less β of negative ones; α − β = 1."""
    _check(alpha - beta == 1 and beta >= 0, f"alpha − beta must be 1 and beta ≥ 0, not alpha={alpha}, beta={beta}.")
    rows = by_rule(PRODUCTS, weighted.alpha_beta, alpha=alpha, beta=beta, stabilizer=stabilizer)
    return composite(*rows, epsilon=stabilizer, seed="relevance")


@publish
def gamma(gamma: float = 0.25, epsilon: float = 1e-6) -> Rulebook:
    """LRP-γ at every layer: contributions of the output's sign are favoured."""
    _check(gamma >= 0, f"gamma must be ≥ 0, not {gamma}.")
    return composite(*by_rule(PRODUCTS, weighted.gamma, gamma=gamma, stabilizer=epsilon), epsilon=epsilon)


@publish
def epsilon_plus(epsilon: float = 1e-6, stabilizer: float = 1e-6) -> Rulebook:
    """ε at dense layers, z⁺ at convolutions."""
    dense, convolutions = by_epsilon(DENSE, epsilon), by_rule(CONVOLVING, weighted.z_plus, stabilizer=stabilizer)
    return composite(*dense, *convolutions, epsilon=stabilizer)


@publish
def epsilon_plus_flat(epsilon: float = 1e-6, stabilizer: float = 1e-6) -> Rulebook:
    """ε at dense layers, z⁺ at convolutions, flat at the first layer."""
    dense, convolutions = by_epsilon(DENSE, epsilon), by_rule(CONVOLVING, weighted.z_plus, stabilizer=stabilizer)
    return composite(*dense, *convolutions, at_input(weighted.flat, stabilizer=stabilizer), epsilon=stabilizer)


@publish
def epsilon_gamma_box(
    gamma: float = 0.25,
    low: weighted.Bound = IMAGENET_LOW,
    high: weighted.Bound = IMAGENET_HIGH,
    epsilon: float = 1e-6,
    stabilizer: float = 1e-6,
) -> Rulebook:
    """ε at dense layers, γ at convolutions, zᴮ at the first layer, whose input lies between low and high."""
    dense = by_epsilon(DENSE, epsilon)
    convolutions = by_rule(CONVOLVING, weighted.gamma, gamma=gamma, stabilizer=stabilizer)
    first = at_input(weighted.z_box, low=low, high=high, stabilizer=stabilizer)
    return composite(*dense, *convolutions, first, epsilon=stabilizer)


@publish
def epsilon_alpha2_beta1(epsilon: float = 1e-6, stabilizer: float = 1e-6) -> Rulebook:
    """ε at dense layers, α2β1 at convolutions."""
    dense = by_epsilon(DENSE, epsilon)
    convolutions = by_rule(CONVOLVING, weighted.alpha_beta, alpha=2.0, beta=1.0, stabilizer=stabilizer)
    return composite(*dense, *convolutions, epsilon=stabilizer)


def _check(fine: bool, message: str) -> None:
    if not fine:
        raise FxlrpError(message)
