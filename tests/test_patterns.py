"""What models write out in several ops has the relevance of the op it stands for; and no op of these is generic."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import randomize
from torch import Tensor, fx, nn

import fxlrp
from fxlrp import convert
from fxlrp.graph.facts import Facts
from fxlrp.patterns.normed import Normed
from fxlrp.patterns.residual_sums import residual_sum
from fxlrp.rules.registry import find_rulebook

Body = Callable[["Written", Tensor], Tensor]


class Written(nn.Module):
    """linear → what is tested → linear, on a sequence [B, 5, 4]."""

    def __init__(self, body: Body) -> None:
        super().__init__()
        self.a, self.b, self.body = nn.Linear(4, 6), nn.Linear(6, 3), body
        nn.init.ones_(self.a.bias)
        self.w, self.c = nn.Parameter(torch.rand(6) + 0.5), nn.Parameter(torch.randn(6))

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.body(self, self.a(x)).mean(1))


def explain(body: Body, rules: str = "abslrp") -> Tensor:
    torch.manual_seed(3)
    model, x = Written(body).double().eval(), torch.randn(3, 5, 4).double()
    explainer = fxlrp.convert(model, x, rules=rules, strict=True)
    a = explainer(x)
    torch.testing.assert_close(a.output, model(x), rtol=1e-10, atol=1e-12)
    assert a.relevance.isfinite().all()
    assert a.relevance.any()
    torch.testing.assert_close(explainer(x[1:2]).relevance[0], a.relevance[1], rtol=1e-9, atol=1e-12)
    return a.relevance


def deviation(x: Tensor) -> Tensor:
    return torch.sqrt(x.var(-1, unbiased=False, keepdim=True) + 1e-5)


def centred(x: Tensor) -> Tensor:
    return x - x.mean(-1, keepdim=True)


def rms(x: Tensor) -> Tensor:
    return x.pow(2).mean(-1, keepdim=True) + 1e-6


def exps(x: Tensor) -> Tensor:
    return torch.exp(x - x.amax(-1, keepdim=True))


def normal(e: Tensor) -> Tensor:
    return e / e.sum(-1, keepdim=True)


def rotated(x: Tensor) -> Tensor:
    """Pairs of neighbours turned by an angle that grows along the sequence, in real numbers."""
    angle = torch.arange(15).view(5, 3).double()
    a, b = x[..., ::2], x[..., 1::2]
    return torch.stack([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], -1).flatten(2)


def rotated_complex(x: Tensor) -> Tensor:
    turn = torch.polar(torch.ones(5, 3).double(), torch.arange(15).view(5, 3).double())
    return torch.view_as_real(torch.view_as_complex(x.reshape(*x.shape[:2], 3, 2)) * turn).flatten(2)


def tanh_gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x.pow(3))))


def eager_attention(x: Tensor) -> Tensor:
    mask = torch.full((5, 5), float("-inf")).triu(1).double()
    return torch.softmax(x @ x.mT / math.sqrt(6) + mask, -1) @ x


def fused_attention(x: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(x, x, x, is_causal=True)


SAME: dict[str, tuple[Body, Body]] = {
    "tanh-GELU": (lambda m, x: tanh_gelu(x), lambda m, x: F.gelu(x, approximate="tanh")),
    "erf-GELU": (lambda m, x: x * 0.5 * (1 + torch.erf(x / math.sqrt(2))), lambda m, x: F.gelu(x)),
    "SiLU": (lambda m, x: x * torch.sigmoid(x), lambda m, x: F.silu(x)),
    "Mish": (lambda m, x: x * torch.tanh(F.softplus(x)), lambda m, x: F.mish(x)),
    "hard-Swish": (lambda m, x: x * F.relu6(x + 3) / 6, lambda m, x: F.hardswish(x)),
    "sigmoid": (lambda m, x: 1 / (1 + torch.exp(-x)), lambda m, x: torch.sigmoid(x)),
    "square": (lambda m, x: x * x, lambda m, x: x.square()),
    "softmax": (lambda m, x: normal(exps(x)), lambda m, x: x.softmax(-1)),
    "layer norm": (
        lambda m, x: centred(x) / deviation(x) * m.w + m.c,
        lambda m, x: F.layer_norm(x, (6,), m.w, m.c),
    ),
    "layer norm, rsqrt": (
        lambda m, x: centred(x) * torch.rsqrt(centred(x).pow(2).mean(-1, keepdim=True) + 1e-5) * m.w + m.c,
        lambda m, x: F.layer_norm(x, (6,), m.w, m.c),
    ),
    "RMS norm": (lambda m, x: m.w * (x * torch.rsqrt(rms(x))), lambda m, x: F.rms_norm(x, (6,), m.w, 1e-6)),
    "RMS norm, quotient": (lambda m, x: m.w * x / rms(x) ** 0.5, lambda m, x: F.rms_norm(x, (6,), m.w, 1e-6)),
    "RMS norm, power": (lambda m, x: m.w * x * rms(x).pow(-0.5), lambda m, x: F.rms_norm(x, (6,), m.w, 1e-6)),
    "rotary": (lambda m, x: rotated_complex(x), lambda m, x: rotated(x)),
    "einsum": (lambda m, x: torch.einsum("btc,bsc->bts", x, x) @ x, lambda m, x: (x @ x.mT) @ x),
    "baddbmm": (lambda m, x: torch.baddbmm(x, x @ x.mT, x), lambda m, x: x + (x @ x.mT) @ x),
    "linear": (
        lambda m, x: x @ m.b.weight.T @ m.b.weight + m.c,
        lambda m, x: F.linear(F.linear(x, m.b.weight), m.b.weight.T, m.c),
    ),
    "attention": (lambda m, x: eager_attention(x), lambda m, x: fused_attention(x)),
    "std and mean": (
        lambda m, x: torch.add(*torch.std_mean(x, (1, 2), keepdim=True)) * x,
        lambda m, x: (x.std((1, 2), keepdim=True) + x.mean((1, 2), keepdim=True)) * x,
    ),
    "var and mean": (
        lambda m, x: x * torch.mul(*torch.var_mean(x, -1, correction=0))[..., None],
        lambda m, x: x * (x.var(-1, correction=0) * x.mean(-1))[..., None],
    ),
    "var and mean of one sample": (
        lambda m, x: torch.stack([t * torch.var_mean(t)[0] + torch.var_mean(t, False)[1] for t in x]),
        lambda m, x: torch.stack([t * t.var() + t.mean() for t in x]),
    ),
    "log-softmax": (lambda m, x: -(x - x.logsumexp(-1, keepdim=True)), lambda m, x: -x.log_softmax(-1)),
    "softmax by logarithms": (lambda m, x: (x - x.logsumexp(-1)[..., None]).exp(), lambda m, x: x.softmax(-1)),
    "lerp": (lambda m, x: torch.lerp(x, x.flip(1), 0.3), lambda m, x: x * 0.7 + x.flip(1) * 0.3),
    "lerp, strides": (
        lambda m, x: torch.lerp(x.mT.contiguous().mT, x.flip(1), 0.3),
        lambda m, x: x * 0.7 + x.flip(1) * 0.3,
    ),
    "lerp, gated": (
        lambda m, x: torch.lerp(x, x.flip(1), x.sigmoid()),
        lambda m, x: x * (1 - x.sigmoid()) + x.flip(1) * x.sigmoid(),
    ),
}


@pytest.mark.parametrize("rules", ["abslrp", "attnlrp"])
@pytest.mark.parametrize("name", SAME)
def test_written_out_equals_the_op(name: str, rules: str) -> None:
    written, op = (explain(body, rules) for body in SAME[name])
    torch.testing.assert_close(written, op, rtol=1e-9, atol=1e-12)


CARRIED: dict[str, Body] = {
    "quick-GELU": lambda m, x: x * torch.sigmoid(1.702 * x),
    "snake": lambda m, x: x + torch.sin(x) ** 2,
    "softsign": lambda m, x: x / (1 + x.abs()),
    "GLU": lambda m, x: F.glu(torch.cat([x, x * m.w], -1)),
    "squeeze-excite": lambda m, x: x * torch.sigmoid(m.w * x.mean(1, keepdim=True)),
    "unit vectors": lambda m, x: F.normalize(x, dim=-1),
    "cosine similarity": lambda m, x: F.cosine_similarity(x[:, :, None], x[:, None], dim=-1) @ x,
    "linear attention": lambda m, x: (
        (F.elu(x) + 1) @ ((F.elu(x) + 1).mT @ x) / (F.elu(x) + 1).sum((1, 2), keepdim=True)
    ),
    "log-sum-exp": lambda m, x: x.logsumexp(-1, keepdim=True) * m.w,
    "Fourier mixing": lambda m, x: torch.fft.fftn(x, dim=(1, 2)).real,
    "spectral filter": lambda m, x: torch.fft.irfft(torch.fft.rfft(x, dim=1) * torch.complex(m.w, m.c), n=5, dim=1),
    "spectrogram": lambda m, x: (
        torch.stft(x.flatten(1), 8, 4, window=torch.ones(8).double(), return_complex=True).abs()
        @ torch.ones(8, 6).double()
    ),
    "grid sample": lambda m, x: F.grid_sample(
        x[:, None], torch.full_like(x[..., None], 0.3).repeat(1, 1, 1, 2), align_corners=False
    )[:, 0],
    "index add": lambda m, x: x.index_add(1, torch.tensor([0, 1, 1]), x[:, :3] * 2),
    "scatter add": lambda m, x: x.scatter_add(1, torch.zeros_like(x).long(), x),
    "cumulative sum": lambda m, x: x.cumsum(1),
    "top-k": lambda m, x: x.softmax(-1).topk(6)[0],
    "unfold and fold": lambda m, x: F.fold(F.unfold(x[:, None], (2, 2)), (5, 6), (2, 2))[:, 0],
    "vmap": lambda m, x: torch.vmap(lambda t: F.layer_norm(t @ t.T @ t, (6,)))(x),
    "weight standardization": lambda m, x: x @ ((m.w[:, None] * m.c) - (m.w[:, None] * m.c).mean(0)),
}


@pytest.mark.parametrize("name", CARRIED)
def test_carries_relevance_by_rules(name: str) -> None:
    explain(CARRIED[name])


@pytest.mark.parametrize("layer", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_keep_what_gates_do_not_stop(layer: type) -> None:
    torch.manual_seed(0)

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = layer(4, 5, num_layers=2, batch_first=True, bidirectional=True)
            self.head = nn.Linear(10, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.rnn(x)[0].mean(1))

    model, x = Recurrent().double().eval(), torch.randn(3, 5, 4).double()
    explainer = fxlrp.convert(model, strict=True, rules="abslrp")
    a = explainer(x, contrast=None)
    torch.testing.assert_close(a.output, model(x))
    total = a.relevance.sum((1, 2))
    assert ((total > 0.1) & (total <= 1 + 1e-9)).all()


def test_masked_entries_carry_nothing() -> None:
    """A causal model's answer at the first step has no relevance from later ones, and no NaN."""
    torch.manual_seed(0)
    model = Written(lambda m, x: eager_attention(x)).double().eval()
    a = fxlrp.convert(model)(torch.randn(2, 5, 4).double(), target=lambda out: out[:, 0])
    assert a.relevance.isfinite().all()
    first = nn.Sequential(Written(lambda m, x: eager_attention(x)[:, :1].expand(-1, 5, -1))).double().eval()
    r = fxlrp.convert(first)(torch.randn(2, 5, 4).double(), contrast=None).relevance
    assert r[:, 0].any()
    assert not r[:, 1:].any()


