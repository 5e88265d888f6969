"""Every rule against its definition and every kernel against its rule, in float64: one row for each, and a rule or a
kernel without a row fails."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

import fxlrp
from fxlrp.capture.functions import Stepwise
from fxlrp.engine.replaced import ByRule
from fxlrp.methods.abslrp import ABSLRP
from fxlrp.methods.published import by_definition
from fxlrp.patterns.centring import centred, offset
from fxlrp.patterns.elementwise import Elementwise, Gate
from fxlrp.rules import ABSOLUTE, STRUCTURAL
from fxlrp.rules.absolute import absolute
from fxlrp.rules.normalise import MASS, NONE
from fxlrp.rules.per_sample import Placement, SampleAxis
from fxlrp.rules.quantities import over_abs, ratio
from fxlrp.rules.registry import Rule
from fxlrp.rules.values import stands_for

aten = torch.ops.aten


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@dataclass(eq=False)
class Row:
    """An op with arguments (two samples in the tensors that carry relevance) and the rule's own definition, if it has
    one other than the generic rule: h and its absolute companion h_abs, whose derivatives are summed; h alone stands
    for its ordinary derivative."""

    op: Callable
    args: tuple
    argnums: tuple[int, ...] = (0,)
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
    *(
        Row(op, (x3, -1, *rest), h=lambda x, *_: x - x.logsumexp(-1, keepdim=True).detach())
        for op, rest in ((aten.log_softmax.int, ()), (aten._log_softmax.default, (False,)))
    ),
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
    return type(row.op) if isinstance(row.op, Elementwise | Stepwise) else row.op, row.argnums


def name(row: Row) -> str:
    return f"{getattr(row.op, '__name__', row.op)}{row.argnums}"


def rule_of(row: Row) -> Rule:
    entry = ABSLRP.lookup(row.op, row.argnums)
    assert isinstance(entry, Rule), f"{row.op} with {row.argnums} active has no rule"
    return entry


def told(row: Row) -> dict[str, Any]:
    known = {"op": row.op, "argnums": argnums_of(row)}
    return {keyword: value for keyword, value in known.items() if rule_of(row).wants(keyword)}


def argnums_of(row: Row) -> tuple[int, ...]:
    entry = rule_of(row)
    return row.argnums if entry.argnums is None else entry.argnums


def definition(row: Row) -> Callable[..., list[Tensor]]:
    """The rule by autograd from its definition, as cotangents of `row.argnums`."""
    if row.h is None:
        return partial(absolute, op=row.op, argnums=row.argnums)

    def rule(g: Tensor, z: Tensor, *args: Any, **kwargs: Any) -> list[Tensor]:
        leaves, spec = pytree.tree_flatten(args)
        xs = [leaves[i].detach().requires_grad_() for i in row.argnums]
        for i, x in zip(row.argnums, xs, strict=True):
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
    entries = {(op, args) for (op, args), e in ABSLRP.entries.items() if isinstance(e, Rule) and e is not ABSOLUTE}
    # `out=` overloads never appear in a captured graph; rules by an op's name: test_grouped_mm_is_a_linear_per_group
    entries = {(op, args) for op, args in entries if "out" not in getattr(op, "_overloadname", "")}
    entries = {(op, args) for op, args in entries if not isinstance(op, str)}
    assert entries - rows == set()


@pytest.mark.parametrize("row", [r for r in ROWS if r.h or rule_of(r) is not ABSOLUTE], ids=name)
def test_equals_definition(row: Row) -> None:
    entry, kwargs = rule_of(row), row.kwargs or {}
    z = row.op(*row.args, **kwargs)
    g = rand(*z.shape, seed=9)
    found = entry.fn(g, z, *row.args, **kwargs, **told(row))
    found = (found,) if isinstance(found, Tensor) else found
    leaves, argnums = pytree.tree_leaves(row.args), argnums_of(row)
    wanted = dict(zip(row.argnums, definition(row)(g, z, *row.args, **kwargs), strict=True))
    for i, f in zip(argnums, found, strict=True):
        torch.testing.assert_close(leaves[i] * f, leaves[i] * wanted[i], rtol=1e-10, atol=1e-10)
    for i in set(row.argnums) - set(argnums):
        assert not wanted[i].any(), "the definition gives relevance to an argument the rule leaves out"


def site(row: Row, normalise: Any) -> ByRule:
    argnums = argnums_of(row)
    batch = Placement(SampleAxis(0), (SampleAxis(0),) * len(argnums))
    return ByRule(row.op, rule_of(row), "row", "test", normalise, argnums, batch)


PAIRED = (aten.bmm.default, centred, offset, aten.grid_sampler.default, aten.grid_sampler_2d.default)
"""Ops whose constants go with the samples."""

BATCHED = [
    r
    for r in ROWS
    if r.op not in (aten.mm.default, aten.rsqrt.default, aten.reciprocal.default)
    and r.op not in (aten.mean.default, aten.sum.default, aten.trace.default)
    and all(pytree.tree_leaves(r.args)[i].shape[0] == 2 for i in r.argnums)
]


@pytest.mark.parametrize("row", BATCHED, ids=name)
def test_mass_is_kept_and_samples_are_apart(row: Row) -> None:
    kwargs = row.kwargs or {}

    def run(pick: slice) -> tuple[list[Tensor], Tensor]:
        leaves, spec = pytree.tree_flatten(row.args)
        paired = [i for i, t in enumerate(leaves) if i in row.argnums or (row.op in PAIRED and isinstance(t, Tensor))]
        for i in paired:
            leaves[i] = leaves[i][pick].clone().requires_grad_(i in row.argnums)
        xs = [leaves[i] for i in row.argnums]
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


def test_linear_written_out() -> None:
    """R_i = Σ_j 2 (x_i w_ij)⁺ R_j / |z_j|, with loops."""
    x, w, b = rand(1, 5), rand(4, 5, seed=1), rand(4, seed=2)
    z = x @ w.T + b
    g = rand(1, 4, seed=3)
    expected = torch.zeros(5).double()
    for i in range(5):
        for j in range(4):
            expected[i] += 2 * max(x[0, i] * w[j, i], 0) * (z[0, j] * g[0, j]) / abs(z[0, j])
    got = x * site(Row(aten.linear.default, (x, w, b)), NONE).call_rule(g, z, [x], (x, w, b), {})[0]
    torch.testing.assert_close(got[0], expected, rtol=1e-12, atol=1e-12)


def test_convolution_written_out() -> None:
    x, w = rand(1, 1, 4), rand(1, 1, 2, seed=1)
    z = torch.nn.functional.conv1d(x, w)
    g = rand(1, 1, 3, seed=2)
    expected = torch.zeros(4).double()
    for o in range(3):
        for k in range(2):
            expected[o + k] += 2 * max(x[0, 0, o + k] * w[0, 0, k], 0) * z[0, 0, o].sign() * g[0, 0, o]
    (found,) = absolute(g, z, x, w, op=aten.conv1d.default, argnums=(0,))
    torch.testing.assert_close((x * found)[0, 0], expected, rtol=1e-12, atol=1e-12)


def test_zero_output_carries_no_relevance() -> None:
    x, w = torch.zeros(1, 3).double(), rand(2, 3)
    (g,) = absolute(torch.ones(1, 2).double(), x @ w.T, x, w, op=aten.linear.default, argnums=(0,))
    assert torch.isfinite(g).all()
    assert not (x * g).any()


def test_what_is_at_zero_takes_nothing_whatever_the_derivative() -> None:
    x = torch.tensor([0.0, 4.0]).double()
    (g,) = absolute(torch.ones(2).double(), x.sqrt(), x, op=aten.sqrt.default, argnums=(0,))
    assert (x * g).tolist() == [0, 2 * 4 * 0.25]


def test_what_keeps_relevance_is_not_rescaled() -> None:
    """What is rounded from 0 loses its relevance, which the other entries do not take."""
    x = torch.tensor([[0.0, 1.2]]).double()
    row = Row(aten.ceil.default, (x + 0.0,))
    (g,) = site(row, MASS).propagate(torch.ones(1, 2).double(), torch.tensor([[1.0, 2.0]]).double(), [x], (x,), {})
    torch.testing.assert_close(x * g, torch.tensor([[0.0, 2.0]]).double())


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
        absolute(c, c, c, op=cut_off, argnums=(0,))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_ratio_drops_what_divides_by_nothing(dtype: torch.dtype) -> None:
    a, b = torch.tensor([1, 2, 3, 0, 5], dtype=dtype), torch.tensor([2, -4, 0, 0, 0.25], dtype=dtype)
    assert torch.equal(ratio(a, b), torch.tensor([0.5, -0.5, 0, 0, 20], dtype=dtype))
