"""Rules, the same in every method, that pass relevance on entry by entry, R_x = R; a divisor takes none.

AttnLRP (Achtibat et al. 2024), Proposition 3.4: what a norm divides by is a constant.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fxlrp.rules.quantities import Maybe


def keeps_relevance(rule: Callable) -> Callable:
    """Marks a rule that passes relevance on unchanged, R_x = R entry by entry, so that there is nothing to rescale."""
    vars(rule).update(keeps_relevance=True)
    return rule


@keeps_relevance
def div(g: Tensor, z: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """A quotient x / y of two activations, R_x = R: the denominator is a normaliser, as in a layer norm."""
    return g / y


def normaliser(g: Tensor, z: Tensor, x: Tensor) -> tuple[()]:
    """1/x and 1/√x: a divisor is a constant of the method and takes no relevance."""
    return ()


@keeps_relevance
def rms_norm(g: Tensor, z: Tensor, x: Tensor, shape: list[int], w: Maybe = None, eps: float | None = None) -> Tensor:
    """RMS norm with the root mean square as a constant: a scaling, R_x = R (as for its parts, where it is written
    out)."""
    dims = list(range(-len(shape), 0))
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    g = g * (x.square().mean(dims, keepdim=True) + eps).rsqrt()
    return g if w is None else g * w


def offset(g: Tensor, z: Tensor, x: Tensor, *_: object) -> Tensor:
    """x − max(x), and log-softmax, x − log Σ exp(x): g_x = g, with the shift of the logits as a constant, since it
    cancels in their softmax."""
    return g


@keeps_relevance
def rounding(g: Tensor, z: Tensor, x: Tensor, *_: object, **__: object) -> Tensor:
    """Rounding, quantising and other steps: R_x = R."""
    return g * (z / x).masked_fill_(x == 0, 0)
