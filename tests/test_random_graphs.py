"""Random small models keep what the README promises: programs composed of what people write forwards with.

A program is data: a list of steps that each take earlier values and give a new one, so that a failing one prints and
shrinks.  The suite runs the same 40 each time; `pytest tests/test_random_graphs.py --hypothesis-seed=7` runs 300 more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from conftest import randomize
from hypothesis import Phase, assume, core, event, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import fxlrp.capture
from fxlrp import convert
from fxlrp.explainer import Explainer
from fxlrp.rules import ABSLRP, ABSOLUTE, elementwise, products
from fxlrp.rules.propagate import MASS, Normalise, Placement, Propagate, relevance, sample_sum
from fxlrp.rules.registry import Rule, Rulebook

PHASES = (Phase.generate, Phase.shrink)  # explaining a failure traces every line of torch
settings.register_profile("suite", max_examples=40, deadline=None, derandomize=True, database=None, phases=PHASES)
settings.register_profile("many", settings.get_profile("suite"), max_examples=300, derandomize=False)

C, L = 4, 6  # every value is [B, C, L]
Op = Callable[["Composed", Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Step:
    """values.append(back(op(to(values[-1 - x]), to(values[-1 - y])))), with `to` and `back` of the layout."""

    op: str
    layout: str = "plain"
    x: int = 0
    y: int = 0


@dataclass(frozen=True)
class Program:
    """Steps from the inputs to a last value, what logits are made of that, and what is returned."""

    steps: tuple[Step, ...]
    inputs: int = 1
    head: str = "linear"
    returns: str = "tensor"
    seed: int = 0
    complete: bool = False  # compare with the graph that torch's complete functionalization gives


# How an op sees a value, and back.  Most are views, so in-place ops write through to values taken earlier.
LAYOUTS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "plain": (lambda t: t, lambda t: t),
    "swapped": (lambda t: t.transpose(1, 2), lambda t: t.transpose(1, 2)),  # [B, L, C]
    "image": (lambda t: t.unflatten(2, (2, 3)), lambda t: t.flatten(2)),  # [B, C, 2, 3]
    "flat": (lambda t: t.flatten(1), lambda t: t.view(-1, C, L)),  # [B, C·L]
    "second": (lambda t: t.permute(1, 0, 2), lambda t: t.movedim(1, 0)),  # [C, B, L]
    "rows": (lambda t: t.flatten(0, 1), lambda t: t.unflatten(0, (-1, C))),  # [B·C, L]
    "windows": (lambda t: t.reshape(-1, 2, L), lambda t: t.reshape(-1, C, L)),  # [B·2, 2, L]
    "heads": (  # [2·B, 2, L]
        lambda t: t.unflatten(1, (2, 2)).transpose(0, 1).flatten(0, 1).clone(),
        lambda t: t.unflatten(0, (2, -1)).transpose(0, 1).flatten(1, 2).clone(),
    ),
}


def assign(m: Composed, x: Tensor, y: Tensor) -> Tensor:
    x[..., 0] = y[..., 1]
    return x


def assign_masked(m: Composed, x: Tensor, y: Tensor) -> Tensor:
    x[..., m.mask(x)] = 0
    return x


def assign_into_zeros(m: Composed, x: Tensor, y: Tensor) -> Tensor:
    z = torch.zeros_like(x)
    z[..., 1:] = x[..., 1:]
    z[..., 0] += y[..., 0]
    return z


def write_view(m: Composed, x: Tensor, y: Tensor) -> Tensor:
    x[..., :2].relu_()
    x[..., 2:].copy_(y[..., 2:])
    return x


def write_viewed(m: Composed, x: Tensor, y: Tensor) -> Tensor:
    view = x[..., :2]
    x.add_(y)
    return torch.cat([view, x[..., 2:].clone()], -1)


def write_copy(m: Composed, x: Tensor, y: Tensor) -> Tensor:
    z = x.clone()
    z += y
    z *= 0.5
    return z - x


def standardised(m: Composed, x: Tensor, y: Tensor) -> Tensor:
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()


def named(*functions: Callable) -> dict[str, Op]:
    return {f.__name__: f for f in functions}


POINTWISE = (F.relu, F.gelu, F.silu, F.mish, F.hardswish, F.softplus, F.elu, F.leaky_relu, F.relu6, F.hardtanh)
LAST_AXIS: dict[str, Op] = {  # what looks along the last axis at most is right in any layout
    **{f.__name__: lambda m, x, y, f=f: f(x) for f in POINTWISE},
    "tanh": lambda m, x, y: x.tanh(),
    "sigmoid": lambda m, x, y: x.sigmoid(),
    "clamp": lambda m, x, y: x.clamp(-0.5, 1.5),
    "neg": lambda m, x, y: -x,
    "affine": lambda m, x, y: 1.5 * x / 2 - 0.1,
    "one_minus": lambda m, x, y: 1 - x,
    "shift": lambda m, x, y: m.vector(x) + x,
    "scale": lambda m, x, y: x * m.vector(x),
    "relu_": lambda m, x, y: x.relu_(),
    "sigmoid_": lambda m, x, y: x.sigmoid_(),
    "scale_": lambda m, x, y: x.mul_(m.vector(x)),
    "add_": lambda m, x, y: x.add_(y, alpha=0.5),
    "mul_": lambda m, x, y: x.mul_(y),
    "sub_": lambda m, x, y: x.sub_(y.flip(-1)),
    "add": lambda m, x, y: x + y,
    "sub": lambda m, x, y: x - 2 * y,
    "mul": lambda m, x, y: x * y,
    "gate": lambda m, x, y: x * y.sigmoid(),
    "div": lambda m, x, y: x / (y.relu() + 1),
    "addcmul": lambda m, x, y: torch.addcmul(x, x, y, value=0.5),
    "maximum": lambda m, x, y: torch.maximum(x, y),
    "where": lambda m, x, y: torch.where(m.mask(x), x, y),
    "where_zero": lambda m, x, y: x.masked_fill(m.mask(x), 0) + torch.where(m.mask(x), y, 0.0),
    "linear": lambda m, x, y: m.linear(x) if x.shape[-1] == L else F.linear(x, m.square(x)),
    "tied": lambda m, x, y: F.linear(x, m.square(x).T, m.vector(x)),
    "matmul_weight": lambda m, x, y: x @ m.square(x) + m.vector(x),
    "mean": lambda m, x, y: x + y.mean(-1, keepdim=True),
    "sum": lambda m, x, y: x.sum(-1, keepdim=True) - y,
    "amax": lambda m, x, y: x * y.amax(-1, keepdim=True),
    "min": lambda m, x, y: x - y.min(-1, keepdim=True).values,
    "normalize": lambda m, x, y: F.normalize(x, dim=-1),
    "rms": lambda m, x, y: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * m.vector(x),
    "flip": lambda m, x, y: x.flip(-1),
    "roll": lambda m, x, y: x.roll(1, -1),
    "pad": lambda m, x, y: F.pad(x, (1, 2))[..., 2:-1],
    "chunk": lambda m, x, y: torch.cat(x.chunk(2, -1)[::-1], -1),
    "split": lambda m, x, y: torch.cat([t * s for t, s in zip(x.split(1, -1), y.split(1, -1), strict=True)], -1),
    "cat": lambda m, x, y: F.linear(torch.cat([x, y], -1), torch.cat([m.square(x), m.square(x).T], -1)),
    "hstack": lambda m, x, y: torch.stack(torch.hstack([x, y]).chunk(2, 1)).sum(0),
    "glu": lambda m, x, y: F.glu(torch.cat([x, y], -1)),
    "stack": lambda m, x, y: torch.stack([x, y], -1).amax(-1),
    "select": lambda m, x, y: x * y[..., 0, None] + x[..., -1:],
    "stride": lambda m, x, y: x[..., ::2].repeat_interleave(2, -1)[..., : x.shape[-1]],
    "sort": lambda m, x, y: x.sort(-1).values,
    "index": lambda m, x, y: x[..., m.order(x)],
    "gather": lambda m, x, y: x.gather(-1, m.order(x).expand(x.shape)),
    "expand": lambda m, x, y: y[..., :1].expand_as(x) + x,
    **named(assign, assign_masked, assign_into_zeros, write_view, write_viewed, write_copy, standardised),
    "sin": lambda m, x, y: x.sin(),
    "square": lambda m, x, y: x.square(),
    "log1p": lambda m, x, y: x.abs().log1p(),
    "cumsum": lambda m, x, y: x.cumsum(-1),
    "lerp": lambda m, x, y: torch.lerp(x, y, 0.3),
    "logsumexp": lambda m, x, y: x - x.logsumexp(-1, keepdim=True),
    "einsum_weight": lambda m, x, y: torch.einsum("...i,ij->...j", x, m.square(x)),
    "index_add": lambda m, x, y: x.index_add(-1, m.order(x), y),
    "softmax": lambda m, x, y: x.softmax(-1),
    "layer_norm": lambda m, x, y: F.layer_norm(x, x.shape[-1:], m.vector(x), m.vector(x) + 1),
    "rms_norm": lambda m, x, y: F.rms_norm(x, x.shape[-1:], m.vector(x)),
}
MATRIX: dict[str, Op] = {  # the samples are not among the last two axes
    "matmul": lambda m, x, y: x @ y.transpose(-2, -1) @ y,
    "einsum": lambda m, x, y: torch.einsum("...ij,...kj->...ik", x, y) @ x,
    "mT": lambda m, x, y: F.linear(x.mT, m.square(x.mT)).mT + y,
    "left_weight": lambda m, x, y: m.square(x.transpose(-2, -1)) @ x,
    "plane_mean": lambda m, x, y: x - y.mean((-2, -1), keepdim=True),
    "attention": lambda m, x, y: F.scaled_dot_product_attention(x, y, y),
    "causal": lambda m, x, y: F.scaled_dot_product_attention(x, x, y, is_causal=True),
}
PLAIN: dict[str, Op] = {
    "conv": lambda m, x, y: m.conv(x),
    "conv_twice": lambda m, x, y: m.conv(m.conv(x).relu_()),
    "conv_norm": lambda m, x, y: m.batch_norm(m.conv(x)),
    "down_up": lambda m, x, y: m.up(m.down(x)),
    "batch_norm": lambda m, x, y: m.batch_norm(x),
    "group_norm": lambda m, x, y: m.group_norm(x),
    "instance_norm": lambda m, x, y: m.instance_norm(x),
    "max_pool": lambda m, x, y: F.max_pool1d(x, 3, 1, 1),
    "avg_pool": lambda m, x, y: F.avg_pool1d(x, 3, 1, 1),
    "excite": lambda m, x, y: x * F.adaptive_avg_pool1d(y, 1).sigmoid(),
    "resample": lambda m, x, y: F.interpolate(F.adaptive_avg_pool1d(x, 3), scale_factor=2.0),
    "addmm": lambda m, x, y: torch.addmm(m.vector(x), x.flatten(0, 1), m.square(x)).view(x.shape),
    "baddbmm": lambda m, x, y: torch.baddbmm(x, x @ y.mT, y, beta=2),
    "bmm": lambda m, x, y: torch.bmm(torch.bmm(x, y.transpose(1, 2)), x),
    "copy_channels": lambda m, x, y: x.index_copy_(1, torch.tensor([3, 0]), y[:, 1:3].clone()),
}
IMAGE: dict[str, Op] = {
    "conv2d": lambda m, x, y: m.conv2d(x),
    "avg_pool2d": lambda m, x, y: F.avg_pool2d(x, (2, 1)).expand_as(x) * y,
    "max_pool2d": lambda m, x, y: x - F.max_pool2d(y, 3, 1, 1),
    "global_pool": lambda m, x, y: F.adaptive_avg_pool2d(x, 1) * y,
}
OPS = LAST_AXIS | MATRIX | PLAIN | IMAGE
VOCABULARY: dict[str, dict[str, Op]] = {
    **dict.fromkeys(LAYOUTS, LAST_AXIS),
    **dict.fromkeys(("swapped", "windows", "heads"), LAST_AXIS | MATRIX),
    "plain": LAST_AXIS | MATRIX | PLAIN,
    "image": LAST_AXIS | MATRIX | IMAGE,
}


class Composed(nn.Module):
    """What a program says, with random weights; however many steps use a layer, there is one of it."""

    def __init__(self, program: Program) -> None:
        super().__init__()
        torch.manual_seed(program.seed)
        self.program = program
        self.linear, self.head = nn.Linear(L, L), nn.ModuleList([nn.Linear(C * L, 16), nn.ReLU(), nn.Linear(16, 3)])
        self.conv, self.conv2d = nn.Conv1d(C, C, 3, padding=1), nn.Conv2d(C, C, 3, padding=1, groups=2)
        self.down, self.up = nn.Conv1d(C, C, 2, stride=2), nn.ConvTranspose1d(C, C, 2, stride=2)
        self.batch_norm, self.group_norm = nn.BatchNorm1d(C), nn.GroupNorm(2, C)
        self.instance_norm = nn.InstanceNorm1d(C, affine=True)
        self.weight = nn.Parameter(torch.randn(C * L, C * L) / 2)
        self.register_buffer("numbers", torch.randn(C * L))
        self.register_buffer("permuted", torch.randperm(C * L))

    def square(self, x: Tensor) -> Tensor:
        return self.weight[: x.shape[-1], : x.shape[-1]]

    def vector(self, x: Tensor) -> Tensor:
        return self.numbers[: x.shape[-1]]

    def mask(self, x: Tensor) -> Tensor:
        return self.vector(x) > 0

    def order(self, x: Tensor) -> Tensor:
        return self.permuted[: x.shape[-1]] % x.shape[-1]

    def forward(self, *inputs: Tensor) -> Any:
        values = list(inputs)
        for step in self.program.steps:
            to, back = LAYOUTS[step.layout]
            x, y = (to(values[-1 - i % len(values)]) for i in (step.x, step.y))
            values.append(back(OPS[step.op](self, x, y)))
        last = values[-1]
        logits = last.mean(2) if self.program.head == "mean" else last[:, :3, 0]
        if self.program.head == "linear":
            logits = last.flatten(1)
            for layer in self.head:
                logits = layer(logits)
        forms = {"tensor": logits, "tuple": (logits, last + 1), "dict": {"hidden": values[-2] + 1, "logits": logits}}
        return {**forms, "probabilities": logits.softmax(1)}[self.program.returns]


STEPS = [Step(op, layout) for layout, ops in VOCABULARY.items() for op in ops]
PROGRAMS = st.builds(
    Program,
    st.lists(
        st.builds(
            lambda step, x, y: replace(step, x=x, y=y), st.sampled_from(STEPS), st.integers(0, 1), st.integers(0, 3)
        ),
        min_size=1,
        max_size=6,
    ).map(tuple),
    st.integers(1, 2),
    st.sampled_from(["linear", "mean", "select"]),
    st.sampled_from(["tensor", "tuple", "dict", "probabilities"]),
    st.integers(0, 9),
    st.sampled_from([False, False, True]),
)

# fast rules whose definition is the generic rule
FAST = {products.linear, products.conv1d, products.conv2d, products.conv_transpose1d, products.addmm, products.matmul}
FAST |= {products.left_weight, products.right_weight}
FAST |= {elementwise.add, elementwise.mul, elementwise.shift, elementwise.shift_right}
SLOW = {k: ABSOLUTE if isinstance(e, Rule) and e.fn in FAST else e for k, e in ABSLRP.entries.items()}


class Ledger(list[tuple[Tensor, Tensor, bool]]):
    """Of each op with a rule: the mass that came and the mass its inputs took, per sample, and whether signs turned."""

    def book(self) -> Rulebook:
        """The default rulebook, entered here whenever a rule is called."""
        return ABSLRP.extend(name="audited", normalise=Normalise("audited", self.scale))

    def scale(self, call: Propagate, g: Tensor, z: Tensor, xs: Sequence[Tensor], where: Placement) -> list[Tensor]:
        def parts(gs: Sequence[Tensor]) -> list[Tensor]:
            return [relevance(x, c, where.masked) for x, c in zip(xs, gs, strict=True)]

        def mass(rs: Sequence[Tensor]) -> Tensor:
            return torch.stack([sample_sum(r.abs(), b) for r, b in zip(rs, where.inputs, strict=True)]).sum(0)

        found, r = MASS.scale(call, g, z, xs, where), relevance(z, g, where.masked)
        came, taken, offered = sample_sum(r.abs(), where.output), mass(parts(found)), mass(parts(call(g)))
        assert (taken <= came * (1 + 1e-9)).all(), f"an op gave its inputs {taken.tolist()} of {came.tolist()}"
        turned = any(bool((p < 0).any()) for p in parts(found)) or bool((r < 0).any())
        if not turned:
            torch.testing.assert_close(taken, came * (offered > 0), rtol=1e-9, atol=1e-12, msg=lambda m: f"op lost {m}")
        self.append((came, taken, turned))
        return found


def explain(explainer: Explainer, inputs: Iterable[Tensor]) -> Tensor:
    """Relevance of all inputs for class 1."""
    found = explainer(*inputs, target=1, contrast=None).relevance
    return torch.stack(found if isinstance(found, tuple) else (found,), 1)


def far(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


@settings(settings.get_profile("suite" if core.global_force_seed is None else "many"))
@given(PROGRAMS)
def test_random_programs(program: Program) -> None:
    model = randomize(Composed(program))
    inputs = [torch.randn(3, C, L, dtype=torch.float64) for _ in range(program.inputs)]
    copies, pair = [x.clone() for x in inputs], tuple(x[:2] for x in inputs)
    ledger = Ledger()
    explainer = convert(model, pair, rules=ledger.book(), strict=True)

    logits = {}
    for rows in (slice(0, 2), slice(0, 3), *(slice(i, i + 1) for i in range(3))):
        with torch.no_grad():
            expected = model(*(x[rows].clone() for x in inputs))
        a = explainer(*(x[rows] for x in inputs), target=1)
        close = {"rtol": 1e-10, "atol": 1e-10, "msg": lambda m, r=rows: f"the forward of {r} changed: {m}"}
        torch.testing.assert_close(a.output, expected, **close)
        assert all(torch.equal(x, c) for x, c in zip(inputs, copies, strict=True)), "the inputs were written to"
        relevances = a.relevance if isinstance(a.relevance, tuple) else (a.relevance,)
        assert all(r.isfinite().all() for r in relevances), "relevance against the others is not finite"
        logits[rows.start, rows.stop] = a.logits

    ledger.clear()
    whole = explain(explainer, inputs)
    mass = whole.abs().flatten(1).sum(1)
    assert whole.isfinite().all(), "relevance is not finite"
    assert (mass <= 1 + 1e-9).all(), f"mass came out of nothing: {mass.tolist()}"
    if not any(turned for *_, turned in ledger):
        assert (whole >= 0).all(), "relevance changed its sign between the ops that have rules"
        dropped = sum(float((came - taken).sum()) for came, taken, _ in ledger)
        missing = int((logits[0, 3][:, 1] != 0).sum()) - dropped - float(mass.sum())
        assert abs(missing) < 1e-9, f"{missing} of relevance was lost between the ops that have rules"
        event("all relevance accounted for")

    if not mass.all():
        event("a sample without relevance")
    assume(mass.any())
    if not torch.allclose(torch.cat([logits[i, i + 1] for i in range(3)]), logits[0, 3], rtol=1e-10, atol=1e-10):
        event("the model itself treats a batch of one otherwise: reshape is a view there, and written through")
        assume(False)
    if far(explain(explainer, [x * (1 + 1e-10 * torch.randn_like(x)) for x in inputs]), whole) > 1e-6:
        event("relevance is not continuous here: rounding decides")
        assume(False)
    for i in range(3):
        alone = explain(explainer, (x[i : i + 1] for x in inputs))
        assert (alone[0] - whole[i]).abs().max() <= 1e-8 * whole.abs().max(), f"sample {i} depends on the others"

    with pytest.MonkeyPatch.context() as patch:
        if program.complete:
            patch.setattr(fxlrp.capture, "functionalize_simple", lambda graph: False)
        slow = convert(model, pair, rules=replace(ABSLRP, name="slow", entries=SLOW))
    assert far(explain(slow, inputs), whole) < 1e-6, "fast rules and the generic one differ"
