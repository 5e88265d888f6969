"""Propagation: an op whose backward pass is a relevance rule.

Every tensor a carries a cotangent g with R = a ⊙ g, so a rule is a vector-Jacobian product other than the ordinary one
and torch.autograd.grad is the relevance pass.  What all rules share lives here, once: splitting by sign, rescaling per
sample, undoing broadcasts, leaving out what carries nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fxlrp.errors import FxlrpError


class Batch(NamedTuple):
    """Where the samples of a tensor are: its `axis` is laid out as [before, samples, after]."""

    axis: int
    before: int = 1
    after: int = 1


WHOLE = Batch(-1)
"""A tensor of one sample, or whose samples can't be told apart (then a batch of one is all that may be explained)."""

Propagate = Callable[[Tensor], Sequence[Tensor]]
"""What a normalisation calls: the rule at one op, from g at its output to raw g at each input it shares with."""


class Placement(NamedTuple):
    """Where the samples of an op's output and inputs are, and whether masked (infinite) values may be among them."""

    output: Batch
    inputs: tuple[Batch, ...]
    masked: bool = False


@dataclass(frozen=True)
class Normalise:
    """How a rulebook rescales what its rules return.  `scale(call, g, z, xs, where)` gives one g for each x in xs."""

    name: str
    scale: Callable[[Propagate, Tensor, Tensor, Sequence[Tensor], Placement], list[Tensor]]


def is_pointwise(op: Any) -> bool:
    """Whether an op works entry by entry, broadcasting its tensors, as ATen tags it."""
    return torch.Tag.pointwise in getattr(op, "tags", ())


def as_pair(t: Tensor) -> Tensor:
    """A complex tensor as the real one it is made of, with one more axis of two; a real one as it is."""
    return torch.view_as_real(t) if t.is_complex() else t


def by_parts(f: Callable[..., Tensor], *ts: Tensor) -> Tensor:
    """f of the real and the imaginary parts of complex tensors, each apart; f itself of real ones."""
    out = f(*map(as_pair, ts))
    return torch.view_as_complex(out) if ts[0].is_complex() else out


def over_abs(g: Tensor, z: Tensor) -> Tensor:
    """s = R / |z| = sign(z) g, with s = 0 where z = 0."""
    return by_parts(lambda g, z: z.sign() * g, g, z)


def where_positive(g: Tensor, x: Tensor) -> Tensor:
    """g where x > 0, else 0: the backward pass of a ReLU, which is one pass over memory."""
    return torch.ops.aten.threshold_backward.default(g, x, 0)


def sample_sum(t: Tensor, batch: Batch) -> Tensor:
    """Sum over everything but the samples: [B], in at least float32."""
    if batch == WHOLE:
        return t.sum(dtype=torch.promote_types(t.dtype, torch.float32)).view(1)
    t = t.unflatten(batch.axis, (batch.before, -1, batch.after))
    dims = [d for d in range(t.ndim) if d != batch.axis + 1]
    return t.sum(dims, dtype=torch.promote_types(t.dtype, torch.float32))


def sample_scale(t: Tensor, v: Tensor, batch: Batch) -> Tensor:
    """t with each sample multiplied by its entry of v [B]."""
    if batch == WHOLE:
        return t * v.to(t.dtype)
    v = v.to(t.dtype).view(1, -1, 1).expand(batch.before, -1, batch.after).reshape(-1)
    return t * v.view([-1 if d == batch.axis else 1 for d in range(t.ndim)])


def ratio(a: Tensor, b: Tensor) -> Tensor:
    """a / b, and 0 where b is 0 or all but: relevance that nothing can take is dropped."""
    none = b.abs() < 1e8 * torch.finfo(b.dtype).tiny  # below it, a / b may overflow
    return torch.where(none, 0, a / torch.where(none, 1, b))


def relevance(a: Tensor, g: Tensor, masked: bool = False) -> Tensor:
    """R = a ⊙ g; where `masked`, a may be infinite (a masked logit) and R is 0 wherever g is."""
    r = a * g
    return r.masked_fill_(g == 0, 0) if masked else r


def _mass(call: Propagate, g: Tensor, z: Tensor, xs: Sequence[Tensor], where: Placement) -> list[Tensor]:
    """Positive and negative relevance apart, each keeping its mass P = Σ|R|, inputs sharing it in proportion.

    R_i = P (A_i / Σ_k A_k) r_i / Σ|r_i|  with r_i = x_i ⊙ g_i the raw relevance and A_i = Σ r_i,
    as in the authors' code of April 2024.
    """
    r = relevance(z, g, where.masked)
    above = where_positive(g, r)
    total: list[Tensor] = []
    for part, mass in ((above, r.clamp(min=0)), (g - above, r.clamp_(max=0))):
        if total and _seen_to_be_zero(mass):
            break
        raw = call(part)
        shares = [relevance(x, c, where.masked) for x, c in zip(xs, raw, strict=True)]
        factors = [sample_sum(mass, where.output).abs()]
        if len(shares) > 1:
            sums = [sample_sum(s, b) for s, b in zip(shares, where.inputs, strict=True)]
            whole = sum(sums[1:], sums[0])
            factors = [factors[0] * ratio(a, whole) for a in sums]
        sizes = [sample_sum(s.abs_(), b) for s, b in zip(shares, where.inputs, strict=True)]
        scaled = [sample_scale(c, ratio(f, n), b) for c, f, n, b in zip(raw, factors, sizes, where.inputs, strict=True)]
        total = [t.add_(s) for t, s in zip(total, scaled, strict=True)] if total else scaled
    return total


