"""The rule of ResLRP for sums of two tensors that carry relevance, as residual blocks end in.

Berend et al., "ResLRP", 2026: where two summands cancel, the ε-rule gives each of them a multiple of the relevance
that comes, with opposite signs.  Favouring the summand that has the sum's sign keeps both bounded.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fxlrp.rules.quantities import ratio

BLOCKS_DEEP = 24
"""The residual sums of twelve transformer blocks, two in each."""


def by_depth(g: Tensor, z: Tensor, x: Tensor, y: Tensor, depth: int) -> tuple[Tensor, Tensor]:
    """ResidualSum with γ = min(1, (depth/24)²), for z = x + y with `depth` such sums behind each other.

    What cancellation spoils is multiplied from sum to sum, so shallow models need little of γ, and lose by much of it
    (docs/rules.md)."""
    return ResidualSum(min(1.0, (depth / BLOCKS_DEEP) ** 2))(g, z, x, y)


@dataclass(frozen=True)
class ResidualSum:
    """A sum z = a + b, with a = ± x and b = ± y (alpha times one of them):

        R_a = (1 + γ [sgn a = sgn z]) a / D · R,   D = Σ over a and b of (1 + γ [sgn = sgn z]) itself

    signs: those of x and y.  scaled: which of them alpha multiplies.
    """

    gamma: float
    signs: tuple[int, int] = (1, 1)
    scaled: int = 1

    @property
    def __name__(self) -> str:
        return "residual_sum"

    def __call__(self, g: Tensor, z: Tensor, x: Tensor, y: Tensor, alpha: float = 1) -> tuple[Tensor, Tensor]:
        factors = [sign * (alpha if i == self.scaled else 1) for i, sign in enumerate(self.signs)]
        terms = [t * factor for t, factor in zip((x, y), factors, strict=True)]
        weights = [1 + self.gamma * (t * z > 0) for t in terms]
        s = ratio(z * g, weights[0] * terms[0] + weights[1] * terms[1])
        return weights[0] * factors[0] * s, weights[1] * factors[1] * s
