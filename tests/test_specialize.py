"""What makes an explanation faster or smaller leaves it as it is: signs known beforehand, joined ReLUs, batched passes,
checkpoints, autocast."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import randomize
from torch import Tensor, nn

import fxlrp
from fxlrp import acceleration, convert
from fxlrp.explainer import Explainer

if not acceleration.FAST:
    pytest.skip("fxlrp.fast is switched off", allow_module_level=True)

from fxlrp.fast.checkpoint import Segment, without_squares
from fxlrp.fast.memory import borrow, scratch
from fxlrp.fast.replaced import Fast

BOOKS = ["abslrp", "abslrp-hybrid", "abslrp-2024-04", "abslrp-2024-12", "attnlrp", "epsilon-plus-flat"]


def pictures(count: int) -> Tensor:
    return torch.randn(count, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(count))


def sites(explainer: Explainer, one_sided: bool) -> list[Fast]:
    graph = explainer.latest.form(one_sided).graph.graph
    return [n.target for n in graph.nodes if isinstance(n.target, Fast)]


def test_signs_are_known_without_a_contrast(cnn: nn.Module) -> None:
    explainer = convert(cnn, pictures(2), rules="abslrp")
    assert all(s.here.one_sided for s in sites(explainer, True))
    assert not any(s.here.one_sided for s in sites(explainer, False))
    x = pictures(3)
    weights = torch.eye(5, dtype=torch.float64)[[1, 2, 3]]  # a target of weights: what is known of its sign is nothing
    a, b = explainer(x, target=torch.tensor([1, 2, 3]), contrast=None), explainer(x, target=weights)
    torch.testing.assert_close(a.relevance, b.relevance, rtol=1e-9, atol=1e-14)


class Parts(nn.Module):
    """Convolutions, batch norm, a residual sum, attention, a layer norm, a gate: a few of each."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2))
        self.block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.norm, self.attention = nn.LayerNorm(8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.gate, self.head = nn.Linear(8, 16), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        tokens = (y + self.block(y)).relu().flatten(2).mT
        normed = self.norm(tokens)
        tokens = tokens + self.attention(normed, normed, normed, need_weights=False)[0]
        return self.head((tokens + nn.functional.glu(self.gate(tokens))).mean(1))


@pytest.mark.parametrize("rules", sorted(fxlrp.rulebooks()))
def test_equals_the_formulas_alone(rules: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, x = randomize(Parts()), pictures(3)
    fast = convert(model, x, rules=rules)
    monkeypatch.setattr("fxlrp.acceleration.FAST", False)
    plain = convert(model, x, rules=rules)
    for contrast in (None, "others"):
        a, b = (explainer(x, target=1, contrast=contrast).relevance for explainer in (fast, plain))
        assert (a - b).abs().max() < 1e-9 * b.abs().max()


@pytest.mark.parametrize("last", [nn.Softmax(-1), nn.LayerNorm(6)])
def test_mass_is_kept_where_signs_may_turn(last: nn.Module) -> None:
    """Relevance that comes ≥ 0 and leaves with both signs is rescaled by what leaves, not by its sum."""
    x = torch.randn(3, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(last.double(), nn.Flatten(), nn.Linear(24, 3).double()).eval()
    a = convert(model, rules="abslrp")(x, target=1, contrast=None)
    assert (a.relevance < 0).any()
    b = convert(model, rules="abslrp")(x, target=torch.eye(3, dtype=torch.float64)[[1, 1, 1]])
    torch.testing.assert_close(a.relevance, b.relevance)
    assert (a.relevance.abs().flatten(1).sum(1) <= 1 + 1e-9).all()


def test_a_norm_may_turn_the_sign() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3)).double().eval()
    x = torch.randn(4, 6, dtype=torch.float64)
    explainer = convert(model, x, rules="abslrp")
    assert [s.here.one_sided for s in sites(explainer, True)] == [
        False,
        False,
        True,
        True,
    ]  # the norm gets one sign, not gives
    weights = torch.eye(3, dtype=torch.float64)[[0, 0, 0, 0]]
    a, b = explainer(x, target=0, contrast=None), explainer(x, target=weights)
    torch.testing.assert_close(a.relevance, b.relevance, rtol=1e-9, atol=1e-14)


def test_relu_joins_the_product_before_it(cnn: nn.Module) -> None:
    explainer = convert(cnn, pictures(2), rules="abslrp")
    plan, x = explainer.latest, pictures(3)
    fast = plan.form().graph
    relu = torch.ops.aten.relu.default
    assert plan.graph.graph.find_nodes(op="call_function", target=relu)
    assert not fast.graph.find_nodes(op="call_function", target=relu)
    a, b = explainer(x), explainer(x, at=["act"])  # what names a module runs the graph that has it
    torch.testing.assert_close(a.relevance, b.relevance, rtol=1e-9, atol=1e-14)


class Residual(nn.Module):
    """Values that go to one rule alone, to two, and to what is no rule."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.second = (nn.Conv2d(i, 4, 3, padding=1) for i in (3, 4, 4))
        self.norm, self.head = nn.BatchNorm2d(4), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = (x + self.norm(self.second(self.first(x).relu()))).relu()
        x = nn.functional.max_pool2d(x, 2)
        return self.head((x + x).mean((2, 3)))


def test_masses_go_along_with_relevance_of_one_sign() -> None:
    torch.manual_seed(0)
    model, x = Residual().double().eval(), pictures(3)
    nn.init.uniform_(model.norm.running_mean)
    explainer = convert(model, pictures(2), rules="abslrp")
    known = {s.__name__: s for s in sites(explainer, True)}
    assert {s.here.has_handle for s in known.values()} == {True, False}
    assert any(s.here.any_scale for s in known.values())
    assert not any(s.here.has_handle or s.here.any_scale for s in sites(explainer, False))
    a = explainer(x, contrast=None)
    b = explainer(x, contrast=None, at=["stem"])  # what names a module runs the graph in which each rule measures
    torch.testing.assert_close(a.relevance, b.relevance, rtol=1e-9, atol=1e-14)
    torch.testing.assert_close(a.relevance.flatten(1).sum(1), torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize("rules", BOOKS)
def test_weights_of_attention_are_not_kept(rules: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    blocks = [nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True) for _ in range(3)]
    model = nn.Sequential(*blocks, nn.Flatten(), nn.Linear(160, 3)).double().eval()
    x = torch.randn(2, 20, 8, dtype=torch.float64)
    explainer = convert(model, x, rules=rules)

    graph = explainer.latest.form().graph

    def keeps_squares(graph: nn.Module) -> bool:
        return any(t.shape[-2:] == (20, 20) for t in kept_by(graph, x))

    assert keeps_squares(graph) != rules.startswith("attnlrp")  # which leaves attention fused
    assert not keeps_squares(without_squares(graph))
    a = explainer(x, target=[0, 1]).relevance
    monkeypatch.setattr("fxlrp.fast.checkpoint.without_squares", lambda graph: graph)
    b = convert(model, x, rules=rules)(x, target=[0, 1]).relevance
    torch.testing.assert_close(a, b, rtol=0, atol=0)


class Twice(nn.Module):
    """Attention whose weights are made from weights, by one more softmax, and used by two products."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.head = (nn.Linear(8, n) for n in (8, 8, 8, 3))

    def forward(self, x: Tensor) -> Tensor:
        first = (self.q(x) @ self.k(x).mT).softmax(-1)
        second = (4 * first).relu().softmax(-1)
        return self.head((first @ x + second @ self.v(x)).mean(1))


@pytest.mark.parametrize("rules", ["abslrp", "attnlrp", "gradient"])
def test_weights_made_from_weights_are_one_segment(rules: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, x = Twice().double().eval(), torch.randn(2, 20, 8, dtype=torch.float64)
    explainer = convert(model, x, rules=rules)
    graph = without_squares(explainer.latest.form().graph)
    assert sum(isinstance(m, Segment) for m in graph.children()) == (rules != "gradient")
    a = explainer(x, target=[0, 1]).relevance
    monkeypatch.setattr("fxlrp.fast.checkpoint.without_squares", lambda graph: graph)
    torch.testing.assert_close(a, convert(model, x, rules=rules)(x, target=[0, 1]).relevance, rtol=0, atol=0)


class Woven(nn.Module):
    """Two attentions of other sizes, each scaled by what the other's weights are like, in each order of the two."""

    def __init__(self, swapped: bool) -> None:
        super().__init__()
        self.swapped = swapped
        self.a, self.b, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x, y = (x[:, ::2], x) if self.swapped else (x, x[:, ::2])
        a, b = (self.a(x) @ x.mT).softmax(-1), (self.b(y) @ y.mT).softmax(-1)
        first = (a + b.amax((-1, -2), keepdim=True)) @ x
        second = (b * a.amax((-1, -2), keepdim=True)) @ y
        return self.head(torch.cat([first.mean(1), second.mean(1)], -1))


class Chained(nn.Module):
    """Attention over what another attention looks along: a product that both have a part in."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = x[:, :14]
        a, b = (self.a(x) @ y.mT).softmax(-1), (self.b(y) @ x.mT).softmax(-1)
        return self.head((a @ (b * a.mT.relu()) @ x + a @ y * b.mT.sum(-1, keepdim=True)).mean(1))


@pytest.mark.parametrize("model", [Woven(False), Woven(True), Chained()], ids=["woven", "swapped", "chained"])
@pytest.mark.parametrize("rules", ["abslrp", "epsilon"])
def test_attentions_that_need_each_other_are_segments(
    model: nn.Module, rules: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model, x = model.double().eval(), torch.randn(2, 20, 8, dtype=torch.float64)
    explainer = convert(model, x, rules=rules)
    assert any(isinstance(m, Segment) for m in without_squares(explainer.latest.form().graph).children())
    a = explainer(x, target=[0, 1]).relevance
    monkeypatch.setattr("fxlrp.fast.checkpoint.without_squares", lambda graph: graph)
    torch.testing.assert_close(a, convert(model, x, rules=rules)(x, target=[0, 1]).relevance, rtol=0, atol=0)


def kept_by(graph: nn.Module, x: Tensor) -> list[Tensor]:
    """What the relevance pass of a graph would find kept."""
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t), t)[1], lambda t: t):
        graph(x)
    return kept


class Gated(nn.Module):
    """Functions whose values rules alone ask for: behind a dropout, in a product of two, twice in one sum."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.gate, self.down, self.head = (nn.Linear(i, o) for i, o in ((6, 16), (6, 16), (16, 6), (6, 3)))
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(self.drop(nn.functional.gelu(self.up(x))))
        x = self.down(nn.functional.silu(self.gate(x)) * self.up(x))
        x = torch.tanh(x)
        return self.head(nn.functional.elu(x + x, 0.7))


@pytest.mark.parametrize("rules", BOOKS)
def test_functions_are_computed_again_instead_of_kept(rules: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, x = Gated().double().eval(), torch.randn(2, 5, 6, dtype=torch.float64)

    def explained() -> tuple[int, Tensor]:
        explainer = convert(model, x, rules=rules)
        relevance = explainer(x, target=[0, 1], position=1).relevance
        kept = kept_by(explainer.latest.form().graph, x)
        return sum({t.data_ptr(): t.nbytes for t in kept}.values()), relevance

    less, a = explained()
    monkeypatch.setattr("fxlrp.fast.specialize.recompute_functions", lambda gm: None)
    more, b = explained()
    values = 2 * 5 * (2 * 16 + 6) * 8  # of gelu, silu and elu
    assert more - less >= (values if rules == "abslrp" else 0)  # other rulebooks have fewer rules that could
    torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_scratch_memory_is_lent_and_taken_back() -> None:
    w = torch.ones(3, 2)
    assert borrow("w", w) is None
    with scratch():
        first = borrow("w", w)
        assert first is not None
        assert first.shape == (3, 2)
        smaller = borrow("w", w[:1])
        assert smaller is not None
        assert smaller.data_ptr() == first.data_ptr()
        assert borrow("other", w).data_ptr() != first.data_ptr()  # type: ignore[union-attr]
        assert borrow("w", w.T) is None  # an op would write it in another order
    assert borrow("w", w) is None


def count_batched_passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many maps each batched pass made, of those that torch could batch."""
    passes: list[int] = []
    vmap = torch.vmap

    def counted(f: Callable) -> Callable:
        def run(seeds: Tensor) -> Any:
            out = vmap(f)(seeds)
            passes.append(len(seeds))
            return out

        return run

    monkeypatch.setattr(torch, "vmap", counted)
    return passes


@pytest.mark.parametrize("rules", BOOKS)
def test_several_targets_by_one_batched_pass(cnn: nn.Module, rules: str, monkeypatch: pytest.MonkeyPatch) -> None:
    explainer, x = convert(cnn, pictures(2), rules=rules), pictures(2)
    passes = count_batched_passes(monkeypatch)
    batched = explainer(x, target=[0, 3, 4], contrast="others")
    assert passes == [6 if explainer.rulebook.contrast_passes == 2 else 3]
    monkeypatch.setattr("fxlrp.relevance_pass.AT_ONCE", 1)
    torch.testing.assert_close(batched.relevance, explainer(x, target=[0, 3, 4], contrast="others").relevance)


def test_an_op_that_cannot_be_batched_takes_a_pass_for_each_target() -> None:
    op = torch.library.custom_op("fxlrp_tests::once", lambda x: x * 2, mutates_args=(), schema="(Tensor x) -> Tensor")
    op.register_fake(lambda x: torch.empty_like(x))
    op.register_autograd(lambda ctx, g: g * 2 if bool(g.isfinite().all()) else g)

    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return op(x.relu())

    explainer, x = convert(Model().eval()), torch.rand(2, 4)
    a = explainer(x, target=[0, 1], contrast=None)
    for k in (0, 1):
        torch.testing.assert_close(a.of(k).relevance, explainer(x, target=k, contrast=None).relevance)


@pytest.mark.every(3)
@pytest.mark.parametrize("rules", BOOKS)
def test_checkpoints_leave_relevance_as_it_is(rules: str) -> None:
    torch.manual_seed(0)
    blocks = [nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True) for _ in range(6)]
    model = nn.Sequential(*blocks, nn.Flatten(), nn.Linear(40, 3)).double().eval()
    for block in blocks:
        block.self_attn.batch_first = True
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    plain, small = convert(model, x, rules=rules), convert(model, x, rules=rules, checkpoint=True)
    a, b = plain(x, target=[0, 1]), small(x, target=[0, 1])
    torch.testing.assert_close(a.relevance, b.relevance)
    split = small.latest.form(small=True, checkpoint=True).graph
    assert sum(isinstance(m, Segment) for m in split.modules()) > 2


def test_autocast_around_the_call(cnn: nn.Module) -> None:
    model = cnn.float()
    x = pictures(2).float()
    for rules in BOOKS:
        full = convert(model, x, rules=rules)(x, target=1).relevance
        with torch.autocast("cpu", torch.bfloat16):
            half = convert(model, x, rules=rules)(x, target=1)
        assert half.output.dtype == torch.bfloat16
        assert half.relevance.dtype == torch.float32
        assert half.relevance.isfinite().all()
        assert torch.corrcoef(torch.stack([full.flatten(), half.relevance.flatten()]))[0, 1] > 0.95, rules
