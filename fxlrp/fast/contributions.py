"""Contributions: what each input of an op contributes to its output, which does not depend on relevance.

A rule made of contributions handles relevance of both signs in one call, since the mass that it will give is known
before it gives it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fxlrp.fast.memory import times
from fxlrp.rules.absolute import Formula
from fxlrp.rules.quantities import over_abs


@dataclass(frozen=True)
class Contributions:
    """Contributions to an op's output at one example.

    give: s = R / |z| at the output → g at each input, linear in s. If all of s has one sign, so has all that is given.
        It may write to s.
    total: Σ_i |R_i| over all inputs, for s = 1 at each entry of the output.
    factor: the constant by which `give` and `total` differ from the rule's own; it cancels where mass is kept.
    """

    give: Callable[[Tensor], Sequence[Tensor]]
    total: Callable[[], Tensor]
    factor: float = 1

    def rule(self, g: Tensor, z: Tensor) -> Sequence[Tensor]:
        """The rule that shares relevance by these contributions."""
        s = over_abs(g, z)
        return self.give(s if self.factor == 1 else self.factor * s)


def diagonal(x: Tensor, d: Tensor, factor: float = 1) -> Contributions:
    """Contributions of an op that works entry by entry, g = d s; x may be −∞ where d is 0."""
    least = torch.finfo(x.dtype).min
    return Contributions(lambda s: (times(s, d),), lambda: times(x.clamp(min=least), d).abs_(), factor)


def entrywise(rule: Formula[Any]) -> Callable[..., Contributions]:
    """Contributions of a formula that works entry by entry, by what it gives for s = 1."""

    def of(z: Tensor, x: Tensor, *args: object, **kwargs: object) -> Contributions:
        cotangents = rule.formula(z.new_ones(()).expand_as(z), z, x, *args, **kwargs)
        d = cotangents if isinstance(cotangents, Tensor) else cotangents[0]
        return diagonal(x, d)

    return of
