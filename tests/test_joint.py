"""The joint graph equals the explainer it was traced from: for any batch size, compiled, and exported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

import fxlrp
from fxlrp import FxlrpError, convert
from fxlrp.export.joint import fold_constants, join_equal, remove_copies, spell_numel
from fxlrp.inputs import load_model

aten = torch.ops.aten


def pictures(count: int) -> Tensor:
    return torch.randn(count, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(count))


@pytest.mark.parametrize(
    "rules", ["abslrp", "abslrp-hybrid", "epsilon-plus-flat", "attnlrp", "gradient", "abslrp-2024-12"]
)
def test_joint_graph_is_the_explainer(cnn: nn.Module, rules: str) -> None:
    explainer = convert(cnn, pictures(2), rules=rules)
    joint = explainer.joint(contrast="others")
    assert not any("fxlrp" in str(n.target) for n in joint.traced.graph.nodes if n.op == "call_function")
    for count in (1, 3, 17):
        x = pictures(count)
        for target in (torch.full((count,), -1), torch.arange(count) % 5):
            logits, relevance = joint(x, target)
            a = explainer(x, target=None if (target < 0).all() else target, contrast="others")
            torch.testing.assert_close(logits, a.logits, rtol=1e-12, atol=1e-14)
            torch.testing.assert_close(relevance, a.relevance, rtol=1e-9, atol=1e-14)


def test_joint_graph_where_windows_stride_and_edges_are_padded() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.patches = nn.Conv2d(3, 6, 5, 2, 2), nn.Conv2d(6, 8, 2, 2)
            self.down, self.head = nn.Conv2d(8, 20, 1, 2), nn.Linear(20, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = self.patches(self.stem(x).relu()) - 0.1
            for sides in ((0, 0), (0, 1, 2, 0)):
                x = nn.functional.pad(x, sides)
            return self.head(self.down(x).tanh().mean((2, 3)))

    explainer, x = convert(Model().double().eval(), pictures(2), rules="abslrp"), pictures(3)
    for contrast in (None, "others"):
        a = explainer(x, target=[0, 4], contrast=contrast)
        for k, target in enumerate((0, 4)):
            _, relevance = explainer.joint(contrast=contrast)(x, torch.full((3,), target))
            torch.testing.assert_close(relevance, a.relevance[:, k], rtol=1e-9, atol=1e-14)
    compiled = explainer.compile(backend="aot_eager")(x, target=[0, 4])
    torch.testing.assert_close(compiled.relevance, a.relevance, rtol=1e-9, atol=1e-14)


def test_joint_graph_of_several_targets(cnn: nn.Module) -> None:
    explainer = convert(cnn, pictures(2))
    x = pictures(3)
    a = explainer(x, target=[0, 4])
    assert a.relevance.shape == (3, 2, 3, 8, 8)
    for k, target in enumerate((0, 4)):
        torch.testing.assert_close(a.of(k).relevance, explainer(x, target=target).relevance)
    _, relevance = explainer.joint(target=[0, 4])(x, torch.tensor([[0, 4]] * 3))
    torch.testing.assert_close(relevance, a.relevance, rtol=1e-9, atol=1e-14)


def test_joint_graph_of_tokens() -> None:
    class Text(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.layer, self.head = nn.Embedding(20, 8), nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, ids: Tensor) -> Tensor:
            x = self.embedding(ids)
            return self.head((x + self.layer(x).tanh()).mean(1))

    explainer = convert(Text().double().eval(), torch.randint(20, (2, 6)), rules="attnlrp")
    ids = torch.randint(20, (5, 6))
    _, relevance = explainer.joint(contrast=None)(ids, torch.full((5,), -1))
    torch.testing.assert_close(relevance, explainer(ids, contrast=None).relevance)


def test_exported_explainer_runs_without_fxlrp(cnn: nn.Module, tmp_path: Path) -> None:
    explainer = convert(cnn, pictures(2), rules="abslrp-hybrid")
    file = explainer.export(tmp_path / "e.pt2")
    x = pictures(3)
    torch.save(x, tmp_path / "x.pt")
    code = (
        "import sys, torch; sys.modules['fxlrp'] = None\n"
        f"module = torch.export.load({str(file)!r}).module()\n"
        f"out = module(torch.load({str(tmp_path / 'x.pt')!r}), torch.full((3,), -1))\n"
        f"torch.save(out, {str(tmp_path / 'out.pt')!r})"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    logits, relevance = torch.load(tmp_path / "out.pt")
    a = explainer(x)
    torch.testing.assert_close(logits, a.logits)
    torch.testing.assert_close(relevance, a.relevance, rtol=1e-5, atol=1e-12)
    loaded = load_model(str(file)).module
    b = loaded(x, target=torch.tensor([1, 2, 3]))
    torch.testing.assert_close(b.relevance, explainer(x, target=torch.tensor([1, 2, 3])).relevance)
    with pytest.raises(FxlrpError, match="contrast='softmax'"):
        loaded(x, contrast="others")
    with pytest.raises(FxlrpError, match="out of range"):
        loaded(x, target=9)
    with pytest.raises(FxlrpError, match="inputs of another shape"):
        loaded(torch.randn(1, 3, 9, 9, dtype=torch.float64))


def test_compiled_equals_eager(cnn: nn.Module) -> None:
    x = pictures(2)
    eager, compiled = convert(cnn, x), convert(cnn, x).compile(backend="aot_eager")
    for asked in ({}, {"target": 1, "contrast": None}, {"target": [1, 2]}, {"target": torch.tensor([3, 4])}):
        a, b = eager(x, **asked), compiled(x, **asked)
        torch.testing.assert_close(b.relevance, a.relevance, rtol=1e-9, atol=1e-14)
        torch.testing.assert_close(b.output, a.output)
        assert torch.equal(a.target, b.target)
    with pytest.raises(FxlrpError, match="out of range"):
        compiled(x, target=7)
    by_callable = compiled(x, target=lambda out: out[:, 2])
    torch.testing.assert_close(by_callable.relevance, eager(x, target=lambda out: out[:, 2]).relevance)


def test_latent_relevance_is_conserved() -> None:
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.ReLU()), nn.Flatten(), nn.Linear(144, 5, bias=False)]
    model = nn.Sequential(*layers).double().eval()
    a = convert(model, rules="abslrp")(pictures(2), at=["0", "relu"], contrast=None)
    assert a.latent["0"].shape == (2, 4, 6, 6)
    torch.testing.assert_close(a.latent["0"], a.latent["relu"])
    torch.testing.assert_close(a.latent["0"].sum((1, 2, 3)), torch.ones(2).double())
    with pytest.raises(FxlrpError, match="names no module"):
        convert(model, rules="abslrp")(pictures(1), at=["nowhere"])


def graph(forward) -> fx.GraphModule:
    return make_fx(forward)(torch.randn(3))


def test_passes_of_the_joint_graph() -> None:
    w = torch.randn(3)

    def forward(x: Tensor) -> Tensor:
        return x.detach() * w.abs() + x * w.abs()

    gm = graph(forward)
    expected, before = gm(torch.ones(3)), len(gm.graph.nodes)
    remove_copies(gm)
    assert not gm.graph.find_nodes(op="call_function", target=aten.detach.default)
    join_equal(gm)
    assert len(gm.graph.find_nodes(op="call_function", target=aten.abs.default)) == 1
    assert len(gm.graph.find_nodes(op="call_function", target=aten.mul.Tensor)) == 1
    fold_constants(gm)
    assert not gm.graph.find_nodes(op="call_function", target=aten.abs.default)
    assert len(gm.graph.nodes) < before
    torch.testing.assert_close(gm(torch.ones(3)), expected)


def test_numbers_of_entries_are_spelt_by_sizes() -> None:
    gm = make_fx(lambda x: x + aten.sym_numel.default(x), tracing_mode="symbolic")(torch.randn(4, 3))
    assert gm.graph.find_nodes(op="call_function", target=aten.sym_numel.default)
    spell_numel(gm)
    assert not gm.graph.find_nodes(op="call_function", target=aten.sym_numel.default)
    x = torch.randn(5, 3)
    torch.testing.assert_close(gm(x), x + 15)


def test_writes_that_add_have_names_that_runtimes_know() -> None:
    class Adding(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            return y.index_put((torch.arange(len(y)),), y.tanh(), accumulate=True)

    for rules in ("abslrp", "epsilon"):
        joint = convert(Adding(4, 3).double().eval(), torch.randn(2, 4).double(), rules=rules).joint()
        ops = {str(n.target) for n in joint.traced.graph.nodes if n.op == "call_function"}
        assert "aten.index_put.default" in ops
        assert not any("unsafe" in op for op in ops)


def test_what_has_no_joint_graph_is_said(cnn: nn.Module, tmp_path: Path) -> None:
    explainer = convert(cnn, pictures(2))
    with pytest.raises(FxlrpError, match="asked by classes"):
        explainer.joint(target=lambda out: out[:, 0])
    with pytest.raises(FxlrpError, match="should end in"):
        explainer.export(tmp_path / "e.txt")
    with pytest.raises(FxlrpError, match="Nothing is captured"):
        fxlrp.convert(cnn).export(tmp_path / "e.pt2")


def test_nodes_of_the_joint_graph_say_where_they_come_from(cnn: nn.Module) -> None:
    text = convert(cnn, pictures(2), rules="abslrp").joint(contrast=None).traced.print_readable(print_output=False)
    assert "'of': 'conv2d_2'" in text
    assert "'relevance_of': 'conv2d_2', 'rule': 'conv2d'" in text
    assert "'relevance_of': 'cat', 'rule': 'derivative'" in text


def test_what_is_written_to_is_not_joined() -> None:
    def forward(x: Tensor) -> Tensor:
        return x.abs().mul_(2) + x.abs().add_(1)

    gm = graph(forward)
    join_equal(gm)
    torch.testing.assert_close(gm(torch.ones(3)), torch.full((3,), 4.0))


@pytest.mark.parametrize("rules", ["abslrp-hybrid", "gamma"])
def test_compiled_by_inductor_equals_eager(rules: str) -> None:
    """By the compiler users use: it drops the factor of a summand that is a matrix product."""
    layers = (nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 5))
    explainer, x = convert(nn.Sequential(*layers).eval(), rules=rules), torch.randn(4, 12)
    expected = explainer(x).relevance
    found = explainer.compile()(x).relevance
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("rules", ["abslrp", "abslrp-hybrid", "epsilon"])
def test_what_a_compiler_gets_wrong_is_said(rules: str) -> None:
    """Another sum in the place of a product, in one of the two sides, is no rounding."""

    def wrong(gm: fx.GraphModule, example: list[Tensor]) -> fx.GraphModule:
        *_, last = gm.graph.find_nodes(op="call_function", target=aten.mul.Tensor)
        last.target = aten.add.Tensor
        gm.recompile()
        return gm

    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    with pytest.raises(FxlrpError, match="another relevance than the eager one"):
        convert(model, rules=rules).compile(backend=wrong)(torch.randn(4, 6))


def test_a_compiled_call_is_held_against_the_eager_one_once_for_what_was_compiled() -> None:
    calls = []

    class Counts(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)

    explainer = convert(nn.Sequential(Counts(6, 3)).eval(), torch.randn(2, 6)).compile(backend="eager")
    answers = explainer.answers
    explainer.answers = lambda *a, compiled=True, **k: (calls.append(compiled), answers(*a, compiled=compiled, **k))[1]
    for _ in range(3):
        explainer(torch.randn(2, 6))
    assert calls == [True, False, True, True]


def test_a_cache_that_begins_empty() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            q, k = (layer(x).unflatten(2, (2, 2)).transpose(1, 2) for layer in (self.q, self.k))
            keys = torch.cat([torch.tensor([]), k], dim=-2)
            return self.head(((q @ keys.mT).softmax(-1) @ k).transpose(1, 2).flatten(2).mean(1))

    torch.manual_seed(0)
    x = torch.randn(2, 3, 4)
    explainer = convert(Model().eval(), x, rules="attnlrp")
    assert not explainer.latest.graph.graph.find_nodes(op="call_function", target=aten.cat.default)
    eager = explainer(x, target=0)
    torch.testing.assert_close(explainer.compile()(x, target=0).relevance, eager.relevance)


def test_maxima_that_turn_by_rounding_are_no_fault_of_the_compiler() -> None:
    """A compiler that computes in another order moves a maximum among equals, and with it relevance."""

    def nudged(gm: fx.GraphModule, example: list[Tensor]):
        return lambda *xs: gm(*(x * (1 + 1e-7) if x.is_floating_point() else x for x in xs))

    def forward(x: Tensor) -> Tensor:
        return torch.stack([x.amax(1), x.amin(1) * 2], 1)

    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return forward(x.sin() * 1000)

    x = torch.ones(2, 5)
    x[:, 1] += 1e-7
    convert(Model().eval(), rules="gradient-input").compile(backend=nudged)(x)


def test_two_draws_stay_two() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x * torch.rand_like(x) - x * torch.rand_like(x))

    joint = fxlrp.convert(Noisy().eval(), torch.randn(2, 4)).joint()
    drawn = [n for n in joint.traced.graph.nodes if "rand" in str(n.target)]
    assert len(drawn) == 2


def test_calls_that_differ_by_keywords_alone_are_two() -> None:
    def run(x: Tensor) -> Tensor:
        return aten.std.correction(x, [1], correction=0) - aten.std.correction(x, [1], correction=1)

    x = torch.randn(2, 5)
    traced = make_fx(run)(x)
    join_equal(traced)
    torch.testing.assert_close(traced(x), run(x))
    assert len(traced.graph.find_nodes(op="call_function", target=aten.std.correction)) == 2


@pytest.mark.parametrize("rules", [fxlrp.DEFAULT, "abslrp"])
def test_onnx(rules: str, tmp_path: Path) -> None:
    """What relevance passes need beyond a model: signs, derivatives of convolutions and of pooling."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    pool = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d((3, 2)), nn.Flatten(), nn.Linear(24, 3))
    model = nn.Sequential(nn.Conv2d(2, 4, 3, stride=2), nn.BatchNorm2d(4), *pool).eval()
    x = torch.randn(3, 2, 12, 11)
    explainer = fxlrp.convert(model, x[:2], rules=rules)
    session = onnxruntime.InferenceSession(explainer.export(tmp_path / "e.onnx"), providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]
    logits, relevance = session.run(None, dict(zip(names, (x.numpy(), torch.tensor([2, 0, -1]).numpy()), strict=True)))
    a = explainer(x, target=torch.tensor([2, 0, int(model(x)[2].argmax())]))
    torch.testing.assert_close(torch.from_numpy(logits), a.logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.from_numpy(relevance), a.relevance, rtol=1e-3, atol=1e-4)
