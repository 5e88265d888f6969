"""Ops that have the values of one tensor and the way back of another, and the rule for what rounds.

A straight-through estimator, a quantised product and a function with a backward of its own are all of this kind.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fxlrp.ops import describe
from fxlrp.rules.contributions import keeps_relevance

aten = torch.ops.aten


def stands_for(x: Tensor, value: Tensor) -> Tensor:
    """`value`, which is made of x in steps, with the derivative of x."""
    way = x - x.detach()
    return value.detach() + torch.where(way.isfinite(), way, 0).to(value.dtype)


def nearly(x: Tensor, value: Tensor) -> Tensor:
    """`value`, which is x but for rounding, with the derivative of x."""
    return stands_for(x, value)


@keeps_relevance
def rounding(g: Tensor, z: Tensor, x: Tensor, *_: Any, **__: Any) -> Tensor:
    """Rounding, quantising and other steps pass relevance on, R_x = R."""
    return g * (z / x).masked_fill_(x == 0, 0)


describe(stands_for, kind="step", shape_argument=1)
describe(nearly, shape_argument=1)