@pytest.mark.parametrize("rules", ["abslrp", "abslrp-hybrid", "epsilon", "gradient-input"])
def test_a_chance_that_is_none_carries_nothing(rules: str) -> None:
    """Choices made one after the other, each from what is left: log-probabilities of −∞ beside the one picked."""

    def body(m: Written, x: Tensor) -> Tensor:
        left = x.masked_fill(torch.arange(x.shape[-1]) % 3 == 0, float("-inf")).log_softmax(-1)
        return x + left.gather(-1, left.argmax(-1, keepdim=True))

    def written(m: Written, x: Tensor) -> Tensor:
        return x + x[..., torch.arange(x.shape[-1]) % 3 != 0].log_softmax(-1).amax(-1, keepdim=True)

    torch.testing.assert_close(explain(body, rules), explain(written, rules), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("boolean", [True, False])
def test_a_query_that_may_see_nothing(boolean: bool) -> None:
    """As a padded one whose window is all padding: it gives 0, by torch too, and carries nothing."""
    mask = torch.ones(5, 5).tril(1).triu(-1) * torch.tensor([1, 1, 0, 0, 0])
    mask = mask.bool() if boolean else torch.zeros(5, 5).masked_fill(mask == 0, float("-inf")).double()

    def body(m: Written, x: Tensor) -> Tensor:
        y = F.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None], mask.clone())[:, 0]
        return torch.cat([y[:, :4], x[:, 4:]], 1)

    def shorter(m: Written, x: Tensor) -> Tensor:
        y = F.scaled_dot_product_attention(x[:, None, :4], x[:, None], x[:, None], mask[:4].clone())[:, 0]
        return torch.cat([y[:, :3], 0 * y[:, :1], x[:, 4:]], 1)

    torch.testing.assert_close(explain(body), explain(shorter), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("rules", ["abslrp", "abslrp-2024-12:leak=1", "epsilon-gamma-box"])
def test_passes_say_whether_they_change_a_graph(rules: str) -> None:
    """What is known of a graph is found anew where a pass says so."""
    book, said = find_rulebook(rules), Counter[bool]()

    def watched(run: Any) -> Any:
        def watching(gm: fx.GraphModule, facts: Facts) -> bool:
            gm.graph.eliminate_dead_code()
            before = str(gm.graph), [n.target for n in gm.graph.nodes]
            changed = run(gm, facts)
            said[changed] += 1
            assert changed or before == (str(gm.graph), [n.target for n in gm.graph.nodes]), f"{run} says nothing"
            return changed

        watching.__name__ = getattr(run, "func", run).__name__
        return watching

    watching = replace(book, name="watching", passes=tuple(map(watched, book.passes)))
    torch.manual_seed(0)
    bodies = [lambda m, x: x, *(written for written, _ in list(SAME.values())[::4])]
    for body in bodies:
        model, x = Written(body).double().eval(), torch.randn(2, 5, 4).double()
        with suppress(fxlrp.FxlrpError):  # a sigmoid in parts, where no pass joins it
            assert fxlrp.convert(model, x, rules=watching)(x, target=1).relevance.isfinite().all()
    conv = (
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).double().eval()
    )
    x = torch.randn(2, 3, 6, 6).double()
    assert fxlrp.convert(conv, x, rules=watching)(x, target=1).relevance.any()
    assert said[True]
    assert said[False]


