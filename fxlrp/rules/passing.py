"""Rules by which relevance is passed on as it came, entry by entry, whatever the method: what divides takes nothing."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def keeps_relevance(rule: Callable) -> Callable:
    """Says of a rule that relevance goes on as it came, R_x = R entry by entry: there is nothing to rescale."""
    vars(rule).update(keeps_relevance=True)
    return rule


@keeps_relevance
def div(g: Tensor, z: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """A quotient x / y of two activations, R_x = R: the denominator is a normaliser, as in a layer norm."""
    return g / y


def normaliser(g: Tensor, z: Tensor, x: Tensor) -> tuple[()]:
    """1/x and 1/√x: what is divided by is a constant of the method and takes nothing."""
    return ()


@keeps_relevance
def rms_norm(
    g: Tensor, z: Tensor, x: Tensor, shape: list[int], w: Tensor | None = None, eps: float | None = None
) -> Tensor:
    """RMS norm with the root mean square as a constant: a scaling, R_x = R (so do its parts)."""
    dims = list(range(-len(shape), 0))
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    g = g * (x.square().mean(dims, keepdim=True) + eps).rsqrt()
    return g if w is None else g * w


def offset(g: Tensor, z: Tensor, x: Tensor, *_: object) -> Tensor:
    """x − max(x), and x − log Σ exp(x), a log-softmax: what shifts logits cancels from their softmax, R_x = x g."""
    return g


@keeps_relevance
def rounding(g: Tensor, z: Tensor, x: Tensor, *_: object, **__: object) -> Tensor:
    """Rounding, quantising and other steps pass relevance on, R_x = R."""
    return g * (z / x).masked_fill_(x == 0, 0)
