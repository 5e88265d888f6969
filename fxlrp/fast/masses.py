"""Computes `MASS` (rules/normalise.py) by one call of a rule, or without measuring where masses are known."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fxlrp.fast.contributions import Contributions
from fxlrp.fast.memory import less, sample_dot, scale_samples
from fxlrp.rules.per_sample import Placement
from fxlrp.rules.quantities import over_abs, placeable, ratio, where_positive


def share(g: Tensor, z: Tensor, rectified: bool) -> Tensor:
    """s = R / |z|; `rectified` says that z ≥ 0."""
    return where_positive(g, z) if rectified else over_abs(g, z)


def size_of(z: Tensor, rectified: bool, masked: bool) -> Tensor:
    """|z|. Where `masked`, infinity becomes the largest finite number, which gives nothing since s = 0 there."""
    if rectified:
        return z
    return z.abs().clamp_(max=torch.finfo(z.dtype).max) if masked else z.abs()


def keep_mass(by: Contributions, g: Tensor, z: Tensor, where: Placement, rectified: bool) -> list[Tensor]:
    """Share relevance by contributions and keep its mass.

    `total` is the mass that each side gives, and A_i / Σ|r_i| = ±1, so that one factor rescales all inputs.
    """
    return list(by.give(_at_mass(by, g, z, where, rectified)))


def _at_mass(by: Contributions, g: Tensor, z: Tensor, where: Placement, rectified: bool) -> Tensor:
    """The s by which contributions keep mass. Frees what it is made of before `give` takes memory."""
    whole = by.total()  # first, since products need the most memory
    s, size = share(g, z, rectified), size_of(z, rectified, where.masked)
    above = s.clamp(min=0)
    sides = (above, less(s, above))
    masses, offers = ([sample_dot(by_entry, t, where.output).abs() for t in sides] for by_entry in (size, whole))
    factors = [ratio(placeable(mass, offer), offer) for mass, offer in zip(masses, offers, strict=True)]
    scaled = [scale_samples(t, f, where.output) for t, f in zip(sides, factors, strict=True)]
    return scaled[0].add_(scaled[1])


def keep_mass_of_one_side(
    raw: Sequence[Tensor], mass: Tensor, xs: Sequence[Tensor], where: Placement, any_scale: Sequence[int]
) -> tuple[list[Tensor], list[Tensor]]:
    """`MASS` of relevance that is ≥ 0 and stays so. Returns g and the mass for each input.

    One factor brings what a rule gives to the mass that came, and A_i is the mass of an input.

    raw: what the rule gives to each of xs, of any scale.
    mass: the mass of relevance that comes.
    any_scale: the inputs whose g may have any scale, since only their mass is used.
    """
    if len(xs) == len(any_scale) == 1:
        return list(raw), [mass]
    sums = [sample_dot(x, c, b, where.masked) for x, c, b in zip(xs, raw, where.inputs, strict=True)]
    factor = ratio(mass, sum(sums[1:], sums[0]))
    scaled = [
        c if i in any_scale else scale_samples(c, factor, b)
        for i, (c, b) in enumerate(zip(raw, where.inputs, strict=True))
    ]
    return scaled, [total * factor for total in sums]
