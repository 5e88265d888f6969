"""Random small models keep what the README promises: programs composed of what people write forwards with.

A program is data: a list of steps that each take earlier values and give a new one, so that a failing one prints and
shrinks.  The suite runs the same 14 each time, `make random` 10,000 others (EXAMPLES=300 SEED=7: 300, by another seed).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from conftest import randomize
from hypothesis import Phase, assume, core, event, given, reject, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

import fxlrp.capture.trace
from fxlrp import FxlrpError, convert
from fxlrp.agreement import no_fast_attention
from fxlrp.explainer import Explainer
from fxlrp.methods.abslrp import ABSLRP
from fxlrp.rules.normalise import MASS, BoundRule, Normalise
from fxlrp.rules.per_sample import Placement, sample_sum
from fxlrp.rules.quantities import relevance
from fxlrp.rules.registry import Rulebook

PHASES = (Phase.generate, Phase.shrink)  # explaining a failure traces every line of torch
settings.register_profile("suite", max_examples=14, deadline=None, derandomize=True, database=None, phases=PHASES)
settings.register_profile(
    "many", settings.get_profile("suite"), max_examples=int(os.environ.get("EXAMPLES", "300")), derandomize=False
)

SIGNED = (
    *("epsilon", "zplus", "alpha-beta", "gamma", "epsilon-plus-flat", "attnlrp", "cp-lrp", "reslrp"),
    *("epsilon-alpha2-beta1", "epsilon-gamma-box"),
)
"""The rulebook that a program is explained by besides, by its seed."""
MANY = core.global_force_seed is not None  # `pytest --hypothesis-seed=…`

C, L = 4, 6  # every value is [B, C, L]

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

# What a step does with values x and y, a vector v and a square w of weights as long as their last axis, a mask and an
# order of its entries, and the module m.  A failing program prints as this code.
# fmt: off
LAST_AXIS = (  # looking along the last axis at most: right in any layout
    "F.relu(x)", "x + y", "x - 2 * y", "x * y", "x / (y.relu() + 1)", "x * y.sigmoid()", "torch.addcmul(x, x, y)", "-x",
    "F.gelu(x)", "F.silu(x)", "F.mish(x)", "F.hardswish(x)", "F.softplus(x)", "F.elu(x)", "F.leaky_relu(x)", "x.tanh()",
    "F.relu6(x)", "F.hardtanh(x)", "x.clamp(-0.5, 1.5)", "x.sigmoid()", "x.sin()", "x ** 2", "x.abs().log1p()",
    "1.5 * x / 2 - 0.1", "1 - x", "v + x", "x * v", "torch.maximum(x, y)", "x.sort(-1).values",
    "x.relu_()", "x.sigmoid_()", "x.mul_(v)", "x.add_(y, alpha=0.5)", "x.mul_(y)", "x.sub_(y.flip(-1))",
    "torch.where(mask, x, y)", "x.masked_fill(mask, 0) + torch.where(mask, y, 0.0)", "x.index_add(-1, order, y)",
    "m.linear(x) if x.shape[-1] == 6 else F.linear(x, w)", "F.linear(x, w.T, v)", "x @ w + v", "x.cumsum(-1)",
    "torch.einsum('...i,ij->...j', x, w)", "F.linear(torch.cat([x, y], -1), torch.cat([w, w.T], -1))", "x.roll(1, -1)",
    "x + y.mean(-1, keepdim=True)", "x.sum(-1, keepdim=True) - y", "x * y.amax(-1, keepdim=True)", "x[..., order]",
    "x - y.min(-1, keepdim=True).values", "x - x.logsumexp(-1, keepdim=True)", "x.gather(-1, order.expand(x.shape))",
    "x.softmax(-1)", "F.layer_norm(x, v.shape, v, v + 1)", "F.rms_norm(x, v.shape, v)", "F.normalize(x, dim=-1)",
    "x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * v", "F.glu(torch.cat([x, y], -1))",
    "(x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()",
    "F.pad(x, (1, 2))[..., 2:-1]", "torch.cat(x.chunk(2, -1)[::-1], -1)", "torch.stack([x, y], -1).amax(-1)",
    "torch.stack(torch.hstack([x, y]).chunk(2, 1)).sum(0)", "x * y[..., 0, None] + x[..., -1:].expand_as(y)",
    "torch.cat([t * s for t, s in zip(x.split(1, -1), y.split(1, -1))], -1)",
    "x[..., ::2].repeat_interleave(2, -1)[..., : len(v)]",
)
RARER = (  # likewise
    "F.prelu(x, v[:1].abs())", "F.logsigmoid(x)", "F.softmin(x, -1)", "torch.lerp(x, y, 0.3)",
    "x.topk(2, -1).values.sum(-1, keepdim=True) * y", "x.scatter(-1, order.argsort().expand(x.shape), y)",
    "x.cummax(-1).values", "x.norm(dim=-1, keepdim=True) + y", "x.round() + y", "F.selu(x)",
    "x + (x.round() - x).detach()", "F.dropout(x, 0.5, False)", "F.hardsigmoid(x) * y", "x * (y > 0)", "x.triu()",
    "torch.special.expit(x) - torch.erf(y)", "x.std(-1, keepdim=True) - y", "x.amax(-1, keepdim=True) - x",
    "x.masked_fill(y < y.mean(-1, keepdim=True), float('-inf')).softmax(-1)", "x.median(-1, keepdim=True).values + y",
    "x.masked_fill(y < y.mean(-1, keepdim=True), float('-inf')).log_softmax(-1).amax(-1, True) + y",
    "x.log_softmax(-1)",
)
WRITES = (  # statements that leave their result in x; likewise
    "x[..., 0] = y[..., 1]", "x[..., mask] = 0", "x += y; x *= 0.5", "z = x.clone(); z += y; x = z - x",
    "x[..., :2].relu_(); x[..., 2:].copy_(y[..., 2:])",
    "z = x[..., :2]; x.add_(y); x = torch.cat([z, x[..., 2:] * 2], -1)",
    "z = torch.zeros_like(x); z[..., 1:] = x[..., 1:]; z[..., 0] += y[..., 0]; x = z",
    "z = x.new_zeros(x.shape[-1]); z[:2] = 0.5; y = x * z; z[1:] += 1; x = y - z * x",
)
MATRIX = (  # the samples are not among the last two axes
    "x @ y.transpose(-2, -1) @ y", "torch.einsum('...ij,...kj->...ik', x, y) @ x", "m.square(x.mT) @ x",
    "F.linear(x.mT, m.square(x.mT)).mT + y", "x - y.mean((-2, -1), keepdim=True)",
    "F.scaled_dot_product_attention(x, y, y)", "F.scaled_dot_product_attention(x, x, y, is_causal=True)",
)
PLAIN = (
    "m.conv(x)", "m.conv(m.conv(x).relu_())", "m.norm(m.conv(x))", "m.up(m.down(x))", "m.norm(x)", "m.group_norm(x)",
    "m.instance_norm(x)", "F.max_pool1d(x, 3, 1, 1)", "F.avg_pool1d(x, 3, 1, 1)", "torch.bmm(torch.bmm(x, y.mT), x)",
    "x * F.adaptive_avg_pool1d(y, 1).sigmoid()", "F.interpolate(F.adaptive_avg_pool1d(x, 3), scale_factor=2.0)",
    "torch.addmm(v, x.flatten(0, 1), w).view(x.shape)", "torch.baddbmm(x, x @ y.mT, y, beta=2)",
    "torch.stack([t.relu() + s for t, s in zip(x.unbind(0), y)])",
)
RARER_PLAIN = (
    "m.gru(x)[0]", "m.lstm(x)[0] + y",
    "m.cell(x[:, 0], y[:, 1])[:, None] * x", "m.attention(x, y, y)[0]", "F.max_pool1d(x, 2).repeat(1, 1, 2)",
    "F.interpolate(x, scale_factor=0.5, mode='linear').repeat(1, 1, 2)", "F.fold(F.unfold(x[:, :, None], (1, 3), "
    "padding=(0, 1)), (1, 6), (1, 3), padding=(0, 1))[:, :, 0]", "x.index_copy_(1, order[:1] % 4, y[:, 1:2].clone())",
)
IMAGE = (
    "m.conv2d(x)", "F.avg_pool2d(x, (2, 1)).expand_as(x) * y", "x - F.max_pool2d(y, 3, 1, 1)",
    "F.adaptive_avg_pool2d(x, 1) * y",
)
# fmt: on
WHERE = {  # the layouts an op is right in
    **dict.fromkeys(LAST_AXIS + WRITES, tuple(LAYOUTS)),
    **dict.fromkeys(MATRIX, ("plain", "swapped", "image", "windows", "heads")),
    **dict.fromkeys(PLAIN, ("plain",)),
    **dict.fromkeys(IMAGE, ("image",)),
}
if MANY:  # the suite's few programs are of the common ones
    WHERE |= {**dict.fromkeys(RARER, tuple(LAYOUTS)), **dict.fromkeys(RARER_PLAIN, ("plain",))}


@dataclass(frozen=True)
class Step:
    """The next value: back(op(x, y)), with x and y the last values but so many, as the layout shows them."""

    op: str
    layout: str
    x: int
    y: int


@dataclass(frozen=True)
class Program:
    """Steps from the inputs to a last value, what logits are made of that, and what is returned."""

    steps: tuple[Step, ...]
    inputs: int
    head: str
    returns: str
    seed: int
    complete: bool  # compare with the graph that torch's complete functionalization gives


class Composed(nn.Module):
    """What a program says, with random weights; however many steps use a layer, there is one of it."""

    def __init__(self, program: Program) -> None:
        super().__init__()
        torch.manual_seed(program.seed)
        self.program = program
        self.linear, self.head = nn.Linear(L, L), nn.ModuleList([nn.Linear(C * L, 16), nn.ReLU(), nn.Linear(16, 3)])
        self.conv, self.conv2d = nn.Conv1d(C, C, 3, padding=1), nn.Conv2d(C, C, 3, padding=1, groups=2)
        self.down, self.up = nn.Conv1d(C, C, 2, stride=2), nn.ConvTranspose1d(C, C, 2, stride=2)
        self.norm, self.group_norm = nn.BatchNorm1d(C), nn.GroupNorm(2, C)
        self.instance_norm = nn.InstanceNorm1d(C, affine=True)
        self.gru, self.lstm = nn.GRU(L, L, batch_first=True), nn.LSTM(L, L, batch_first=True)
        self.cell, self.attention = nn.GRUCell(L, L), nn.MultiheadAttention(L, 2, batch_first=True)
        self.weight = nn.Parameter(torch.randn(C * L, C * L) / 2)
        self.register_buffer("numbers", torch.randn(C * L))
        self.register_buffer("permuted", torch.randperm(C * L))

    def square(self, x: Tensor) -> Tensor:
        return self.weight[: x.shape[-1], : x.shape[-1]]

    def run(self, op: str, x: Tensor, y: Tensor) -> Tensor:
        n = x.shape[-1]
        v, w, order = self.numbers[:n], self.square(x), self.permuted[:n] % n
        scope = {"m": self, "x": x, "y": y, "v": v, "w": w, "mask": v > 0, "order": order, "torch": torch, "F": F}
        exec(op if op in WRITES else f"x = {op}", scope)
        return scope["x"]

    def forward(self, *inputs: Tensor) -> Any:
        values = list(inputs)
        for step in self.program.steps:
            to, back = LAYOUTS[step.layout]
            x, y = (to(values[-1 - i % len(values)]) for i in (step.x, step.y))
            values.append(back(self.run(step.op, x, y)))
        last = values[-1]
        logits = last.mean(2) if self.program.head == "mean" else last[:, :3, 0]
        if self.program.head == "linear":
            logits = last.flatten(1)
            for layer in self.head:
                logits = layer(logits)
        forms = {"tensor": logits, "tuple": (logits, last + 1), "dict": {"hidden": values[-2] + 1, "logits": logits}}
        return {**forms, "probabilities": logits.softmax(1)}[self.program.returns]


STEPS = st.builds(
    lambda op, layout, x, y: Step(op, WHERE[op][layout % len(WHERE[op])], x, y),
    *(st.sampled_from(list(WHERE)), st.integers(0, len(LAYOUTS) - 1), st.integers(0, 1), st.integers(0, 3)),
)
PROGRAMS = st.builds(
    Program,
    st.lists(STEPS, min_size=1, max_size=8 if MANY else 4).map(tuple),
    st.integers(1, 2),
    st.sampled_from(["linear", "mean", "select"]),
    st.sampled_from(["tensor", "tuple", "dict", "probabilities"]),
    st.integers(0, 9),
    st.sampled_from([False, False, True]),
)


class Ledger(list[tuple[Tensor, Tensor, bool]]):
    """Of each op with a rule: the mass that came and the mass its inputs took, per sample, and whether signs turned."""

    def book(self) -> Rulebook:
        """The default rulebook, entered here whenever a rule is called."""
        return ABSLRP.extend(name="audited", normalise=Normalise("audited", self.scale))

    def scale(self, call: BoundRule, g: Tensor, z: Tensor, xs: Sequence[Tensor], where: Placement) -> list[Tensor]:
        def parts(gs: Sequence[Tensor]) -> list[Tensor]:
            return [relevance(x, c, where.masked) for x, c in zip(xs, gs, strict=True)]

        def mass(rs: Sequence[Tensor]) -> Tensor:
            return torch.stack([sample_sum(r.abs(), b) for r, b in zip(rs, where.inputs, strict=True)]).sum(0)

        found, r = MASS.scale(call, g, z, xs, where), relevance(z, g, where.masked)
        came, taken, offered = sample_sum(r.abs(), where.output), mass(parts(found)), mass(parts(call(g)))
        assert (taken <= came * (1 + 1e-9)).all(), f"an op gave its inputs {taken.tolist()} of {came.tolist()}"
        turned = any(bool((p < 0).any()) for p in parts(found)) or bool((r < 0).any())
        if not turned:
            some = offered > 16 * torch.finfo(came.dtype).eps * came
            torch.testing.assert_close(taken, came * some, rtol=1e-9, atol=1e-12, msg=lambda m: f"op lost {m}")
        self.append((came, taken, turned))
        return found


def explain(explainer: Explainer, inputs: Iterable[Tensor]) -> Tensor:
    """Relevance of all inputs for class 1."""
    found = explainer(*inputs, target=1, contrast=None).relevance
    return torch.stack(found if isinstance(found, tuple) else (found,), 1)


def far(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max().clamp(min=1e-300))


def derivative(program: Program, inputs: Sequence[Tensor]) -> list[Tensor] | None:
    """Each input times autograd's own gradient of the logits of class 1; None where torch refuses to go back."""
    model = randomize(Composed(replace(program, returns="tensor")))
    leaves = [x.clone().requires_grad_() for x in inputs]
    try:
        logits = model(*(x.clone() for x in leaves))
        grads = torch.autograd.grad(logits[:, 1].sum(), leaves, allow_unused=True)
    except RuntimeError:  # a value that the derivative needs is written over, or nothing leads back
        return None
    return [torch.zeros_like(x) if g is None else x.detach() * g for x, g in zip(leaves, grads, strict=True)]


