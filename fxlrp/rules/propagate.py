"""Propagation: an op whose backward pass is a relevance rule.

Every tensor a carries a cotangent g with R = a ⊙ g, so a rule is a vector-Jacobian product other than the ordinary one
and torch.autograd.grad is the relevance pass.  What all rules share lives here, once: splitting by sign, rescaling per
sample, undoing broadcasts, leaving out what carries nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fxlrp.errors import FxlrpError

F = TypeVar("F", bound=Callable[..., Any])


class Batch(NamedTuple):
    """Where the samples of a tensor are: its `axis` is laid out as [before, samples, after]."""

    axis: int
    before: int = 1
    after: int = 1


WHOLE = Batch(-1)
"""A tensor of one sample, or whose samples can't be told apart (then a batch of one is all that may be explained)."""


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


class Placement(NamedTuple):
    """Where the samples of an op's output and inputs are, and whether masked (infinite) values may be among them."""

    output: Batch
    inputs: tuple[Batch, ...]
    masked: bool = False


@dataclass(frozen=True)
class Normalise:
    """How a rulebook rescales what its rules return.  `scale(call, g, z, xs, where)` gives one g for each x in xs."""

    name: str
    scale: Callable[[Call, Tensor, Tensor, Sequence[Tensor], Placement], list[Tensor]]


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
    return by_parts(lambda g, z: times(z.sign(), g), g, z)


def times(own: Tensor, t: Tensor) -> Tensor:
    """own · t, in the memory of `own`, which nobody else has, where a pass is run and not traced or batched: new memory
    costs a CPU more than the product does."""
    return own.mul_(t) if _plain(own) and _plain(t) and own.shape == t.shape else own * t


def _plain(t: Tensor) -> bool:
    batched = torch._C._functorch.is_batchedtensor(t) or torch._C._functorch.is_legacy_batchedtensor(t)
    return type(t) is Tensor and t.device.type == "cpu" and not batched


def where_positive(g: Tensor, x: Tensor) -> Tensor:
    """g where x > 0, else 0: the backward pass of a ReLU, which is one pass over memory."""
    return torch.ops.aten.threshold_backward.default(g, x, 0)


def sample_sum(t: Tensor, batch: Batch) -> Tensor:
    """Sum over everything but the samples: [B], in at least float32."""
    dtype = torch.promote_types(t.dtype, torch.float32)
    if batch == WHOLE:
        return t.sum(dtype=dtype).view(1)
    axis, before, after = batch
    if before * after > 1:
        t, axis = t.reshape(*t.shape[:axis], before, -1, after, *t.shape[axis + 1 :]), axis + 1
    return t.sum([d for d in range(t.ndim) if d != axis], dtype=dtype) if t.ndim > 1 else t.to(dtype)


def sample_dot(a: Tensor, b: Tensor, batch: Batch, masked: bool = False) -> Tensor:
    """Σ a b over everything but the samples: [B], in at least float32; as `relevance` where masked."""
    simple = not masked and batch in (WHOLE, (0, 1, 1)) and a.dtype in (torch.float32, torch.float64)
    if simple and _plain(a) and _plain(b) and a.is_contiguous() and b.is_contiguous():  # in no memory of its own
        count = 1 if batch == WHOLE else len(a)
        return torch.bmm(a.view(count, 1, -1), b.view(count, -1, 1)).view(count)
    return sample_sum(relevance(a, b, masked), batch)


def sample_scale(t: Tensor, v: Tensor, batch: Batch, own: bool = False) -> Tensor:
    """t with each sample multiplied by its entry of v [B]; in the memory of t, if it is our `own` and that can be."""
    v = v.to(t.dtype)
    if batch != WHOLE:
        v = v.view(1, -1, 1).expand(batch.before, -1, batch.after).reshape(-1)
        v = v.view([-1 if d == batch.axis else 1 for d in range(t.ndim)])
    return t.mul_(v) if own and _plain(t) and _plain(v) else t * v


def ratio(a: Tensor, b: Tensor) -> Tensor:
    """a / b, and 0 where b is 0 or all but: relevance that nothing can take is dropped."""
    none = b.abs() < 1e8 * torch.finfo(b.dtype).tiny  # below it, a / b may overflow
    return torch.where(none, 0, a / torch.where(none, 1, b))


