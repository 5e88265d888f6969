"""Ops that need no rule, whatever the method: they move, copy or scale values.

Their ordinary vector-Jacobian product moves relevance rightly, because a ⊙ g is routed or conserved.
"""

from __future__ import annotations

import torch

from fxlrp.ops import those
from fxlrp.rules.registry import STRUCTURAL, table
from fxlrp.rules.values import nearly

aten = torch.ops.aten

STRUCTURAL_ENTRIES = table(
    (STRUCTURAL, nearly, *those(lambda op: op.moves)),
    # a constant factor scales a and g inversely, so R = a ⊙ g passes unchanged
    (STRUCTURAL, (0,), aten.mul, aten.div, aten.multiply, aten.divide),
    (STRUCTURAL, (1,), aten.mul, aten.multiply),
)
