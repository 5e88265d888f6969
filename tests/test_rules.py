"""Every rule against its definition, in float64: one row per rule of `abslrp`, and a rule without a row fails."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

import fxlrp
from fxlrp.functions import Stepwise
from fxlrp.patterns.centring import centred, offset
from fxlrp.patterns.elementwise import Elementwise, Gate
from fxlrp.rules import ABSLRP, ABSOLUTE, STRUCTURAL, products, scratch
from fxlrp.rules.generic import by_definition, generic
from fxlrp.rules.normalise import MASS, NONE
from fxlrp.rules.propagate import Site
from fxlrp.rules.quantities import WHOLE, Batch, Placement, over_abs, ratio, sample_dot
from fxlrp.rules.registry import Rule
from fxlrp.rules.values import stands_for

aten = torch.ops.aten


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@dataclass
class Row:
    """An op with arguments (two samples in the tensors that carry relevance) and the rule's own definition, if it has
    one other than the generic rule: h and its absolute companion h_abs, whose derivatives are summed; h alone stands
    for its ordinary derivative."""

    op: Callable
    args: tuple
    shares: tuple[int, ...] = (0,)
    kwargs: dict[str, Any] | None = None
    h: Callable | None = None
    h_abs: Callable | None = None


def detached_norm(dims: tuple[int, ...], x: Tensor, eps: float, centre: bool = True) -> tuple[Tensor, Tensor]:
    mean = x.mean(dims, keepdim=True).detach() if centre else torch.zeros(())
    sigma = ((x - mean).square().mean(dims, keepdim=True) + eps).sqrt().detach()
    return x - mean, sigma


def normed(
    dims: tuple[int, ...], weight: Tensor, view: Callable = lambda t: t, centre: bool = True
) -> dict[str, Callable]:
    """Definition of a norm with its statistics as constants: h = w u + b, h_abs = |w| |u|."""

    def h(x: Tensor, *rest: Any) -> Tensor:
        u, sigma = detached_norm(dims, view(x), 1e-5, centre)
        return (u / sigma).reshape(x.shape) * weight

    def h_abs(x: Tensor, *rest: Any) -> Tensor:
        u, sigma = detached_norm(dims, view(x), 1e-5, centre)
        return (u / sigma).abs().reshape(x.shape) * weight.abs()

    return {"h": h, "h_abs": h_abs}


def activation(f: Callable, companion: Callable | None = None) -> dict[str, Callable]:
    """Definition of a non-linearity x·gate(x): the companion is |x|·gate(x), with the gate f(x)/x."""

    def h_abs(x: Tensor, *rest: Any) -> Tensor:
        return x.sign() * f(x, *rest)

    return {"h": f, "h_abs": companion or h_abs}


x4, x3, c = rand(2, 4, 5, 5), rand(2, 3, 8), rand(8, seed=1)
channel = rand(4, seed=2)
bn = (channel, rand(4, seed=3), rand(4, seed=4), rand(4, seed=5).abs() + 0.5, False, 0.1, 1e-5, False)
softmax_h = lambda x, dim: x.exp() / x.exp().sum(dim, keepdim=True).detach()  # noqa: E731
ACTIVATIONS = {
    aten.gelu.default: (),
    aten.silu.default: (),
    aten.mish.default: (),
    aten.hardswish.default: (),
    aten.sigmoid.default: (),
    aten.hardsigmoid.default: (),
    aten.tanh.default: (),
    aten.softplus.default: (),
    aten.elu.default: (),
    aten.celu.default: (),
    aten.selu.default: (),
    aten.leaky_relu.default: (0.1,),
    aten.hardtanh.default: (0.0, 1.0),
    aten.relu6.default: (),
    aten.clamp.default: (-0.5, 0.5),
    aten.clamp_min.default: (-0.5,),
    aten.clamp_max.default: (0.5,),
    aten.clamp.Tensor: (torch.tensor(-0.5), torch.tensor(0.5)),
    aten.clamp_min.Tensor: (torch.tensor(-0.5),),
    aten.clamp_max.Tensor: (torch.tensor(0.5),),
    aten.prelu.default: (torch.tensor([0.2]).double(),),
    aten.threshold.default: (0.1, -0.3),
    aten.softshrink.default: (),
    aten.hardshrink.default: (),
    aten.log_sigmoid.default: (),
}


x5 = rand(2, 2, 4, 4, 4)
SUMS = (
    (aten.mean.default, x3),
    (aten.mean.dim, x3, [1]),
    (aten.sum.default, x3),
    (aten.sum.dim_IntList, x3, [-1], True),
    (aten.avg_pool1d.default, x3, [2]),
    (aten.avg_pool2d.default, x4, [3, 2], [2, 2], [1, 1]),
    (aten.avg_pool3d.default, x5, [2, 2, 2]),
    (aten.adaptive_avg_pool1d.default, x3, [3]),
    (aten.adaptive_avg_pool2d.default, x4, [2, 1]),
    (aten.adaptive_avg_pool3d.default, x5, [2, 1, 3]),
    (aten.upsample_nearest1d.vec, x3, [12], None),
    (aten.upsample_nearest2d.vec, x4, [7, 9], None),
    (aten.upsample_linear1d.vec, x3, [12], False, None),
    (aten.upsample_bilinear2d.vec, x4, [7, 9], False, None),
    (aten.upsample_trilinear3d.vec, x5, [5, 6, 7], True, None),
    (aten.upsample_nearest1d.default, x3, [12]),
    (aten.upsample_nearest2d.default, x4, [7, 9]),
    (aten.upsample_linear1d.default, x3, [12], False),
    (aten.upsample_bilinear2d.default, x4, [7, 9], False),
    (aten.upsample_trilinear3d.default, x5, [5, 6, 7], True),
    (aten.cumsum.default, x3, -1),
    (aten.col2im.default, rand(2, 8, 9), [4, 4], [2, 2], [1, 1], [0, 0], [1, 1]),
    (aten.trace.default, rand(2, 2)),
)


def quick_gelu() -> Gate:
    """x · sigmoid(1.7 x) as the graph pass makes it."""
    body = fx.Graph()
    x = body.placeholder("x")
    gate = body.call_function(aten.sigmoid.default, (body.call_function(aten.mul.Tensor, (x, 1.7)),))
    body.output(body.call_function(aten.mul.Tensor, (x, gate)))
    return Gate(body)


grid = rand(2, 3, 3, 2, seed=7).clamp(-0.9, 0.9)


def grid_sample(x: Tensor, grid: Tensor, *rest: Any) -> Tensor:
    return aten.grid_sampler.default(x, grid.detach(), *rest)


class Halves(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return (2 * x).round() / 2

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return 2 * g


def stepwise() -> Stepwise:
    return Stepwise(Halves, Halves.forward, (x3,))


STEPPED: list[tuple[Callable, tuple, dict[str, Any]]] = [
    *((op, (), {}) for op in (aten.round.default, aten.floor.default, aten.ceil.default, aten.trunc.default)),
    *((op, (), {}) for op in (aten.fix.default, aten.sign.default)),
    (aten.round.decimals, (), {"decimals": 1}),
    (aten.floor_divide.default, (c,), {}),
    (aten.floor_divide.Scalar, (0.3,), {}),
    (aten.div.Tensor_mode, (c,), {"rounding_mode": "trunc"}),
    (aten.div.Scalar_mode, (0.3,), {"rounding_mode": "floor"}),
    (aten.fake_quantize_per_tensor_affine.default, (0.1, 0, -128, 127), {}),
    (aten.fake_quantize_per_tensor_affine.tensor_qparams, (torch.tensor(0.1), torch.tensor(0), -128, 127), {}),
    (aten.fake_quantize_per_channel_affine.default, (torch.full((3,), 0.1), torch.zeros(3).int(), 1, -128, 127), {}),
    (stands_for, (c,), {}),
    (stepwise(), (), {}),
]
ROWS = [
    Row(aten.linear.default, (x3, rand(6, 8, seed=1), rand(6, seed=2))),
    Row(aten.conv1d.default, (x3, rand(4, 3, 3, seed=1), rand(4, seed=2), [2], [1])),
    Row(aten.conv1d.padding, (x3, rand(4, 3, 3, seed=1), None, [1], "same")),
    Row(aten.conv2d.default, (x4, rand(6, 2, 3, 3, seed=1), rand(6, seed=2), [2, 1], [1, 0], [1, 1], 2)),
    Row(aten.conv2d.padding, (x4, rand(6, 4, 3, 3, seed=1), None, [1, 1], "same", [2, 2])),
    Row(aten.conv2d.padding, (x4, rand(6, 4, 2, 3, seed=1), None, [1, 1], "same")),
    Row(aten.conv2d.default, (x4, rand(6, 4, 1, 1, seed=1), None, [2, 3])),
    Row(aten.conv2d.default, (x4, rand(6, 4, 2, 3, seed=1), rand(6, seed=2), [2, 3])),
    Row(aten.conv2d.default, (x4, rand(6, 4, 5, 3, seed=1), rand(6, seed=2), [2, 2], [2, 1])),
    Row(aten.conv3d.default, (rand(2, 2, 4, 4, 4), rand(3, 2, 3, 3, 3, seed=1))),
    Row(aten.conv3d.padding, (rand(2, 2, 4, 4, 4), rand(3, 2, 3, 3, 3, seed=1), None, [1] * 3, "valid")),
    Row(aten.conv_transpose1d.default, (x3, rand(3, 4, 3, seed=1), None, [2])),
    Row(aten.conv_transpose2d.input, (x4, rand(4, 2, 3, 3, seed=1), None, [2, 2], [1, 1], [1, 1])),
    Row(aten.conv_transpose3d.input, (rand(2, 2, 3, 3, 3), rand(2, 3, 2, 2, 2, seed=1), None, [2] * 3)),
    Row(aten.matmul.default, (x3, rand(8, 5, seed=1))),
    Row(aten.matmul.default, (rand(6, 3, seed=1), x3), (1,)),
    Row(aten.matmul.default, (x3, rand(2, 8, 5, seed=1)), (0, 1)),
    Row(aten.mm.default, (rand(2, 8), rand(8, 5, seed=1))),
    Row(aten.mm.default, (rand(6, 3, seed=1), rand(3, 2)), (1,)),
    Row(aten.mm.default, (rand(4, 8), rand(8, 5, seed=1)), (0, 1)),
    Row(aten.bmm.default, (x3, rand(2, 8, 5, seed=1))),
    Row(aten.bmm.default, (rand(2, 6, 3, seed=1), x3), (1,)),
    Row(aten.bmm.default, (x3, rand(2, 8, 5, seed=1)), (0, 1)),
    Row(aten.addmm.default, (rand(5, seed=2), rand(2, 8), rand(8, 5, seed=1)), (1,)),
    Row(
        aten.batch_norm.default,
        (x4, *bn),
        h=lambda x, w, b, m, v, t, mo, eps, _: x * (w / (v + eps).sqrt()).view(-1, 1, 1),
        h_abs=lambda x, w, b, m, v, t, mo, eps, _: x.abs() * (w / (v + eps).sqrt()).abs().view(-1, 1, 1),
    ),
    Row(aten.layer_norm.default, (x3, [8], c, c), **normed((-1,), c)),
    Row(
        aten.group_norm.default,
        (x4, 2, channel, channel),
        **normed((2, 3, 4), channel.view(-1, 1, 1), lambda t: t.unflatten(1, (2, 2))),
    ),
    Row(
        aten.instance_norm.default,
        (x4, channel, channel, None, None, True, 0.1, 1e-5, False),
        **normed((2, 3), channel.view(-1, 1, 1)),
    ),
    Row(aten.rms_norm.default, (x3, [8], c, 1e-5), h=normed((-1,), c, centre=False)["h"]),
    *(
        Row(centred, (x3, x3.mean(-1, keepdim=True)), at, h=lambda x, m: 2 * (x - m.detach()).relu())
        for at in ((0,), (0, 1))
    ),
    *(Row(offset, (x3, x3.amax(-1, keepdim=True)), at, h=lambda x, m: x - m.detach()) for at in ((0,), (0, 1))),
    Row(aten.exp.default, (x3,), h=torch.exp, h_abs=lambda x: x.sign().detach() * x.exp() * 2 - x.exp()),
    Row(
        aten.logsumexp.default,
        (x3, [-1]),
        h=torch.logsumexp,
        h_abs=lambda x, d: (
            (2 * x.sign().detach() * x.exp() / x.exp().sum(d, keepdim=True).detach()).sum(d) - x.logsumexp(d)
        ),
    ),
    Row(quick_gelu(), (x3,), **activation(lambda x: x * (1.7 * x).sigmoid())),
    *(
        Row(op, (x4, grid, 0, 0, False), at, h=grid_sample, h_abs=lambda x, *r: grid_sample(x.abs(), *r))
        for op, at in (
            (aten.grid_sampler.default, (0,)),
            (aten.grid_sampler_2d.default, (0,)),
            (aten.grid_sampler.default, (0, 1)),
        )
    ),
    Row(aten.softmax.int, (x3, -1), h=softmax_h, h_abs=softmax_h),
    Row(
        aten._softmax.default, (x3, -1, False), h=lambda x, d, _: softmax_h(x, d), h_abs=lambda x, d, _: softmax_h(x, d)
    ),
    Row(aten.add.Tensor, (x3, rand(2, 3, 8, seed=1)), (0, 1), {"alpha": 2}),
    Row(aten.add.Tensor, (x3, c)),
    Row(aten.add.Tensor, (c, x3), (1,)),
    Row(aten.add.Scalar, (x3, 0.3)),
    Row(aten.sub.Tensor, (x3, c)),
    Row(aten.sub.Scalar, (x3, 0.3)),
    Row(
        aten.sub.Tensor, (x3, rand(2, 3, 8, seed=1)), (0, 1), h=lambda x, y: x - y, h_abs=lambda x, y: x.abs() + y.abs()
    ),
    Row(aten.sub.Tensor, (c, x3), (1,), h=lambda c, x: c - x, h_abs=lambda c, x: x.abs()),
    Row(aten.rsub.Tensor, (x3, c), h=lambda x, c: c - x, h_abs=lambda x, c: x.abs()),
    Row(aten.rsub.Scalar, (x3, 0.3), h=lambda x, c: c - x, h_abs=lambda x, c: x.abs()),
    Row(aten.rsqrt.default, (x3.abs(),), h=lambda x: 1 + 0 * x),
    Row(aten.reciprocal.default, (x3,), h=lambda x: 1 + 0 * x),
    *(
        Row(op, (4 * x3, *rest), kwargs=mode, h=lambda x, *rest, op=op, **mode: x * (op(x, *rest, **mode) / x).detach())
        for op, rest, mode in STEPPED
    ),
    Row(aten.mul.Tensor, (x3, rand(2, 3, 8, seed=1)), (0, 1)),
    Row(aten.multiply.Tensor, (x3, rand(2, 3, 8, seed=1)), (0, 1)),
    Row(aten.div.Tensor, (x3, rand(2, 3, 8, seed=1)), (0, 1), h=lambda x, y: x / y.detach()),
    Row(aten.divide.Tensor, (x3, rand(2, 3, 8, seed=1)), (0, 1), h=lambda x, y: x / y.detach()),
    *(Row(op, (x3, *rest), **activation(op)) for op, rest in ACTIVATIONS.items()),
    *(Row(op, (x, *rest)) for op, x, *rest in SUMS),
]


def key(row: Row) -> tuple:
    return type(row.op) if isinstance(row.op, Elementwise | Stepwise) else row.op, row.shares


def name(row: Row) -> str:
    return f"{getattr(row.op, '__name__', row.op)}{row.shares}"


def rule_of(row: Row) -> Rule:
    entry = ABSLRP.lookup(row.op, row.shares)
    assert isinstance(entry, Rule), f"{row.op} with {row.shares} active has no rule"
    return entry


def extras(row: Row) -> dict[str, Any]:
    return {"op": row.op} if rule_of(row).wants("op") else {}


def definition(row: Row) -> Callable[..., list[Tensor]]:
    """The rule by autograd from its definition, as cotangents of `row.shares`."""
    if row.h is None:
        return generic(row.op, row.shares)

    def rule(g: Tensor, z: Tensor, *args: Any, **kwargs: Any) -> list[Tensor]:
        leaves, spec = pytree.tree_flatten(args)
        xs = [leaves[i].detach().requires_grad_() for i in row.shares]
        for i, x in zip(row.shares, xs, strict=True):
            leaves[i] = x
        a = pytree.tree_unflatten(leaves, spec)
        if row.h_abs is None:
            total = (row.h(*a, **kwargs) * g).sum()
        else:
            total = ((row.h(*a, **kwargs) + row.h_abs(*a, **kwargs)) * over_abs(g, z)).sum()
        found = torch.autograd.grad(total, xs, allow_unused=True)
        return [torch.zeros_like(x) if d is None else d for x, d in zip(xs, found, strict=True)]

    return rule


def test_every_rule_has_a_row() -> None:
    rows = {key(r) for r in ROWS}
    entries = {(op, args) for (op, args), e in ABSLRP.entries.items() if isinstance(e, Rule)}
    # `out=` overloads never appear in a captured graph; rules by an op's name: test_grouped_mm_is_a_linear_per_group
    entries = {(op, args) for op, args in entries if "out" not in getattr(op, "_overloadname", "")}
    entries = {(op, args) for op, args in entries if not isinstance(op, str)}
    assert entries - rows == set()


@pytest.mark.parametrize("row", ROWS, ids=name)
def test_equals_definition(row: Row) -> None:
    entry, kwargs = rule_of(row), row.kwargs or {}
    z = row.op(*row.args, **kwargs)
    g = rand(*z.shape, seed=9)
    fast = entry.fn(g, z, *row.args, **kwargs, **extras(row))
    fast = (fast,) if isinstance(fast, Tensor) else fast
    leaves = pytree.tree_leaves(row.args)
    shares = entry.shares if entry.shares is not None else row.shares
    slow = dict(zip(row.shares, definition(row)(g, z, *row.args, **kwargs), strict=True))
    for i, f in zip(shares, fast, strict=True):
        torch.testing.assert_close(leaves[i] * f, leaves[i] * slow[i], rtol=1e-10, atol=1e-10)
    for i in set(row.shares) - set(shares):
        assert not slow[i].any(), "the definition gives relevance to an argument the rule leaves out"


@pytest.mark.parametrize("row", [r for r in ROWS if rule_of(r).wants("nonneg")], ids=name)
def test_nonnegative_shortcut(row: Row) -> None:
    leaves, spec = pytree.tree_flatten(row.args)
    leaves[row.shares[0]] = leaves[row.shares[0]].clamp(min=0)
    args = pytree.tree_unflatten(leaves, spec)
    z = row.op(*args)
    g = rand(*z.shape, seed=9)
    fn, xs = rule_of(row).fn, [leaves[i] for i in row.shares]
    for x, a, b in zip(xs, fn(g, z, *args, nonneg=True), fn(g, z, *args, nonneg=False), strict=True):
        torch.testing.assert_close(x * a, x * b, rtol=1e-12, atol=0)


@pytest.mark.parametrize("at", [(0,), (1,), (0, 1)])
def test_a_summand_known_to_be_nonnegative(at: tuple[int, ...]) -> None:
    xs = [x4.clone().clamp(min=0) if i in at else rand(*x4.shape, seed=i + 3) for i in (0, 1)]
    z = xs[0] + xs[1]
    g, add = rand(*z.shape, seed=9), ABSLRP.lookup(aten.add.Tensor, (0, 1)).fn
    known = add(g, z, *xs, nonnegs=(0 in at, 1 in at))
    assert known[0].data_ptr() != known[1].data_ptr()  # each is somebody's own
    for x, a, b in zip(xs, known, add(g, z, *xs), strict=True):
        torch.testing.assert_close(x * a, x * b, rtol=0, atol=0)


def site(row: Row, normalise: Any) -> Callable[..., Tensor]:
    entry = rule_of(row)
    shares = entry.shares if entry.shares is not None else row.shares
    batch = Placement(Batch(0), (Batch(0),) * len(shares))
    more = tuple(extras(row).items())
    return Site(row.op, entry.fn, entry.name, "test", normalise, shares, frozenset(row.shares), batch, more)


PAIRED = (aten.bmm.default, centred, offset, aten.grid_sampler.default, aten.grid_sampler_2d.default)
"""Ops whose constants go with the samples."""

BATCHED = [
    r
    for r in ROWS
    if r.op not in (aten.mm.default, aten.rsqrt.default, aten.reciprocal.default)
    and r.op not in (aten.mean.default, aten.sum.default, aten.trace.default)
    and all(pytree.tree_leaves(r.args)[i].shape[0] == 2 for i in r.shares)
]


@pytest.mark.parametrize("row", BATCHED, ids=name)
def test_mass_is_kept_and_samples_are_apart(row: Row) -> None:
    kwargs = row.kwargs or {}

    def run(pick: slice) -> tuple[list[Tensor], Tensor]:
        leaves, spec = pytree.tree_flatten(row.args)
        paired = [i for i, t in enumerate(leaves) if i in row.shares or (row.op in PAIRED and isinstance(t, Tensor))]
        for i in paired:
            leaves[i] = leaves[i][pick].clone().requires_grad_(i in row.shares)
        xs = [leaves[i] for i in row.shares]
        z = site(row, MASS)(*pytree.tree_unflatten(leaves, spec), **kwargs)
        g = rand(2, *z.shape[1:], seed=9)[pick]
        grads = torch.autograd.grad(z, xs, g, allow_unused=True)
        mass_out = torch.stack([(z * g).clamp(min=0).flatten(1).sum(1), (-z * g).clamp(min=0).flatten(1).sum(1)])
        return [x.detach() * d for x, d in zip(xs, grads, strict=True) if d is not None], mass_out.detach()

    both, mass = run(slice(0, 2))
    for i in range(2):
        alone, _ = run(slice(i, i + 1))
        for a, b in zip(alone, both, strict=True):
            torch.testing.assert_close(a[0], b[i], rtol=1e-10, atol=1e-12)
    total = sum(r.flatten(1).sum(1) for r in both)
    if row.h is None:  # a norm or softmax gives relevance of both signs for one of either
        torch.testing.assert_close(total, mass[0] - mass[1], rtol=1e-9, atol=1e-9)


KNOWN = [r for r in BATCHED if vars(rule_of(r).fn).keys() & {"of", "keeps_sign", "keeps_relevance"}]


@pytest.mark.parametrize("row", KNOWN, ids=name)
def test_what_rules_say_of_themselves_is_true(row: Row) -> None:
    """Mass is kept the same with what a rule says of itself as without, for one sign of relevance as for both."""
    full, kwargs = site(row, MASS), row.kwargs or {}
    plain = site(row, MASS)
    plain.rule = lambda *a, **k: full.rule(*a, **k)

    def run(at: Site, positive: bool) -> list[Tensor]:
        leaves, spec = pytree.tree_flatten(row.args)
        for i in row.shares:
            leaves[i] = leaves[i].clone().requires_grad_()
        z = at(*pytree.tree_unflatten(leaves, spec), **kwargs)
        g = rand(*z.shape, seed=9)
        seed = g.abs() * z.sign() if positive else g
        found = torch.autograd.grad(z, [leaves[i] for i in row.shares], seed, allow_unused=True)
        return [leaves[i].detach() * c for i, c in zip(row.shares, found, strict=True) if c is not None]

    for a, b in zip(run(full, False), run(plain, False), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    if getattr(full.rule, "keeps_sign", False):
        full.one_sided = True
        for a, b in zip(run(full, True), run(plain, True), strict=True):
            assert (a >= -1e-12 * a.max()).all()
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_grouped_mm_is_a_linear_per_group() -> None:
    x, w, offs = rand(5, 8).float(), rand(3, 8, 4, seed=1).float(), torch.tensor([2, 2, 5], dtype=torch.int32)
    z = torch.cat([x[:2] @ w[0], x[2:] @ w[2]])
    g = rand(5, 4, seed=2).float()

    def grouped(x: Tensor, w: Tensor, offs: Tensor) -> Tensor:
        return torch.cat([x[a:b] @ w[i] for i, (a, b) in enumerate(zip([0, 2, 2], offs.tolist(), strict=True))])

    expected = torch.cat(
        [products.right_weight(g[:2], z[:2], x[:2], w[0])[0], products.right_weight(g[2:], z[2:], x[2:], w[2])[0]]
    )
    torch.testing.assert_close(products.grouped_mm(g, z, x, w, offs, op=grouped)[0], expected)
    assert ABSLRP.lookup(aten._grouped_mm.default, (0,)).fn is products.grouped_mm


def test_linear_written_out() -> None:
    """R_i = Σ_j 2 (x_i w_ij)⁺ R_j / |z_j|, with loops."""
    x, w, b = rand(1, 5), rand(4, 5, seed=1), rand(4, seed=2)
    z = x @ w.T + b
    g = rand(1, 4, seed=3)
    expected = torch.zeros(5).double()
    for i in range(5):
        for j in range(4):
            expected[i] += 2 * max(x[0, i] * w[j, i], 0) * (z[0, j] * g[0, j]) / abs(z[0, j])
    got = x * site(Row(aten.linear.default, (x, w, b)), NONE).rule(g, z, x, w, b)[0]
    torch.testing.assert_close(got[0], expected, rtol=1e-12, atol=1e-12)


def test_convolution_written_out() -> None:
    x, w = rand(1, 1, 4), rand(1, 1, 2, seed=1)
    z = torch.nn.functional.conv1d(x, w)
    g = rand(1, 1, 3, seed=2)
    expected = torch.zeros(4).double()
    for o in range(3):
        for k in range(2):
            expected[o + k] += 2 * max(x[0, 0, o + k] * w[0, 0, k], 0) * z[0, 0, o].sign() * g[0, 0, o]
    rule = ABSLRP.lookup(aten.conv1d.default, (0,))
    torch.testing.assert_close((x * rule.fn(g, z, x, w)[0])[0, 0], expected, rtol=1e-12, atol=1e-12)


def test_zero_output_carries_no_relevance() -> None:
    x, w = torch.zeros(1, 3).double(), rand(2, 3)
    g = ABSLRP.lookup(aten.linear.default, (0,)).fn(torch.ones(1, 2).double(), x @ w.T, x, w)[0]
    assert torch.isfinite(g).all()
    assert not (x * g).any()


def test_by_definition_is_the_sum_of_both_derivatives() -> None:
    x, g = rand(2, 3), rand(2, 3, seed=1)
    rule = by_definition(torch.sin, torch.cos)
    torch.testing.assert_close(rule(g, x.exp(), x), g * (x.cos() - x.sin()))


def test_registry_prefers_the_users_rule_and_forgets_it() -> None:
    @fxlrp.rule(aten.gelu.default)
    def mine(g: Tensor, z: Tensor, x: Tensor) -> Tensor:
        return g

    try:
        assert ABSLRP.lookup(aten.gelu.default, (0,)).fn is mine
    finally:
        fxlrp.unregister(aten.gelu.default)
    assert ABSLRP.lookup(aten.gelu.default, (0,)).fn is not mine


def test_extend_leaves_the_original_alone() -> None:
    mine = ABSLRP.extend([(STRUCTURAL, aten.gelu.default), (ABSOLUTE, aten.silu)], name="mine")
    assert mine.lookup(aten.gelu.default, (0,)) is STRUCTURAL
    assert mine.lookup(aten.silu.default, (0,)) is ABSOLUTE
    assert isinstance(ABSLRP.lookup(aten.gelu.default, (0,)), Rule)
    assert mine.name == "mine"


def test_unknown_rulebook_is_named() -> None:
    with pytest.raises(fxlrp.FxlrpError, match="abslrp-2024-04"):
        fxlrp.convert(torch.nn.Linear(2, 2).eval(), rules="nope")


def test_an_op_without_a_derivative_is_named() -> None:
    def cut_off(x: Tensor) -> Tensor:
        return x.detach()

    with pytest.raises(fxlrp.FxlrpError, match=r"cut_off.* has no derivative"):
        generic(cut_off, (0,))(c, c, c)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_ratio_drops_what_divides_by_nothing(dtype: torch.dtype) -> None:
    a, b = torch.tensor([1, 2, 3, 0, 5], dtype=dtype), torch.tensor([2, -4, 0, 0, 0.25], dtype=dtype)
    assert torch.equal(ratio(a, b), torch.tensor([0.5, -0.5, 0, 0, 20], dtype=dtype))


def test_a_large_weight_is_taken_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    z, g, x, w, b = rand(2, 7), rand(2, 7, seed=1), rand(2, 5, seed=2), rand(7, 5, seed=3), rand(7, seed=4)
    rule = ABSLRP.lookup(aten.linear.default, (0,)).fn

    def both() -> list[Tensor]:
        made = [rule.of(z, x, w, b, nonneg=n) for n in (False, True)]
        return [t for by in made for t in (*by.rule(g, z), by.total())]

    whole = both()
    monkeypatch.setattr(scratch, "LARGE", 10)
    pieces = both()
    for a, c in zip(whole, pieces, strict=True):
        torch.testing.assert_close(a, c, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["zplus", "alpha-beta", "gamma"])
def test_classic_rules_take_a_large_weight_in_pieces(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    z, g, x, w, b = rand(2, 7), rand(2, 7, seed=1), rand(2, 5, seed=2), rand(7, 5, seed=3), rand(7, seed=4)
    rule = fxlrp.rulebook(name).lookup(aten.linear.default, (0,)).fn
    whole = rule(g, z, x, w, b, op=aten.linear.default, nonneg=False)
    monkeypatch.setattr(scratch, "LARGE", 10)
    torch.testing.assert_close(rule(g, z, x, w, b, op=aten.linear.default, nonneg=False), whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", [10, 5000])
@pytest.mark.parametrize("batch", [Batch(0), Batch(1), Batch(0, 1, 3), WHOLE], ids=str)
def test_products_per_sample(batch: Batch, size: int) -> None:
    a, b = rand(6, 3, size), rand(6, 3, size, seed=1)
    parts = {0: (a * b).sum((1, 2)), 1: (a * b).sum((0, 2)), -1: (a * b).sum()[None]}[batch.axis]
    parts = parts.view(-1, batch.after).sum(1)
    torch.testing.assert_close(sample_dot(a, b, batch), parts)
    twice = torch.vmap(lambda b: sample_dot(a, b, batch))(torch.stack([b, -2 * b]))
    torch.testing.assert_close(twice, torch.stack([parts, -2 * parts]))
