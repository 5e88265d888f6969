"""Contributions: what an op's inputs give to its output, known apart from the relevance that is shared by it.

A rule made of them costs relevance of both signs one call: what it will give is known beforehand.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fxlrp.rules.quantities import over_abs, times

Give = Callable[[Tensor], Sequence[Tensor]]


@dataclass(frozen=True)
class Contributions:
    """Contributions to an op's output at one example.

    give: from s = R / |z| at the output to g at each input, linear in s.  What an input's entry gets from all outputs
        together has one sign if s has.  It may write to s.
    total: Σ_i |R_i| over all inputs, for s = 1 at each entry of the output.
    factor: what `give` and `total` lack to be the rule's; where mass is kept it cancels.
    """

    give: Give
    total: Callable[[], Tensor]
    factor: float = 1

    def rule(self, g: Tensor, z: Tensor) -> Sequence[Tensor]:
        """The rule that shares relevance by them."""
        s = over_abs(g, z)
        return self.give(s if self.factor == 1 else self.factor * s)


class ByContributions:
    """A rule (g, z, *args, **kwargs) made of contributions, of(z, *args, **kwargs).

    keeps_sign: whether R_i has the sign of the relevance it comes from.
    """

    def __init__(self, of: Callable[..., Contributions], keeps_sign: bool = True) -> None:
        functools.update_wrapper(self, of)
        self.of, self.keeps_sign = of, keeps_sign

    def __call__(self, g: Tensor, z: Tensor, *args: Any, **kwargs: Any) -> Sequence[Tensor]:
        return self.of(z, *args, **kwargs).rule(g, z)


def keeps_sign(rule: Callable) -> Callable:
    """Says of a rule that R_i has the sign of the relevance it comes from."""
    vars(rule).update(keeps_sign=True)
    return rule


def keeps_relevance(rule: Callable) -> Callable:
    """Says of a rule that relevance goes on as it came, entry by entry: there is nothing to rescale."""
    vars(rule).update(keeps_sign=True, keeps_relevance=True)
    return rule


def diagonal(x: Tensor, d: Tensor, factor: float = 1) -> Contributions:
    """Of an op that works entry by entry, g = d s; x may be −∞ where d is 0."""
    least = torch.finfo(x.dtype).min
    return Contributions(lambda s: (times(s, d),), lambda: times(x.clamp(min=least), d).abs_(), factor)