def _seen_to_be_zero(t: Tensor) -> bool:
    """Whether a tensor is zero, where looking at it costs nothing: not on a GPU, and not while a graph is traced."""
    return type(t) is Tensor and t.device.type == "cpu" and not t.any()


def _unit(call: Propagate, g: Tensor, z: Tensor, xs: Sequence[Tensor], where: Placement) -> list[Tensor]:
    """Every input of every op gets Σ|R| = 1, with 1e-9 beside |z| and Σ|R| as published (2024-12)."""
    size = z.abs().nan_to_num(posinf=1)
    raw = call(g * (size / (size + 1e-9)))
    return [
        sample_scale(c, 1 / (sample_sum(relevance(x, c, where.masked).abs_(), b) + 1e-9), b)
        for x, c, b in zip(xs, raw, where.inputs, strict=True)
    ]


def _as_it_is(call: Propagate, g: Tensor, z: Tensor, xs: Sequence[Tensor], where: Placement) -> list[Tensor]:
    return list(call(g))


MASS = Normalise("mass", _mass)
UNIT = Normalise("unit", _unit)
NONE = Normalise("none", _as_it_is)


@dataclass(frozen=True)
class Given:
    """A product whose value z is given, as what a batch norm makes of another: Given(op)(z, *args) is z ≈ op(*args)."""

    op: Callable[..., Tensor]

    @property
    def __name__(self) -> str:
        return getattr(self.op, "__name__", str(self.op)).replace(".", "_")

    def __call__(self, z: Tensor, *args: Any) -> Tensor:
        return z.view_as(z)


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
    ) -> None:
        self.op, self.rule, self.normalise = op, rule, normalise
        self.pointwise = is_pointwise(op)
        self.shares, self.active, self.where, self.extras = shares, active, where, extras
        super().__init__(name, book, op, rule, normalise, shares, active, where, extras)

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        leaves, spec = pytree.tree_flatten((args, kwargs))
        places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        tensors: Sequence[Tensor] = [leaves[i] for i in places]
        if self.pointwise:  # a broadcast operand takes part as the full tensor it acts as; autograd sums it up again
            tensors = torch.broadcast_tensors(*tensors)
        return _Propagation.apply(self, leaves, spec, places, *tensors)


def _scale_pairs(site: Site, call: Propagate, g: Tensor, z: Tensor, xs: Sequence[Tensor]) -> list[Tensor]:
    def like(t: Tensor, a: Tensor) -> Tensor:
        return torch.view_as_complex(t.contiguous()) if a.is_complex() else t

    def pairs(part: Tensor) -> list[Tensor]:
        return [as_pair(c.resolve_conj()) for c in call(like(part, z))]

    scaled = site.normalise.scale(pairs, as_pair(g.resolve_conj()), as_pair(z), [*map(as_pair, xs)], site.where)
    return [like(c, x) for c, x in zip(scaled, xs, strict=True)]


class _Propagation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, site: Site, leaves: list, spec: Any, places: list[int], *tensors: Tensor) -> Tensor:
        args, kwargs = pytree.tree_unflatten(leaves, spec)
        z = site.op(*args, **kwargs)
        ctx.save_for_backward(z, *tensors)
        ctx.site, ctx.spec, ctx.places = site, spec, places
        ctx.leaves = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        return z

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple:
        site: Site = ctx.site
        z, *tensors = ctx.saved_tensors
        leaves = list(ctx.leaves)
        for i, t in zip(ctx.places, tensors, strict=True):
            leaves[i] = t
        args, kwargs = pytree.tree_unflatten(leaves, ctx.spec)
        args = args[1:] if isinstance(site.op, Given) else args
        xs = [leaves[i] for i in site.shares]

        def call(g: Tensor) -> Sequence[Tensor]:
            out = site.rule(g, z, *args, **kwargs, **dict(site.extras))
            found = (out,) if isinstance(out, Tensor) else tuple(out)
            shapes = [tuple(c.shape) for c in found]
            if shapes != [tuple(x.shape) for x in xs]:
                raise FxlrpError(
                    f"Rule {site!r} returned cotangents of shapes {shapes} for arguments of shapes "
                    f"{[tuple(x.shape) for x in xs]}; it must return one like each argument it is registered for."
                )
            return found

        if any(t.is_complex() for t in (z, *xs)):  # relevance stands at the real and the imaginary part
            scaled = _scale_pairs(site, call, g, z, xs)
        else:
            scaled = site.normalise.scale(call, g, z, xs, site.where)
        grads = {i: c for i, c in zip(site.shares, scaled, strict=True) if i in site.active}
        return None, None, None, None, *(grads.get(i) for i in ctx.places)


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
