"""The two definitions of GAE by name, and how each divides."""

from __future__ import annotations

import torch
from torch import Tensor

PUBLISHED, FIXED = "2024-12", "fixed"
DEFINITIONS = (FIXED, PUBLISHED)


def share(r: Tensor, definition: str) -> Tensor:
    """Divide r [n, C, H, W] by Σ|r| per sample."""
    return over(r, r.abs().flatten(1).sum(1).view(-1, 1, 1, 1), definition)


def over(a: Tensor, b: Tensor, definition: str) -> Tensor:
    """Divide a by b ≥ 0.

    2024-12 adds 1e-9 to every denominator, which makes scores depend on the scale of a map.
    """
    return a / (b + 1e-9) if definition == PUBLISHED else a / b.clamp(min=torch.finfo(b.dtype).tiny)
