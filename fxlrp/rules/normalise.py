"""Normalisations: how a rulebook rescales what its rules return."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from fxlrp.rules.contributions import Contributions
from fxlrp.rules.quantities import (
    Placement,
    less,
    over_abs,
    ratio,
    relevance,
    sample_dot,
    sample_scale,
    sample_sum,
    size_of,
    where_positive,
)


@dataclass(frozen=True)
class Call:
    """A rule at its op, as a normalisation calls it: from g at the output to raw g at each input it shares with.

    What is known of it spares calls.  contributions: those it is made of, if it is; keeps_relevance: whether what it
    gives is relevance as it came; positive: whether z ≥ 0.
    """

    rule: Callable[[Tensor], Sequence[Tensor]]
    contributions: Callable[[], Contributions] | None = None
    keeps_relevance: bool = False
    positive: bool = False

    def __call__(self, g: Tensor) -> Sequence[Tensor]:
        return self.rule(g)

    def s(self, g: Tensor, z: Tensor) -> Tensor:
        """R / |z|."""
        return where_positive(g, z) if self.positive else over_abs(g, z)

    def size(self, z: Tensor, masked: bool) -> Tensor:
        """|z|."""
        return z if self.positive else size_of(z, masked)


@dataclass(frozen=True)
class Normalise:
    """How a rulebook rescales what its rules return.  `scale(call, g, z, xs, where)` gives one g for each x in xs.

    one_sided: the same where all relevance that comes is ≥ 0 and stays; it may be told the mass that comes, and gives
        the mass of each input too (see `Site`).
    """

    name: str
    scale: Callable[[Call, Tensor, Tensor, Sequence[Tensor], Placement], list[Tensor]]
    one_sided: Callable[..., tuple[list[Tensor], list[Tensor]]] | None = None


def _mass(call: Call, g: Tensor, z: Tensor, xs: Sequence[Tensor], where: Placement) -> list[Tensor]:
    """Positive and negative relevance apart, each keeping its mass P = Σ|R|, inputs sharing it in proportion.

    R_i = P (A_i / Σ_k A_k) r_i / Σ|r_i|  with r_i = x_i ⊙ g_i the raw relevance and A_i = Σ r_i,
    as in the authors' code of April 2024.
    """
    if call.keeps_relevance:
        return list(call(g))
    if call.contributions is not None:
        by = call.contributions()
        return list(by.give(_at_mass(call, by, g, z, where)))
    total: list[Tensor] = []
    for part in _sides(g, relevance(z, g, where.masked)):
        of = sample_dot(z, part, where.output, where.masked).abs()
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


def _at_mass(call: Call, by: Contributions, g: Tensor, z: Tensor, where: Placement) -> Tensor:
    """The s by which contributions give `_mass`: what a side gives is known beforehand, and A_i / Σ|r_i| = ±1, so that
    one factor does for all inputs.  All it is made of is freed before anything is given."""
    whole = by.total()  # first, since products need the most memory
    s, size = call.s(g, z), call.size(z, where.masked)
    above = s.clamp(min=0)
    sides = (above, less(s, above))
    factors = [ratio(sample_dot(size, t, where.output), sample_dot(whole, t, where.output)) for t in sides]
    scaled = [sample_scale(t, f, where.output, own=True) for t, f in zip(sides, factors, strict=True)]
    return scaled[0].add_(scaled[1])


def _mass_of_one_side(
    call: Call,
    g: Tensor,
    z: Tensor,
    xs: Sequence[Tensor],
    where: Placement,
    mass: Tensor | None = None,
    loose: Sequence[int] = (),
) -> tuple[list[Tensor], list[Tensor]]:
    """As `_mass`: one factor brings what a rule gives to the mass there was, and A_i is the mass of an input.

    mass: the mass of relevance that comes, if it is known; then g may have any scale.
    loose: the inputs whose g may have any scale, since their mass is asked for.
    """
    s = call.s(g, z)
    if mass is None:
        mass = sample_dot(call.size(z, where.masked), s, where.output)
    raw = call(g) if call.contributions is None else call.contributions().give(s)
    if len(xs) == len(loose) == 1:
        return list(raw), [mass]
    sums = [sample_dot(x, c, b, where.masked) for x, c, b in zip(xs, raw, where.inputs, strict=True)]
    factor = ratio(mass, sum(sums[1:], sums[0]))
    scaled = [
        c if i in loose else sample_scale(c, factor, b, own=True)
        for i, (c, b) in enumerate(zip(raw, where.inputs, strict=True))
    ]
    return scaled, [total * factor for total in sums]


def _sides(t: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
    """t where r > 0, and the rest of it."""
    above = where_positive(t, r)
    return above, t - above


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


MASS = Normalise("mass", _mass, _mass_of_one_side)
UNIT = Normalise("unit", _unit)
NONE = Normalise("none", _as_it_is)