def check_signed(explainer: Explainer, program: Program, inputs: Sequence[Tensor], scores: Tensor) -> None:
    """By rulebooks that do not rescale: the derivative is autograd's, samples keep apart, and kernels give what the
    formulas give."""
    wanted = derivative(program, inputs)
    found = explainer.by("gradient-input")(*inputs, target=1, contrast=None).named
    if wanted is not None and all(w.isfinite().all() for w in wanted):
        event("the derivative is known")
        size = max(float(w.abs().max()) for w in wanted)
        for i, w in enumerate(wanted):  # what the score does not depend on is not explained
            off = float((found.get(str(i), torch.zeros_like(w)) - w).abs().max())
            assert off <= 1e-8 * size + 1e-12, f"x · gradient of input {i} is {off} off"
    for name in ("abslrp-hybrid", SIGNED[program.seed]):
        try:
            explainer.by(name).call(tuple(inputs), {})
        except FxlrpError as error:  # whose rule for a softmax gives its input none, where there is no way around
            if "No input gets relevance by cp-lrp: its rule for softmax" not in str(error):
                raise
            event("no relevance by cp-lrp")
            continue
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("fxlrp.acceleration.FAST", False)
            whole = explain(explainer.by(name), inputs)
        assert whole.isfinite().all(), f"relevance by {name} is not finite"
        if whole.abs().max() < 1e-12 * scores.abs().max():
            event("the score depends on nothing but rounding")
            continue
        if far(explain(explainer.by(name), [x * (1 + 1e-10 * torch.randn_like(x)) for x in inputs]), whole) > 1e-6:
            event(f"relevance by {name} is not continuous here: rounding decides")
            continue
        fast = explainer.by(name)
        assert far(explain(fast, inputs), whole) < 1e-6, f"kernels and the rules they stand for differ by {name}"
        alone = torch.cat([explain(fast, (x[i : i + 1] for x in inputs)) for i in range(3)])
        assert far(alone, whole) < 1e-6, f"a sample depends on the others by {name}"


