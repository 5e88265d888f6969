"""Every rule of the signed rulebooks (classic LRP, AttnLRP, CP-LRP, ResLRP) against its equation, in float64.

The equations are written over contributions: c_ji is what input i gives to output j, R_i = Σ_j c_ji / Σ_i c_ji R_j.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import pytest
import torch
from torch import Tensor

import fxlrp
from fxlrp.capture.functions import Stepwise
from fxlrp.engine.replaced import ByDerivative, ByRule, ByScaledDerivative, ReplacedOp
from fxlrp.patterns.centring import offset
from fxlrp.patterns.normed import Normed
from fxlrp.patterns.residual_sums import residual_sum as at_residual
from fxlrp.rules.normalise import NONE
from fxlrp.rules.per_sample import WHOLE, Placement
from fxlrp.rules.registry import Derivative, Entry, Rule, ScaledDerivative, find_rulebook
from fxlrp.rules.weighted import FirstLayer

aten = torch.ops.aten
STABILIZER = 1e-6


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def contributions(f: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Of a function linear in x but for a bias: c [outputs, inputs] and the bias [outputs]."""
    jacobian = torch.autograd.functional.jacobian(f, x).reshape(-1, x.numel())
    c = jacobian * x.flatten()
    return c, f(x).flatten() - c.sum(1)


def shared(c: Tensor, total: Tensor, r: Tensor, epsilon: float = 0.0) -> Tensor:
    """R_i = Σ_j c_ji / (total_j ± ε) R_j, with the sign of the total, and 0 / 0 = 0."""
    total = total + torch.copysign(torch.full_like(total, epsilon), total)
    return (c * (r.flatten() / total).nan_to_num(0, 0, 0)[:, None]).sum(0)


Definition = Callable[..., list[Tensor]]
"""(op, args, the place of each input that takes relevance, R at the output) → R of each of these inputs."""


def of_one(share: Callable[..., Tensor]) -> Definition:
    """A definition for ops with one such input: share(c, bias, R)."""

    def definition(op: Callable, args: tuple, places: tuple[int, ...], r: Tensor) -> list[Tensor]:
        (i,) = places
        c, bias = contributions(lambda x: op(*args[:i], x, *args[i + 1 :]), args[i])
        return [share(c, bias, r).view_as(args[i])]

    return definition


def epsilon_rule(epsilon: float) -> Definition:
    return of_one(lambda c, bias, r: shared(c, c.sum(1) + bias, r, epsilon))


def alpha_beta(alpha: float, beta: float) -> Definition:
    def share(c: Tensor, bias: Tensor, r: Tensor) -> Tensor:
        above, below = c.clamp(min=0), c.clamp(max=0)
        ups = shared(above, above.sum(1) + bias.clamp(min=0), r, STABILIZER)
        return alpha * ups - beta * shared(below, below.sum(1) + bias.clamp(max=0), r, STABILIZER)

    return of_one(share)


def gamma(by: float) -> Definition:
    def share(c: Tensor, bias: Tensor, r: Tensor) -> Tensor:
        z = c.sum(1) + bias

        def favoured(t: Tensor) -> Tensor:
            return t + by * torch.where((t > 0) == (z > 0).view(-1, *[1] * (t.ndim - 1)), t, 0)

        return shared(favoured(c), favoured(c).sum(1) + favoured(bias), r, STABILIZER)

    return of_one(share)


def uniform(op: Callable, args: tuple, places: tuple[int, ...], r: Tensor, epsilon: float = 0.0) -> list[Tensor]:
    """Half for each factor of a product, each share by contribution."""
    halves = [epsilon_rule(epsilon)(op, args, (i,), r / 2) for i in places]
    return [half[0] for half in halves]


