"""Normalisations: how a rulebook rescales what its rules return, and what a rule says of itself to make that cheap."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor

from fxlrp.rules.quantities import (
    Batch,
    Placement,
    ratio,
    relevance,
    sample_dot,
    sample_scale,
    sample_sum,
    times,
    where_positive,
)

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Call:
    """A rule at its op, as a normalisation calls it: from g at the output to raw g at each input it shares with.

    What is known of the rule spares calls (`traits`); one_sided: whether all relevance that comes is ≥ 0 and stays.
    """

    rule: Callable[[Tensor], Sequence[Tensor]]
    total: Callable[[], Tensor] | None = None
    entrywise: bool = False
    one_sided: bool = False

    def __call__(self, g: Tensor) -> Sequence[Tensor]:
        return self.rule(g)


def traits(
    *, total: Callable[..., Tensor] | None = None, entrywise: bool = False, keeps_sign: bool = False
) -> Callable[[F], F]:
    """What a rule says of itself, so that relevance of both signs takes one call of it instead of two.

    A rule with traits returns tensors of its own, none that it was given.

    total: total(z, *args, **kwargs), called as the rule but for g, is Σ_i R_i that s = 1 at each entry of the output
        gives to all inputs, ≥ 0: relevance keeps its sign, and its mass is known before it is propagated.
    entrywise: each entry of the output gives relevance to the same entry of its one input, in proportion to g.
    keeps_sign: relevance ≥ 0 stays so, total or not.
    """

    def mark(rule: F) -> F:
        vars(rule).update(total=total, entrywise=entrywise, keeps_sign=keeps_sign or total is not None)
        return rule

    return mark


@dataclass(frozen=True)
class Normalise:
    """How a rulebook rescales what its rules return.  `scale(call, g, z, xs, where)` gives one g for each x in xs."""

    name: str
    scale: Callable[[Call, Tensor, Tensor, Sequence[Tensor], Placement], list[Tensor]]


def _mass(call: Call, g: Tensor, z: Tensor, xs: Sequence[Tensor], where: Placement) -> list[Tensor]:
    """Positive and negative relevance apart, each keeping its mass P = Σ|R|, inputs sharing it in proportion.

    R_i = P (A_i / Σ_k A_k) r_i / Σ|r_i|  with r_i = x_i ⊙ g_i the raw relevance and A_i = Σ r_i,
    as in the authors' code of April 2024.
    """
    if call.one_sided:
        return _mass_of_one_side(call, g, z, xs, where)
    r = relevance(z, g, where.masked)
    above, below = _sides(g, r)
    mass = [sample_dot(z, side, where.output, where.masked).abs() for side in (above, below)]
    if call.total is not None:  # R_i has the sign of r: A_i / Σ|r_i| = ±1, and one factor does for all inputs
        per = times(call.total(), z.sign())
        sizes = [sample_dot(per, side, where.output, where.masked).abs() for side in (above, below)]
        return list(call(_scaled(above, below, mass, sizes, where.output)))
    if call.entrywise:
        (raw,) = call(g)
        sizes = [sample_sum(side, where.output) for side in _sides(relevance(xs[0], raw, where.masked).abs_(), r)]
        return [_scaled(*_sides(raw, r), mass, sizes, where.output)]
    total: list[Tensor] = []
    for part, of in zip((above, below), mass, strict=True):
        raws = call(part)
        shares = [relevance(x, c, where.masked) for x, c in zip(xs, raws, strict=True)]
        factors = [of]
        if len(shares) > 1:
            sums = [sample_sum(s, b) for s, b in zip(shares, where.inputs, strict=True)]
            whole = sum(sums[1:], sums[0])
            factors = [of * ratio(a, whole) for a in sums]
        amounts = [sample_sum(s.abs_(), b) for s, b in zip(shares, where.inputs, strict=True)]
        scaled = [
            sample_scale(c, ratio(f, n), b) for c, f, n, b in zip(raws, factors, amounts, where.inputs, strict=True)
        ]
        total = [t.add_(s) for t, s in zip(total, scaled, strict=True)] if total else scaled
    return total


def _mass_of_one_side(call: Call, g: Tensor, z: Tensor, xs: Sequence[Tensor], where: Placement) -> list[Tensor]:
    """As `_mass`, where all relevance is ≥ 0 and stays: one factor brings what the rule gives to the mass there was."""
    raw = call(g)
    sums = [sample_dot(x, c, b, where.masked) for x, c, b in zip(xs, raw, where.inputs, strict=True)]
    factor = ratio(sample_dot(z, g, where.output, where.masked), sum(sums[1:], sums[0]))
    return [sample_scale(c, factor, b, own=True) for c, b in zip(raw, where.inputs, strict=True)]


def _sides(t: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
    """t where r > 0, and the rest of it."""
    above = where_positive(t, r)
    return above, t - above


def _scaled(above: Tensor, below: Tensor, mass: Sequence[Tensor], sizes: Sequence[Tensor], batch: Batch) -> Tensor:
    """The sum of both sides, each brought from its size to its mass for each sample."""
    both = [sample_scale(t, ratio(m, n), batch, own=True) for t, m, n in zip((above, below), mass, sizes, strict=True)]
    return both[0].add_(both[1])


def _unit(call: Call, g: Tensor, z: Tensor, xs: Sequence[Tensor], where: Placement) -> list[Tensor]:
    """Every input of every op gets Σ|R| = 1, with 1e-9 beside |z| and Σ|R| as published (2024-12)."""
    size = z.abs().nan_to_num(posinf=1)
    raw = call(g * (size / (size + 1e-9)))
    return [
        sample_scale(c, 1 / (sample_sum(relevance(x, c, where.masked).abs_(), b) + 1e-9), b)
        for x, c, b in zip(xs, raw, where.inputs, strict=True)
    ]


def _as_it_is(call: Call, g: Tensor, z: Tensor, xs: Sequence[Tensor], where: Placement) -> list[Tensor]:
    return list(call(g))


MASS = Normalise("mass", _mass)
UNIT = Normalise("unit", _unit)
NONE = Normalise("none", _as_it_is)