class Sums(nn.Module):
    """Blocks of x + f(norm(x)), a sum of two branches, one of another shape, and numbers or tokens as the input."""

    def __init__(self, blocks: int, tokens: bool, norm: Callable[[int], nn.Module] = nn.LayerNorm) -> None:
        super().__init__()
        self.norms = nn.ModuleList(norm(6) for _ in range(blocks + 3))
        self.blocks = nn.ModuleList(nn.Linear(6, 6) for _ in range(blocks))
        self.embed, self.left, self.right = nn.Embedding(9, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.narrow, self.head, self.tokens = nn.Linear(6, 1), nn.Linear(6, 3), tokens

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x) if self.tokens else x
        x = self.left(x).relu() + self.right(x).relu()  # neither depends on the other
        for i, (norm, block) in enumerate(zip(self.norms, self.blocks, strict=False)):
            y = block(norm(x.flip(1))).relu()
            x = x + y if i % 2 else (y + x).view_as(x)
        x = self.norms[-3](x + self.narrow(self.norms[-2](x)))  # of another shape
        x = x.mean(1)
        return self.head(self.norms[-1](x + self.left(x).sin()))


@pytest.mark.parametrize("blocks", [0, 3, 11, 30])
def test_residual_sums_are_told_by_their_depth(blocks: int) -> None:
    model, x = randomize(Sums(blocks, False)), torch.randn(2, 4, 6, dtype=torch.float64)
    explainer = convert(model, x)
    bare = convert(randomize(Sums(blocks, False, lambda n: nn.Identity())), x)
    assert not any(getattr(n.target, "op", None) is residual_sum for n in bare.graph.graph.nodes)
    found = [n for n in explainer.graph.graph.nodes if getattr(n.target, "op", None) is residual_sum]
    assert [n.args[2] for n in found] == [blocks + 1] * (blocks + 1)
    torch.testing.assert_close(explainer(x).output, model(x))
    for other in (explainer.by("abslrp-hybrid:sum=1"), explainer.by("reslrp")):
        nodes = other.call((x,), {}).plan.graph.graph.nodes
        assert not any(getattr(n.target, "op", None) is residual_sum for n in nodes)