def softmaxed(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    logits = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    return logits, logits.softmax(-1)


def attention(op: Callable, args: tuple, places: tuple[int, ...], r: Tensor) -> list[Tensor]:
    """AttnLRP, equations 13 to 15: R_x = x (R_p − p Σ R_p) at the softmax p of x, uniform at the two products."""
    q, k, v = args
    logits, p = softmaxed(q, k, v)
    r_p, r_v = uniform(torch.matmul, (p, v), (0, 1), r)
    r_logits = logits * (r_p - p * r_p.sum(-1, keepdim=True))
    r_q, r_k = uniform(lambda a, b: a @ b.transpose(-1, -2) / math.sqrt(a.shape[-1]), (q, k), (0, 1), r_logits)
    return [r_q, r_k, r_v]


def values_alone(op: Callable, args: tuple, places: tuple[int, ...], r: Tensor) -> list[Tensor]:
    """CP-LRP: the attention weights are constants."""
    _, p = softmaxed(*args)
    return epsilon_rule(0.0)(torch.matmul, (p, args[2]), (1,), r)


def detached(norm: Callable[..., Tensor]) -> Definition:
    """By contribution through a norm that divides by what it divides by at these values."""

    def definition(op: Callable, args: tuple, places: tuple[int, ...], r: Tensor) -> list[Tensor]:
        x = args[0]
        return epsilon_rule(0.0)(lambda t: norm(t, x, *args[1:]), (x,), (0,), r)

    return definition


def standardized(t: Tensor, at: Tensor, dims: list[int], eps: float) -> Tensor:
    return (t - t.mean(dims, keepdim=True)) / (at.var(dims, correction=0, keepdim=True) + eps).sqrt()


def layer_norm(t: Tensor, at: Tensor, shape: list[int], w: Tensor, b: Tensor) -> Tensor:
    return standardized(t, at, [-1], 1e-5) * w + b


def group_norm(t: Tensor, at: Tensor, groups: int, w: Tensor, b: Tensor) -> Tensor:
    parts, at = t.unflatten(1, (groups, -1)), at.unflatten(1, (groups, -1))
    return standardized(parts, at, [2, 3], 1e-5).flatten(1, 2) * w[:, None] + b[:, None]


def instance_norm(t: Tensor, at: Tensor, w: Tensor, b: Tensor, *rest: object) -> Tensor:
    return standardized(t, at, [2], 1e-5) * w[:, None] + b[:, None]


def kept(bias: Callable[..., Tensor] = lambda args: torch.zeros(())) -> Definition:
    """The first input gets R, less the part of f(0), which is a bias."""
    return lambda op, args, places, r: [r * (1 - (bias(args) / op(*args)))]


def flat(op: Callable, args: tuple, places: tuple[int, ...], r: Tensor) -> list[Tensor]:
    """R_j in equal parts to the inputs that j is connected with."""
    _, x, w, _bias, *rest = args
    c, _ = contributions(lambda t: op.op(t, torch.ones_like(w), None, *rest), torch.ones_like(x))
    return [shared((c != 0).double(), (c != 0).double().sum(1), r, STABILIZER).view_as(x)]


def z_box(low: float, high: float) -> Definition:
    """c_ji = x_i w_ij − l w_ij⁺ − h w_ij⁻."""

    def definition(op: FirstLayer, args: tuple, places: tuple[int, ...], r: Tensor) -> list[Tensor]:
        _, x, w, b, *rest = args

        def parts(t: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
            return contributions(lambda a: op.op(a, weight, bias, *rest), t)

        at_x, at_low, at_high = (
            parts(x, w, b),
            parts(torch.full_like(x, low), w.clamp(min=0), b.clamp(min=0)),
            parts(torch.full_like(x, high), w.clamp(max=0), b.clamp(max=0)),
        )
        c, bias = (a - lo - hi for a, lo, hi in zip(at_x, at_low, at_high, strict=True))
        return [shared(c, c.sum(1) + bias, r, STABILIZER).view_as(x)]

    return definition


def residual_sum(signs: tuple[float, float], by: float) -> Definition:
    """ResLRP: R_a = (1 + γ [sgn a = sgn z]) a / D R, and so b, with D the sum of both such terms."""

    def definition(op: Callable, args: tuple, places: tuple[int, ...], r: Tensor) -> list[Tensor]:
        a, b = (sign * t for sign, t in zip(signs, args, strict=False))
        z = a + b
        terms = [(1 + by * (t.sign() == z.sign())) * t for t in (a, b)]
        return [t / (terms[0] + terms[1]) * r for t in terms]

    return definition


@dataclass(eq=False)
class Row:
    """A rule, by a rulebook that has it, at an op, and its equation."""

    rule: str
    book: str
    op: Callable
    args: tuple
    definition: Definition
    places: tuple[int, ...] = (0,)
    kwargs: Mapping[str, float] = field(default_factory=dict)


X, W, B = rand(2, 5), rand(4, 5, seed=1), rand(4, seed=2)
PICTURE, FILTERS = rand(2, 3, 6, 6), rand(4, 3, 3, 3, seed=1)
LINEAR, CONV = (X, W, B), (PICTURE, FILTERS, B, [2, 2], [1, 1])
QKV = (rand(1, 3, 4), rand(1, 3, 4, seed=1), rand(1, 3, 4, seed=2))
CHANNELS, SCALE, SHIFT = rand(2, 4, 3), rand(4, seed=3), rand(4, seed=4)
INSTANCE = (CHANNELS, SCALE, SHIFT, None, None, True, 0.1, 1e-5, False)
AT_CONV, AT_LINEAR = FirstLayer(aten.conv2d.default, (0, 1, 2)), FirstLayer(aten.linear.default, (0, 1, 2))
ROWS = [
    *(Row("epsilon_rule", "epsilon:epsilon=0.1", op, args, epsilon_rule(0.1)) for op, args in (
        (aten.linear.default, LINEAR), (aten.conv2d.default, CONV), (aten.mean.dim, (X, [1])),
        (aten.add.Tensor, (X, rand(5, seed=5))), (aten.avg_pool2d.default, (PICTURE, [2, 2])),
    )),
    *(Row("epsilon_rule", "attnlrp", op, args, epsilon_rule(0.0)) for op, args in (
        (aten.linear.default, LINEAR), (aten.conv2d.default, CONV), (aten.sum.dim_IntList, (X, [1])),
    )),
    *(Row("generic", "attnlrp", op, args, epsilon_rule(0.0)) for op, args in ((aten.cumprod.default, (X, 1)),)),
    *(Row(rule, book, op, args, definition) for op, args in ((aten.linear.default, LINEAR), (aten.conv2d.default, CONV))
      for rule, book, definition in (
        ("z_plus", "zplus", alpha_beta(1, 0)),
        ("alpha_beta", "alpha-beta", alpha_beta(2, 1)),
        ("gamma", "gamma:gamma=0.3", gamma(0.3)),
    )),
    Row("z_plus", "zplus", aten.addmm.default, (B, X, W.T), alpha_beta(1, 0), (1,)),
    Row("gamma", "abslrp-hybrid", aten.matmul.default, (W, X.T), gamma(0.02), (1,)),
    Row("gamma", "abslrp-hybrid", aten.conv2d.default, CONV, gamma(4)),
    Row("gamma", "abslrp-hybrid", Normed(aten.conv2d.default), CONV, gamma(0.25)),
    Row("gamma", "abslrp-hybrid:normed=2,convolution=3", Normed(aten.conv2d.default), CONV, gamma(2)),
    Row("uniform_rule", "attnlrp", aten.mul.Tensor, (X, rand(2, 5, seed=1)), uniform, (0, 1)),
    Row("uniform_rule", "attnlrp", aten.matmul.default, (X, rand(5, 3, seed=1)), uniform, (0, 1)),
    Row("uniform_rule", "epsilon:epsilon=0.1", aten.mul.Tensor, (X, rand(2, 5, seed=1)), partial(uniform, epsilon=0.1),
        (0, 1)),
    Row("attention", "attnlrp", aten.scaled_dot_product_attention.default, QKV, attention, (0, 1, 2)),
    Row("attention_to_values", "cp-lrp", aten.scaled_dot_product_attention.default, QKV, values_alone, (0, 1, 2)),
    Row("layer_norm", "attnlrp", aten.layer_norm.default, (X, [5], rand(5, seed=1), rand(5, seed=2)),
        detached(layer_norm)),
    Row("group_norm", "attnlrp", aten.group_norm.default, (CHANNELS, 2, SCALE, SHIFT), detached(group_norm)),
    Row("instance_norm", "attnlrp", aten.instance_norm.default, INSTANCE, detached(instance_norm)),
    Row("rms_norm", "attnlrp", aten.rms_norm.default, (X, [5], rand(5, seed=1)), kept()),
    Row("identity", "attnlrp", aten.gelu.default, (X,), kept()),
    Row("identity", "attnlrp", aten.sigmoid.default, (X,), kept(lambda args: torch.full((), 0.5))),
    Row("identity", "attnlrp", aten.log.default, (X.abs(),), kept()),  # f(0) = −∞ is no bias
    Row("rounding", "attnlrp", aten.round.default, (3 * X,), kept()),
    Row("div", "attnlrp", aten.div.Tensor, (X, rand(2, 5, seed=1)), kept(), (0, 1)),
    Row("offset", "attnlrp", offset, (X, X.amax(1, keepdim=True)),
        lambda op, args, places, r: [r / op(*args) * args[0]], (0, 1)),
    Row("normaliser", "attnlrp", aten.rsqrt.default, (X.abs(),), lambda op, args, places, r: []),
    *(Row("flat", "epsilon-plus-flat", op, (torch.ones_like(args[0]), *args), flat)
      for op, args in ((AT_CONV, CONV), (AT_LINEAR, LINEAR))),
    *(Row("z_box", "epsilon-gamma-box:low=-3,high=3", op, (torch.ones_like(args[0]), *args), z_box(-3, 3))
      for op, args in ((AT_CONV, CONV), (AT_LINEAR, LINEAR))),
    *(Row("residual_sum", "reslrp:gamma=2", op, (X, rand(2, 5, seed=1)), residual_sum(signs, 2), (0, 1), alpha)
      for op, alpha, signs in (
        (aten.add.Tensor, {}, (1, 1)), (aten.sub.Tensor, {}, (1, -1)), (aten.rsub.Tensor, {}, (-1, 1)),
        (aten.sub.Tensor, {"alpha": -3}, (1, 3)), (aten.rsub.Tensor, {"alpha": 3}, (-3, 1)),
    )),
    *(Row("by_depth", "abslrp-hybrid", at_residual, (X, rand(2, 5, seed=1), depth), residual_sum((1, 1), by), (0, 1))
      for depth, by in ((6, 1 / 16), (24, 1), (60, 1))),
]  # fmt: skip


def in_place_of(row: Row) -> tuple[ReplacedOp, Entry]:
    """What stands in an op's place, and the entry that says so."""
    entry = find_rulebook(row.book).lookup(row.op, row.places)
    if isinstance(entry, Derivative):
        return ByDerivative(row.op, entry, row.book), entry
    if isinstance(entry, ScaledDerivative):
        return ByScaledDerivative(row.op, entry, row.places, row.book), entry
    assert isinstance(entry, Rule)
    argnums = row.places if entry.argnums is None else entry.argnums
    where = Placement(WHOLE, (WHOLE,) * len(argnums))
    return ByRule(row.op, entry, "row", row.book, NONE, argnums, where), entry


def name_of(entry: Entry) -> str:
    return entry.fn.rule.__name__ if isinstance(entry, Rule) and hasattr(entry.fn, "rule") else entry.name


@pytest.mark.parametrize("row", ROWS, ids=lambda r: f"{r.rule}-{getattr(r.op, '__name__', r.op)}-{len(r.places)}")
def test_equals_its_equation(row: Row) -> None:
    replaced, entry = in_place_of(row)
    assert name_of(entry) == row.rule
    xs = {i: row.args[i].clone().requires_grad_() for i in row.places}
    z = replaced(*(xs.get(i, a) for i, a in enumerate(row.args)), **row.kwargs)
    torch.testing.assert_close(z.detach(), row.op(*row.args, **row.kwargs))
    r = rand(*z.shape, seed=9)
    given = torch.autograd.grad(z, list(xs.values()), r / z.detach(), allow_unused=True)
    relevance = [row.args[i] * d for i, d in zip(xs, given, strict=True) if d is not None and d.any()]
    wanted = row.definition(row.op, row.args, row.places, r)
    assert len(relevance) == len(wanted)
    for one, other in zip(relevance, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_every_signed_rule_has_a_row() -> None:
    rows = {row.rule for row in ROWS}
    for book in fxlrp.rulebooks().values():
        if not book.name.startswith("abslrp") or book.name == "abslrp-hybrid":
            entries = [
                e for e in (*book.entries.values(), book.unknown) if isinstance(e, Rule | Derivative | ScaledDerivative)
            ]
            assert {name_of(e) for e in entries} <= rows, book.name


def test_a_sum_that_cancels_gives_what_comes_to_the_stronger_summand() -> None:
    """The ε-rule gives a = 1 and b = −0.99 a hundred times what comes, ResLRP at most 1 + 1/γ times."""
    row = Row("residual_sum", "reslrp", aten.add.Tensor, (torch.ones(1, 1), torch.full((1, 1), -0.99)), uniform, (0, 1))
    a, b = (t.double().requires_grad_() for t in row.args)
    z = in_place_of(row)[0](a, b)
    of_a, of_b = torch.autograd.grad(z, [a, b], 1 / z.detach())
    assert abs(float(of_a)) < 2
    assert abs(float(of_a + of_b * b.detach()) - 1) < 1e-12


def test_stepwise_functions_of_a_user_pass_relevance_on() -> None:
    assert find_rulebook("attnlrp").entries[Stepwise, (0,)].name == "rounding"  # type: ignore[index]
