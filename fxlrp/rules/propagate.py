"""Propagation: an op whose backward pass is a relevance rule.

Every tensor a carries a cotangent g with R = a ⊙ g, so a rule is a vector-Jacobian product other than the ordinary one
and torch.autograd.grad is the relevance pass.  What all rules share lives beside it, once: splitting by sign and
rescaling per sample (rules/normalise.py), undoing broadcasts, leaving out what carries nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fxlrp.errors import FxlrpError
from fxlrp.ops import is_pointwise
from fxlrp.rules.contributions import ByContributions
from fxlrp.rules.normalise import Call, Normalise
from fxlrp.rules.quantities import Placement, as_pair, is_eager, relevance, sample_count
from fxlrp.rules.scratch import borrow


@dataclass(frozen=True)
class Given:
    """A product whose value z is given, as what a batch norm makes of another: Given(op)(z, scale, x, w, b, …) is
    z ≈ op(x, scale · w, b, …), with a scale for each of the outputs, which are along the axis `channels` of w."""

    op: Callable[..., Tensor]
    channels: int = 0

    @property
    def __name__(self) -> str:
        return getattr(self.op, "__name__", str(self.op)).replace(".", "_")

    def __call__(self, z: Tensor, *args: Any) -> Tensor:
        return z.view_as(z)

    def operands(self, z: Tensor | None, scale: Tensor, x: Tensor, w: Tensor, *rest: Any) -> tuple[Any, ...]:
        """The arguments of the product it is."""
        scale = scale.view([-1 if d == self.channels else 1 for d in range(w.ndim)])
        return x, torch.mul(w, scale, out=borrow("weight", w)), *rest


LEADING = 2
"""How many arguments of a Given product stand before those of the product."""


class InPlace:
    """What stands in an op's place in a graph.  Equal ones share a name when printed: `book.name`."""

    def __init__(self, name: str, book: str, *key: Any) -> None:
        self.__name__ = self.__qualname__ = re.sub(r"\W", "_", name)
        self.__module__ = re.sub(r"\W", "_", book)
        self._key = (type(self), name, book, *key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, InPlace) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def __repr__(self) -> str:
        return f"{self.__module__}.{self.__name__}"


class Site(InPlace):
    """An op at its place in a graph, with the rule that is its backward pass.

    op: the op itself, which the forward pass calls unchanged.
    rule: called as rule(g, z, *args, **kwargs) with the op's own arguments; returns one g per tensor in `shares`.
    shares: which leaves of the call's (args, kwargs), in pytree order, the rule returns g for.
    active: which of them carry relevance; a share of any other is discarded (a constant took it).
    where: where the samples are, in the output and in each tensor of `shares`.
    one_sided: whether all relevance that comes here is ≥ 0.
    rectified: whether a ReLU follows, whose value is this one's.
    tells: whether it returns (z, handle), where the handle's cotangent is the mass of relevance at z [B].
    loose: which of `shares` come from one that tells, and to nobody else: what scale their g has is no matter.
    again: whether its value is computed again in the relevance pass instead of kept.
    remade: the leaves that are not kept for it but computed again, and by which op.
    """

    def __init__(
        self,
        op: Callable,
        rule: Callable,
        name: str,
        book: str,
        normalise: Normalise,
        shares: tuple[int, ...],
        active: frozenset[int],
        where: Placement,
        extras: tuple[tuple[str, Any], ...] = (),
        *,
        one_sided: bool = False,
        rectified: bool = False,
        tells: bool = False,
        loose: tuple[int, ...] = (),
        again: bool = False,
        remade: tuple[tuple[int, Callable], ...] = (),
    ) -> None:
        self._made = (op, rule, name, book, normalise, shares, active, where, extras)
        self._known = {"one_sided": one_sided, "rectified": rectified, "tells": tells, "loose": loose}
        self._known |= {"again": again, "remade": remade}
        self.op, self.rule, self.normalise = op, rule, normalise
        self.pointwise = is_pointwise(op)
        self.shares, self.active, self.where, self.extras = shares, active, where, extras
        self.one_sided, self.rectified, self.tells, self.loose = one_sided, rectified, tells, loose
        self.again, self.remade = again, remade
        super().__init__(name, book, *self._made, *self._known.values())

    def but(self, **known: Any) -> Site:
        """The same with more known about its place."""
        return Site(*self._made, **{**self._known, **known})

    def __call__(
        self, *args: Any, handles: Sequence[Tensor | None] = (), sources: Sequence[Any] = (), **kwargs: Any
    ) -> Any:
        """The op's value, and its handle if it tells.

        handles: those of the tensors of `shares` that have one; sources: the (args, kwargs) that `remade` is made of.
        """
        leaves, spec = pytree.tree_flatten((args, kwargs))
        places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        tensors: Sequence[Tensor] = [leaves[i] for i in places]
        if self.pointwise:  # a broadcast operand takes part as the full tensor it acts as; autograd sums it up again
            tensors = torch.broadcast_tensors(*tensors)
        told = [h is not None for h in handles]
        more, made_of = pytree.tree_flatten(sources)
        return _Propagation.apply(self, leaves, spec, places, told, made_of, len(more), *more, *handles, *tensors)