def test_sums_of_what_tokens_are_looked_up_for_are_left_alone() -> None:
    model, ids = randomize(Sums(30, True)), torch.randint(0, 9, (2, 4))
    explainer = convert(model, ids)
    assert not any(getattr(n.target, "op", None) is residual_sum for n in explainer.graph.graph.nodes)
    a = explainer(ids, target=1).relevance
    torch.testing.assert_close(a, explainer.by("abslrp-hybrid:sum=0")(ids, target=1).relevance)


class HandWrittenNorm(nn.Module):
    """A layer norm over channels, as many ConvNeXts write it."""

    def forward(self, x: Tensor) -> Tensor:
        u = x.mean(1, keepdim=True)
        return (x - u) / ((x - u).pow(2).mean(1, keepdim=True) + 1e-6).sqrt()


class Convolutions(nn.Module):
    """Convolutions; what comes behind them is given: `patch` behind the first, `wide` behind the second."""

    def __init__(self, patch: nn.Module, wide: nn.Module) -> None:
        super().__init__()
        self.patch, self.place = nn.Conv2d(3, 4, 2, 2), nn.Parameter(torch.randn(4, 1, 1))
        self.wide, self.head = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 3, 1)
        self.behind = nn.ModuleList([patch, wide])

    def forward(self, x: Tensor) -> Tensor:
        x = self.behind[0](self.patch(x) * 2 + self.place)
        return self.head(self.behind[1](self.wide(x))).mean((2, 3))


