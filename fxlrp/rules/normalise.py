"""Normalisations: how a rulebook rescales what its rules return."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from fxlrp.rules.per_sample import Placement, along_samples, sample_sum
from fxlrp.rules.quantities import placeable, ratio, relevance, where_positive


@dataclass(frozen=True)
class BoundRule:
    """A rule bound to one call of its op: g at the output → the cotangents of the inputs, before rescaling.

    keeps_relevance: whether it passes relevance on unchanged, entry by entry, so that there is nothing to rescale.
    """

    rule: Callable[[Tensor], Sequence[Tensor]]
    keeps_relevance: bool = False

    def __call__(self, g: Tensor) -> Sequence[Tensor]:
        return self.rule(g)


Give = Callable[[BoundRule, Tensor], list[Tensor]]
"""give(rule, part) rescales what a rule makes of a part of g, by factors that were measured on the whole of g."""


@dataclass(frozen=True)
class Normalise:
    """How a rulebook rescales what its rules return: `scale(rule, g, z, xs, where)` gives one g for each x in xs.

    measure: `measure(rule, g, z, xs, where)` gives what `scale` does with g, and with any part of it, so that parts add
        up to the whole; None if `scale` is linear in g anyway.
    """

    name: str
    scale: Callable[[BoundRule, Tensor, Tensor, Sequence[Tensor], Placement], list[Tensor]]
    measure: Callable[[BoundRule, Tensor, Tensor, Sequence[Tensor], Placement], Give] | None = None


def _mass(rule: BoundRule, g: Tensor, z: Tensor, xs: Sequence[Tensor], where: Placement) -> list[Tensor]:
    """Rescales positive and negative relevance separately: each keeps its mass P = Σ|R|, which the inputs share.

    R_i = P (|A_i| / Σ_k |A_k|) r_i / Σ|r_i|  with r_i = x_i ⊙ g_i the raw relevance and A_i = Σ r_i,
    as in the authors' code of April 2024 (|A_i|, because A_i of different signs might cancel).
    """
    if rule.keeps_relevance:
        return list(rule(g))
    r = relevance(z, g, where.masked)
    above = where_positive(g, r)
    positive, negative = (_one_sign(rule, part, z, xs, where) for part in (above, g - above))
    return [p + n for p, n in zip(positive, negative, strict=True)]


def _one_sign(rule: BoundRule, g: Tensor, z: Tensor, xs: Sequence[Tensor], where: Placement) -> list[Tensor]:
    """`_mass` of relevance that is all ≥ 0, or all ≤ 0."""
    raw = rule(g)
    factors = _factors(raw, g, z, xs, where)
    return [c * along_samples(f, c, b) for c, f, b in zip(raw, factors, where.inputs, strict=True)]


def _factors(raw: Sequence[Tensor], g: Tensor, z: Tensor, xs: Sequence[Tensor], where: Placement) -> list[Tensor]:
    """The factor [B] of the raw g of each x, for relevance that is all ≥ 0, or all ≤ 0."""
    mass = sample_sum(relevance(z, g, where.masked), where.output).abs()
    rs = [relevance(x, c, where.masked) for x, c in zip(xs, raw, strict=True)]
    sums = [sample_sum(r, b).abs() for r, b in zip(rs, where.inputs, strict=True)]
    sizes = [sample_sum(r.abs(), b) for r, b in zip(rs, where.inputs, strict=True)]
    mass = placeable(mass, sum(sizes[1:], sizes[0]))
    shares = [mass] if len(sums) == 1 else [mass * ratio(a, sum(sums[1:], sums[0])) for a in sums]
    return [ratio(share, size) for share, size in zip(shares, sizes, strict=True)]


def _measure_mass(rule: BoundRule, g: Tensor, z: Tensor, xs: Sequence[Tensor], where: Placement) -> Give:
    """`_mass` as a function of parts of g: one factor where g has positive relevance, another elsewhere."""
    if rule.keeps_relevance:
        return lambda rule, part: list(rule(part))
    positive = relevance(z, g, where.masked) > 0
    factors = [_factors(rule(of_sign), of_sign, z, xs, where) for of_sign in (g * positive, g * ~positive)]

    def give(rule: BoundRule, part: Tensor) -> list[Tensor]:
        sides = [
            [c * along_samples(f, c, b) for c, f, b in zip(rule(of_sign), several, where.inputs, strict=True)]
            for of_sign, several in zip((part * positive, part * ~positive), factors, strict=True)
        ]
        return [p + n for p, n in zip(*sides, strict=True)]

    return give


def _unit(rule: BoundRule, g: Tensor, z: Tensor, xs: Sequence[Tensor], where: Placement) -> list[Tensor]:
    """Rescales relevance at every input to Σ|R| = 1, with 1e-9 added to |z| and Σ|R|, as in the code of December
    2024."""
    return _measure_unit(rule, g, z, xs, where)(rule, g)


def _measure_unit(rule: BoundRule, g: Tensor, z: Tensor, xs: Sequence[Tensor], where: Placement) -> Give:
    """`_unit` as a function of parts of g: divides by the Σ|R| that g itself gives to each input."""
    size = z.abs().nan_to_num(posinf=1)
    kept = size / (size + 1e-9)
    raw = rule(g * kept)
    sizes = [sample_sum(relevance(x, c, where.masked).abs(), b) for x, c, b in zip(xs, raw, where.inputs, strict=True)]

    def give(rule: BoundRule, part: Tensor) -> list[Tensor]:
        parts = raw if part is g else rule(part * kept)
        return [c * along_samples(1 / (n + 1e-9), c, b) for c, n, b in zip(parts, sizes, where.inputs, strict=True)]

    return give


def _unscaled(rule: BoundRule, g: Tensor, z: Tensor, xs: Sequence[Tensor], where: Placement) -> list[Tensor]:
    return list(rule(g))


MASS = Normalise("mass", _mass, _measure_mass)
UNIT = Normalise("unit", _unit, _measure_unit)
NONE = Normalise("none", _unscaled)