def _scale_pairs(
    site: Site, call: Callable[[Tensor], Sequence[Tensor]], g: Tensor, z: Tensor, xs: Sequence[Tensor]
) -> list[Tensor]:
    def like(t: Tensor, a: Tensor) -> Tensor:
        return torch.view_as_complex(t.contiguous()) if a.is_complex() else t

    def pairs(part: Tensor) -> list[Tensor]:
        return [as_pair(c.resolve_conj()) for c in call(like(part, z))]

    scaled = site.normalise.scale(Call(pairs), as_pair(g.resolve_conj()), as_pair(z), [*map(as_pair, xs)], site.where)
    return [like(c, x) for c, x in zip(scaled, xs, strict=True)]


class _Propagation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        site: Site,
        leaves: list,
        spec: Any,
        places: list[int],
        told: list[bool],
        made_of: Any,
        count: int,
        *tensors: Any,
    ) -> Any:
        sources, tensors = tensors[:count], tensors[count + len(told) :]
        args, kwargs = pytree.tree_unflatten(leaves, spec)
        z = site.op(*args, **kwargs)
        given = isinstance(site.op, Given)  # then a tensor of the call is the value
        if site.rectified:
            z = z.relu_() if is_eager(z) and not given else z.relu()
        skip = {i for i, _ in site.remade} | ({places[0]} if given else set())
        kept = [None if i in skip else t for i, t in zip(places, tensors, strict=True)]
        ctx.save_for_backward(
            None if site.again else z, *kept, *(t if isinstance(t, Tensor) else None for t in sources)
        )
        ctx.site, ctx.spec, ctx.places, ctx.told = site, spec, places, told
        ctx.made_of, ctx.sources = made_of, [None if isinstance(t, Tensor) else t for t in sources]
        ctx.leaves = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        ctx.cast = z.dtype if torch.is_autocast_enabled(z.device.type) else None
        return (z, z.new_empty(sample_count(z, site.where.output))) if site.tells else z

    @staticmethod
    def backward(ctx: Any, g: Tensor, mass: Tensor | None = None) -> tuple:
        site: Site = ctx.site
        z, *saved = ctx.saved_tensors
        tensors, sources = saved[: len(ctx.places)], saved[len(ctx.places) :]
        leaves = list(ctx.leaves)
        for i, t in zip(ctx.places, tensors, strict=True):
            autocast = ctx.cast is not None and t is not None and t.is_floating_point()
            leaves[i] = t.to(ctx.cast) if autocast else t  # as the op itself was run
        made_of = [c if t is None else t for c, t in zip(ctx.sources, sources, strict=True)]
        for (i, op), (args, kwargs) in zip(site.remade, pytree.tree_unflatten(made_of, ctx.made_of), strict=True):
            leaves[i] = op(*args, **kwargs)
        args, kwargs = pytree.tree_unflatten(leaves, ctx.spec)
        z = site.op(*args, **kwargs) if site.again else z
        args = site.op.operands(*args) if isinstance(site.op, Given) else args
        xs = [leaves[i] for i in site.shares]

        def call(g: Tensor) -> Sequence[Tensor]:
            out = site.rule(g, z, *args, **kwargs, **dict(site.extras))
            found = _answered(site, out, g, z, xs)
            shapes = [tuple(c.shape) for c in found]
            if shapes != [tuple(x.shape) for x in xs]:
                raise FxlrpError(
                    f"Rule {site!r} returned cotangents of shapes {shapes} for arguments of shapes "
                    f"{[tuple(x.shape) for x in xs]}; it must return one like each argument it is registered for."
                )
            return found

        masses: Sequence[Tensor | None] = [None] * len(xs)
        if any(t.is_complex() for t in (z, *xs)):  # relevance stands at the real and the imaginary part
            scaled = _scale_pairs(site, call, g, z, xs)
        else:
            of = site.rule.of if isinstance(site.rule, ByContributions) else None
            known = None if of is None else partial(of, z, *args, **kwargs, **dict(site.extras))
            exact = getattr(site.rule, "keeps_relevance", False)
            called = Call(call, known, exact, site.rectified)
            if site.one_sided and site.normalise.one_sided is not None:
                scaled, masses = site.normalise.one_sided(called, g, z, xs, site.where, mass, site.loose)
            else:
                scaled = site.normalise.scale(called, g, z, xs, site.where)
        grads = {i: c for i, c in zip(site.shares, scaled, strict=True) if i in site.active}
        told = [m if asked else None for m, asked in zip(masses, ctx.told, strict=False)]
        return *[None] * (7 + len(sources)), *told, *(grads.get(i) for i in ctx.places)