@pytest.mark.parametrize(
    ("patch", "wide", "normed"),
    [
        (nn.ReLU(), nn.ReLU(), []),
        (nn.BatchNorm2d(4), nn.ReLU(), []),
        (nn.BatchNorm2d(4), nn.Sequential(nn.ReLU(), nn.GroupNorm(1, 4)), []),
        (nn.GELU(), nn.GroupNorm(1, 4), ["wide"]),
        (nn.LayerNorm([4, 4, 4]), nn.ReLU(), ["patch"]),
        (HandWrittenNorm(), nn.Sequential(nn.ReLU(), nn.InstanceNorm2d(4)), ["patch"]),
        (nn.Identity(), HandWrittenNorm(), ["patch", "wide"]),
        (nn.Flatten(3), nn.LayerNorm(4), ["patch", "wide"]),
    ],
    ids=str,
)
def test_convolutions_that_a_norm_reads_are_told(patch: nn.Module, wide: nn.Module, normed: list[str]) -> None:
    model, x = randomize(Convolutions(patch, wide)), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    explainer = convert(model, x)
    found = [n for n in explainer.graph.graph.nodes if isinstance(getattr(n.target, "op", None), Normed)]
    assert [n.args[1].target.split(".")[1] for n in found] == normed
    torch.testing.assert_close(explainer(x).output, model(x))
    assert {r.op.partition(".")[0] for r in explainer.report().nodes if r.rule == "gamma"} == {"conv2d"}
    same = explainer.by("abslrp-hybrid:normed=4")(x, target=1).relevance
    as_others = bool((same == explainer(x, target=1).relevance).all())
    assert as_others == (not normed)


def test_a_rule_of_ones_own_holds_for_convolutions_that_a_norm_reads() -> None:
    op, x = torch.ops.aten.conv2d.default, torch.randn(2, 3, 8, 8, dtype=torch.float64)
    called = []

    def own(g: Tensor, z: Tensor, x: Tensor, *_: Any) -> Tensor:
        called.append(z)
        return torch.ones_like(x)

    fxlrp.rule(op)(own)
    try:
        convert(randomize(Convolutions(nn.Identity(), HandWrittenNorm())), x)(x)
    finally:
        fxlrp.rules.registry.unregister(op)
    assert len(called) == 3