@pytest.fixture(autouse=True, scope="module")
def _one_pass() -> Iterator[None]:
    """What is dropped is counted once: a map that is zero is not made again to see where relevance ended."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fxlrp.zero_maps.zero_maps", lambda *args: [])
        yield


@settings(settings.get_profile("many" if MANY else "suite"))
@given(PROGRAMS)
def test_random_programs(program: Program) -> None:
    model = randomize(Composed(program))
    inputs = [torch.randn(3, C, L, dtype=torch.float64) for _ in range(program.inputs)]
    copies, pair = [x.clone() for x in inputs], tuple(x[:2] for x in inputs)
    batches = [slice(0, 2), slice(0, 3), *(slice(i, i + 1) for i in range(3))]
    try:
        with torch.no_grad():
            expected = [model(*(x[rows].clone() for x in inputs)) for rows in batches]
    except RuntimeError:  # writes between two views of one tensor
        reject()
    with torch.no_grad(), no_fast_attention():
        slow = model(*(x.clone() for x in inputs))
    if not all(map(torch.allclose, pytree.tree_leaves(slow), pytree.tree_leaves(expected[1]))):
        event("torch's fast attention lays out its result otherwise, and it is written into")
        reject()
    ledger = Ledger()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fxlrp.acceleration.FAST", False)
        explainer = convert(model, pair, rules=ledger.book(), strict=True)

    logits = []
    for rows, wanted in zip(batches, expected, strict=True):
        a = explainer(*(x[rows] for x in inputs), target=1)
        close = {"rtol": 1e-10, "atol": 1e-10, "msg": lambda m, r=rows: f"the forward of {r} changed: {m}"}
        torch.testing.assert_close(a.output, wanted, **close)
        assert all(torch.equal(x, c) for x, c in zip(inputs, copies, strict=True)), "the inputs were written to"
        relevances = a.relevance if isinstance(a.relevance, tuple) else (a.relevance,)
        assert all(r.isfinite().all() for r in relevances), "relevance against the others is not finite"
        logits.append(a.logits)

    if logits[1].abs().max() < 1e-9:
        event("the score is what rounding left of a sum that cancels")
    elif torch.allclose(torch.cat(logits[2:]), logits[1], rtol=1e-10, atol=1e-10):
        check_signed(explainer, program, inputs, logits[1])
    ledger.clear()
    whole = explain(explainer, inputs)
    mass = whole.abs().flatten(1).sum(1)
    assert whole.isfinite().all(), "relevance is not finite"
    assert (mass <= 1 + 1e-9).all(), f"mass came out of nothing: {mass.tolist()}"
    if not any(turned for *_, turned in ledger):
        assert (whole >= -1e-12 * whole.max()).all(), "relevance changed its sign between the ops that have rules"
        dropped = sum(float((came - taken).sum()) for came, taken, _ in ledger)
        missing = int((logits[1][:, 1] != 0).sum()) - dropped - float(mass.sum())
        assert abs(missing) < 1e-9, f"{missing} of relevance was lost between the ops that have rules"
        event("all relevance accounted for")

    if not mass.all():
        event("a sample without relevance")
    assume(mass.any())
    assume((logits[1].abs() > 1e-9).all())  # less is what rounding left of a sum that cancels
    if not torch.allclose(torch.cat(logits[2:]), logits[1], rtol=1e-10, atol=1e-10):
        event("the model itself treats a batch of one otherwise: reshape is a view there, and written through")
        reject()
    if far(explain(explainer, [x * (1 + 1e-10 * torch.randn_like(x)) for x in inputs]), whole) > 1e-6:
        event("relevance is not continuous here: rounding decides")
        reject()
    for i in range(3):
        alone = explain(explainer, (x[i : i + 1] for x in inputs))
        assert (alone[0] - whole[i]).abs().max() <= 1e-8 * whole.abs().max(), f"sample {i} depends on the others"

    fast = explainer.by(ABSLRP)
    if program.complete:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(fxlrp.capture.trace, "functionalize_simple", lambda graph: False)
            fast = convert(model, pair, rules=ABSLRP)
    kept = mass > 1e-9  # kernels that know that nothing cancels also place what is less than rounding, which rules drop
    assert far(explain(fast, inputs)[kept], whole[kept]) < 1e-6, "kernels and the rules they stand for differ"