def _answered(site: Site, out: Any, g: Tensor, z: Tensor, xs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """What a rule returned, as one g for each input.  Raises FxlrpError for a user's rule that returned nothing, NaN
    or, of relevance that came, none at all without saying so by None."""
    found = (out,) if isinstance(out, Tensor) else out if out is None else tuple(out)
    if getattr(site.rule, "__module__", "").startswith("fxlrp.") and found is not None:
        return found
    wrong = None
    if found is None:
        wrong = "nothing"
    elif type(g) is Tensor and _fits(found, xs):
        given = [(c, x) for c, x in zip(found, xs, strict=True) if c is not None]
        if any(_any(c.isnan()) for c, _ in given) and not any(_any(t.isnan()) for t in (g, z, *xs)):
            wrong = "NaN"
        elif given and _any(relevance(z, g, True)) and not any(_any(relevance(x, c, True)) for c, x in given):
            wrong = "no relevance at all, of some that came"
    if wrong or found is None:
        raise FxlrpError(
            f"Rule {site!r} of {getattr(site.op, '__name__', site.op)} returned {wrong}; it must return a cotangent "
            "for each argument that it gives relevance to, and None for one that gets nothing."
        )
    if len(found) != len(xs):
        return found
    return tuple(torch.zeros_like(x) if c is None else c for c, x in zip(found, xs, strict=True))


def _fits(found: Sequence[Any], xs: Sequence[Tensor]) -> bool:
    return len(found) == len(xs) and all(c is None or c.shape == x.shape for c, x in zip(found, xs, strict=True))


def _any(t: Tensor) -> bool:
    return bool(t.any())


class Adjusted(InPlace):
    """An op whose backward pass is its own, at the cotangent `adjust(g, z, **parameters)`."""

    def __init__(self, op: Callable, adjust: Callable, parameters: tuple[tuple[str, Any], ...], book: str) -> None:
        self.op, self.adjust, self.parameters = op, adjust, parameters
        super().__init__(adjust.__name__, book, op, adjust, parameters)

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        return _Adjustment.apply(self, self.op(*args, **kwargs))


class _Adjustment(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, how: Adjusted, z: Tensor) -> Tensor:
        ctx.how = how
        ctx.save_for_backward(z)
        return z.view_as(z)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple:
        (z,) = ctx.saved_tensors
        return None, ctx.how.adjust(g, z, **dict(ctx.how.parameters))


class Parted(InPlace):
    """An op whose backward pass is its own, of which the leaves of a call in `parts` get that part."""

    def __init__(self, op: Callable, name: str, parts: tuple[tuple[int, float], ...], book: str) -> None:
        self.op, self.parts = op, parts
        super().__init__(name, book, op, parts)

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        leaves, spec = pytree.tree_flatten((args, kwargs))
        most = max((part for _, part in self.parts), default=1)
        for i, part in self.parts:
            leaves[i] = _Part.apply(leaves[i], part / most) if part < most else leaves[i]
        args, kwargs = pytree.tree_unflatten(leaves, spec)
        z = self.op(*args, **kwargs)
        return _Part.apply(z, most) if most < 1 else z


class _Part(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, part: float) -> Tensor:
        ctx.part = part
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple:
        return g * ctx.part, None