def relevance(a: Tensor, g: Tensor, masked: bool = False) -> Tensor:
    """R = a ⊙ g; where `masked`, a may be infinite (a masked logit) and R is 0 wherever g is."""
    r = a * g
    return r.masked_fill_(g == 0, 0) if masked else r


def _mass(call: Call, g: Tensor, z: Tensor, xs: Sequence[Tensor], where: Placement) -> list[Tensor]:
    """Positive and negative relevance apart, each keeping its mass P = Σ|R|, inputs sharing it in proportion.

    R_i = P (A_i / Σ_k A_k) r_i / Σ|r_i|  with r_i = x_i ⊙ g_i the raw relevance and A_i = Σ r_i,
    as in the authors' code of April 2024.
    """
    if call.one_sided:
        return _mass_of_one_side(call, g, z, xs, where)
    above, below = _sides(g, relevance(z, g, where.masked))
    mass = [sample_dot(z, side, where.output, where.masked).abs() for side in (above, below)]
    if call.total is not None:  # R_i has the sign of r: A_i / Σ|r_i| = ±1, and one factor does for all inputs
        per = times(call.total(), z.sign())
        sizes = [sample_dot(per, side, where.output, where.masked).abs() for side in (above, below)]
        return list(call(_scaled(above, below, mass, sizes, where.output)))
    if call.entrywise:
        (raw,) = call(g)
        r = relevance(z, g, where.masked)
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
        return x, w * scale.view([-1 if d == self.channels else 1 for d in range(w.ndim)]), *rest


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
    ) -> None:
        self._made = (op, rule, name, book, normalise, shares, active, where, extras)
        self.op, self.rule, self.normalise = op, rule, normalise
        self.pointwise = is_pointwise(op)
        self.shares, self.active, self.where, self.extras = shares, active, where, extras
        self.one_sided, self.rectified = one_sided, rectified
        super().__init__(name, book, op, rule, normalise, shares, active, where, extras, one_sided, rectified)

    def but(self, one_sided: bool = False, rectified: bool = False) -> Site:
        """The same with more known about its place."""
        return Site(*self._made, one_sided=one_sided or self.one_sided, rectified=rectified or self.rectified)

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        leaves, spec = pytree.tree_flatten((args, kwargs))
        places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        tensors: Sequence[Tensor] = [leaves[i] for i in places]
        if self.pointwise:  # a broadcast operand takes part as the full tensor it acts as; autograd sums it up again
            tensors = torch.broadcast_tensors(*tensors)
        return _Propagation.apply(self, leaves, spec, places, *tensors)


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
    def forward(ctx: Any, site: Site, leaves: list, spec: Any, places: list[int], *tensors: Tensor) -> Tensor:
        args, kwargs = pytree.tree_unflatten(leaves, spec)
        z = site.op(*args, **kwargs)
        z = z.relu() if site.rectified else z
        given = isinstance(site.op, Given)  # then a tensor of the call is the value
        ctx.save_for_backward(z, *((None, *tensors[1:]) if given else tensors))
        ctx.site, ctx.spec, ctx.places = site, spec, places
        ctx.leaves = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        ctx.cast = z.dtype if torch.is_autocast_enabled(z.device.type) else None
        return z

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple:
        site: Site = ctx.site
        z, *tensors = ctx.saved_tensors
        leaves = list(ctx.leaves)
        for i, t in zip(ctx.places, tensors, strict=True):
            autocast = ctx.cast is not None and t is not None and t.is_floating_point()
            leaves[i] = t.to(ctx.cast) if autocast else t  # as the op itself was run
        args, kwargs = pytree.tree_unflatten(leaves, ctx.spec)
        args = site.op.operands(*args) if isinstance(site.op, Given) else args
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
            total = getattr(site.rule, "total", None)
            known = None if total is None else partial(total, z, *args, **kwargs, **dict(site.extras))
            called = Call(call, known, getattr(site.rule, "entrywise", False), site.one_sided)
            scaled = site.normalise.scale(called, g, z, xs, site.where)
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
