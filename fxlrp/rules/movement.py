"""Ops that need no rule in any method, besides those that move values (`fxlrp.ops`): those that scale by a constant."""

from __future__ import annotations

import torch

from fxlrp.rules.registry import STRUCTURAL, table
from fxlrp.rules.values import nearly

aten = torch.ops.aten

STRUCTURAL_ENTRIES = table(
    (STRUCTURAL, nearly),
    # a constant factor scales a and g inversely, so R = a ⊙ g passes unchanged
    (STRUCTURAL, (0,), aten.mul, aten.div, aten.multiply, aten.divide),
    (STRUCTURAL, (1,), aten.mul, aten.multiply),
)
