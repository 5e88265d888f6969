"""Ops that have the value of one tensor and the derivative of another: straight-through estimators, quantised products
and functions with a backward of their own."""

from __future__ import annotations

import torch
from torch import Tensor

from fxlrp.ops import describe

aten = torch.ops.aten


def stands_for(x: Tensor, value: Tensor) -> Tensor:
    """`value`, which is made of x in steps, with the derivative of x."""
    way = x - x.detach()
    return value.detach() + torch.where(way.isfinite(), way, 0).to(value.dtype)


def nearly(x: Tensor, value: Tensor) -> Tensor:
    """`value`, which is x but for rounding, with the derivative of x."""
    return stands_for(x, value)


describe(stands_for, kind="step", shape_argument=1)
describe(nearly, shape_argument=1)
