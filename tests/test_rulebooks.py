"""The rulebooks of classic LRP, transformers and gradients: closed formulas, autograd, other libraries."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import randomize
from torch import Tensor, nn

import fxlrp
from fxlrp import FxlrpError, convert

SIGNED = sorted(set(fxlrp.rulebooks()) - {"abslrp", "abslrp-2024-04", "abslrp-2024-12"})


class Attention(nn.Module):
    """Pre-norm attention, a gated and a plain branch, on [B, T, D]."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(8, 8)
        self.up, self.gate, self.down, self.head = nn.Linear(8, 12), nn.Linear(8, 12), nn.Linear(12, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        x = x + self.out(nn.functional.scaled_dot_product_attention(q, k, v))
        x = x + self.down(self.up(x) * nn.functional.silu(self.gate(x)))
        return self.head(nn.functional.gelu(x).mean(1))


def network(bias: bool = True) -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 6, 3, padding=1, bias=bias), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3, bias=bias))
    return nn.Sequential(*layers, nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(8, 5, bias=bias)).double().eval()


def pictures() -> Tensor:
    return torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("rules", SIGNED)
def test_samples_are_apart_and_nothing_is_generic(rules: str) -> None:
    torch.manual_seed(0)
    for model, x in ((network(), pictures()), (Attention().double().eval(), torch.randn(2, 4, 8).double())):
        explainer = convert(model, rules=rules, strict=True)
        both = explainer(x, target=3).relevance
        assert both.isfinite().all()
        assert both.any()
        torch.testing.assert_close(explainer(x[1:], target=3).relevance, both[1:], rtol=1e-9, atol=1e-13)


class Masked(Attention):
    """Pooled attention that does not look at the last `hidden` tokens."""

    def __init__(self, hidden: int, fused: bool) -> None:
        super().__init__()
        self.hidden, self.fused = hidden, fused

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        shown = torch.arange(x.shape[1]) < x.shape[1] - self.hidden
        shown = shown.expand(x.shape[1], -1)
        if self.fused:
            mixed = nn.functional.scaled_dot_product_attention(q, k, v, shown)
        else:
            mixed = (q @ k.mT / 8**0.5).masked_fill(~shown, float("-inf")).softmax(-1) @ v
        return self.head(nn.functional.gelu(self.out(mixed[:, 0])))


@pytest.mark.every(3)
@pytest.mark.parametrize("rules", sorted(fxlrp.rulebooks()))
@pytest.mark.parametrize("fused", [True, False])
def test_what_a_mask_shuts_is_as_if_it_were_not_there(rules: str, fused: bool) -> None:
    torch.manual_seed(0)
    model = Masked(2, fused).double().eval()
    x = torch.randn(2, 6, 8, dtype=torch.float64)
    masked = convert(model, x, rules=rules)(x, target=3).relevance
    model.hidden = 0
    alone = convert(model, x[:, :4], rules=rules)(x[:, :4], target=3).relevance
    assert alone.any()
    torch.testing.assert_close(masked[:, :4], alone, rtol=1e-9, atol=1e-12)
    assert not masked[:, 4:].any()


@pytest.mark.parametrize("rules", ["attnlrp", "cp-lrp"])
@pytest.mark.parametrize("mask", ["none", "causal", "window"])
def test_fused_attention_is_what_its_parts_are(rules: str, mask: str) -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            q, k, v = x, x.sin(), x.tanh()
            shown = torch.ones(4, 4, dtype=torch.bool).tril() & (torch.arange(4) > 0) if mask == "window" else None
            fused = nn.functional.scaled_dot_product_attention(q, k, v, shown, is_causal=mask == "causal")
            return (fused * torch.arange(1.0, 5.0)[:, None]).sum(1)

    x = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0)).double()
    fused, apart = (convert(Model().eval(), x, rules=rules + epsilon) for epsilon in ("", ":epsilon=1e-30"))
    whole, parts = ({n.op for n in e.report().nodes} for e in (fused, apart))
    assert {"scaled_dot_product_attention"} == {op.split(".")[0] for op in whole - parts}
    a, b = fused(x, target=3), apart(x, target=3)
    assert b.relevance.isfinite().all()
    torch.testing.assert_close(a.relevance, b.relevance, rtol=1e-6, atol=1e-9)


def test_gradients_are_autograds() -> None:
    torch.manual_seed(0)
    for model, x in ((network(), pictures()), (Attention().double().eval(), torch.randn(2, 4, 8).double())):
        leaf = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(model(leaf)[:, 2].sum(), leaf)
        for rules, expected in (("gradient", gradient), ("gradient-input", gradient * x)):
            found = convert(model, rules=rules)(x, target=2, contrast=None).relevance
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("rules", ["epsilon:epsilon=0", "zplus:stabilizer=0", "alpha-beta:stabilizer=0", "abslrp"])
def test_relevance_is_conserved_without_biases(rules: str) -> None:
    model, x = network(bias=False), pictures()
    a = convert(model, rules=rules)(x, target=1, contrast=None, trace=True)
    seed = a.logits[:, 1] if rules.startswith("epsilon") else torch.ones(2)
    torch.testing.assert_close(a.relevance.sum((1, 2, 3)).double(), seed.double(), rtol=1e-9, atol=1e-12)
    kept = a.conservation()
    assert kept.read == pytest.approx(kept.seed)
    assert all(abs(v) < 1e-9 for v in kept.lost.values())


def test_flat_and_box_keep_relevance_at_pixels_of_zero() -> None:
    model, x = network(bias=False), pictures()
    x[:, :, :4] = 0
    for rules in ("epsilon-plus-flat", "epsilon-gamma-box:low=-4,high=4"):
        a = convert(model, rules=rules)(x, target=1, contrast=None)
        assert a.relevance[:, :, :4].abs().max() > 0
        torch.testing.assert_close(a.relevance.sum((1, 2, 3)), a.logits[:, 1], rtol=1e-3, atol=1e-6)


def test_conservation_names_the_layer_that_loses() -> None:
    model, x = network(), pictures()
    kept = convert(model, rules="epsilon")(x, target=1, contrast=None, trace=True).conservation()
    biased = {n.name for n in kept.nodes if n.op.startswith(("conv2d", "linear"))}
    worst = sorted(kept.lost, key=lambda name: -abs(kept.lost[name]))[:3]
    assert set(worst) == biased
    assert sum(kept.lost.values()) == pytest.approx(kept.seed - kept.read)
    with pytest.raises(FxlrpError, match="trace=True"):
        convert(model)(x).conservation()


def test_december_leaks_through_a_residual_sum_when_asked() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.linear = nn.LayerNorm(5), nn.Linear(5, 5)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.linear(self.norm(x)).tanh()

    torch.manual_seed(0)
    model, x = Net().double().eval(), torch.randn(3, 5).double()
    kept, leaky = (convert(model, rules=f"abslrp-2024-12{p}")(x, target=2, contrast=None) for p in ("", ":leak=1"))
    torch.testing.assert_close(kept.output, leaky.output)
    leaf = x.clone().requires_grad_()
    mean, std = x.mean(1, keepdim=True), (x.var(1, correction=0, keepdim=True) + 1e-5).sqrt()  # constants of theirs
    branch = model.linear((leaf - mean) / std).tanh()
    s = nn.functional.one_hot(torch.tensor([2]), 5) / kept.output.abs()
    (back,) = torch.autograd.grad(branch, leaf, (1 + branch.sign()) * s)
    own = x * (1 + x.sign()) * s

    def unit(r: Tensor) -> Tensor:
        return r / (r.abs().sum(1, keepdim=True) + 1e-9)

    torch.testing.assert_close(leaky.relevance - kept.relevance, unit(own + x * back) - unit(own), rtol=1e-6, atol=1e-8)


def dense(x: Tensor, w: Tensor, b: Tensor, r: Tensor, rule: str) -> Tensor:
    """R_i of one linear layer, contribution by contribution."""
    out = torch.zeros_like(x)
    for j in range(len(w)):
        z = [float(v) for v in (*(x * w[j]), b[j])]
        total, plus, minus = sum(z), sum(max(v, 0) for v in z), sum(min(v, 0) for v in z)
        for i in range(len(x)):
            if rule == "epsilon":
                share = z[i] / total
            elif rule == "zplus":
                share = max(z[i], 0) / (plus or 1)
            elif rule == "alpha-beta":
                share = 2 * max(z[i], 0) / (plus or 1) - min(z[i], 0) / (minus or 1)
            else:
                favoured = [v + 0.25 * (max(v, 0) if total > 0 else min(v, 0)) for v in z]
                share = favoured[i] / sum(favoured)
            out[i] += share * r[j]
    return out


@pytest.mark.parametrize("rule", ["epsilon", "zplus", "alpha-beta", "gamma"])
def test_rules_written_out(rule: str) -> None:
    torch.manual_seed(1)
    model = nn.Linear(6, 4).double().eval()
    x = torch.randn(1, 6).double()
    a = convert(model, rules=f"{rule}:{'epsilon' if rule in ('epsilon', 'gamma') else 'stabilizer'}=0")(
        x, target=torch.tensor([[1.0, -0.5, 0.25, 2.0]]).double()
    )
    v = torch.tensor([1.0, -0.5, 0.25, 2.0]).double()
    r = v * a.logits[0] if rule in ("epsilon", "gamma") else v
    torch.testing.assert_close(
        a.relevance[0], dense(x[0], model.weight.data, model.bias.data, r, rule), rtol=1e-10, atol=1e-12
    )


def frozen(x: Tensor, axes: tuple[int, ...], weight: Tensor, bias: Tensor, centre: bool = True) -> Tensor:
    """A norm over `axes` whose deviation is a constant."""
    mean = x.mean(axes, keepdim=True) if centre else torch.zeros(())
    sigma = ((x - mean).square().mean(axes, keepdim=True) + 1e-5).sqrt().detach()
    return (x - mean) / sigma * weight + bias


def column(t: Tensor) -> Tensor:
    return t[:, None, None]


NORMS: dict[str, tuple[nn.Module, Callable[[nn.Module, Tensor], Tensor]]] = {
    "layer": (nn.LayerNorm((4, 5)), lambda m, x: frozen(x, (2, 3), m.weight, m.bias)),
    "group": (
        nn.GroupNorm(2, 6),
        lambda m, x: (
            frozen(x.unflatten(1, (2, 3)), (2, 3, 4), torch.ones(()), torch.zeros(())).flatten(1, 2) * column(m.weight)
            + column(m.bias)
        ),
    ),
    "instance": (
        nn.InstanceNorm2d(6, affine=True),
        lambda m, x: frozen(x, (2, 3), column(m.weight), column(m.bias)),
    ),
    "instance, with statistics": (nn.InstanceNorm2d(6, affine=True, track_running_stats=True), lambda m, x: m(x)),
    "rms": (nn.RMSNorm(5, eps=1e-5), lambda m, x: frozen(x, (3,), m.weight, torch.zeros(()), centre=False)),
    "batch": (nn.BatchNorm2d(6), lambda m, x: m(x)),
}


@pytest.mark.parametrize("rules", ["attnlrp", "cp-lrp", "epsilon:epsilon=0"])
@pytest.mark.parametrize("name", NORMS)
def test_norms_are_linear_with_their_deviation_as_a_constant(name: str, rules: str) -> None:
    torch.manual_seed(0)
    norm, definition = NORMS[name]
    model = nn.Sequential(norm, nn.Flatten(), nn.Linear(120, 3)).double().eval()
    randomize(model)
    x = torch.randn(2, 6, 4, 5, dtype=torch.float64, requires_grad=True)
    (g,) = torch.autograd.grad(model[1:](definition(norm, x))[:, 1].sum(), x)
    found = convert(model, x.detach(), rules=rules)(x.detach(), target=1, contrast=None).relevance
    torch.testing.assert_close(found, (x * g).detach(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("rules", ["attnlrp", "epsilon:epsilon=0"])
@pytest.mark.parametrize(("f", "nothing"), [(torch.log, 0.0), (torch.exp, 1.0), (torch.cos, 1.0), (torch.tanh, 0.0)])
def test_what_a_function_gives_for_nothing_is_a_bias(f: Callable, nothing: float, rules: str) -> None:
    """R_x = R (1 − f(0) / f(x)), and R itself where f(0) is infinite."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(f(x))

    torch.manual_seed(0)
    model, x = Model().double().eval(), torch.rand(2, 5, dtype=torch.float64) + 0.5
    found = convert(model, x, rules=rules)(x, target=1, contrast=None).relevance
    torch.testing.assert_close(found, ((f(x) - nothing) * model.head.weight[1]).detach(), rtol=1e-9, atol=1e-12)


def test_parameters_are_read_from_the_name() -> None:
    book = fxlrp.rules.registry.find_rulebook("gamma:gamma=0.1,epsilon=1e-3")
    assert book == fxlrp.rulebook("gamma", gamma=0.1, epsilon=1e-3)
    assert book.name == "gamma:gamma=0.1,epsilon=0.001"
    assert fxlrp.rulebook("gamma").name == "gamma"
    for wrong, said in (("gamma:gama=1", "no parameter 'gama'"), ("gamma:1", "is no parameter"), ("g", "no rulebook")):
        with pytest.raises(FxlrpError, match=said):
            fxlrp.rules.registry.find_rulebook(wrong)
    with pytest.raises(FxlrpError, match="alpha"):
        fxlrp.rulebook("alpha-beta", alpha=3.0)


def test_hybrid_lies_between_signed_and_positive() -> None:
    model, x = network(), pictures()

    def run(rules: str) -> Tensor:
        return convert(model, rules=rules)(x, target=1, contrast=None).relevance

    signed = run("abslrp-hybrid:convolution=0,dense=0,stabilizer=0")
    torch.testing.assert_close(signed, run("gradient-input"), rtol=1e-9, atol=1e-12)
    softmax = convert(model, rules="abslrp-hybrid")
    torch.testing.assert_close(softmax(x).relevance, softmax(x, contrast="softmax").relevance)


def test_quantus_and_captum_adapters() -> None:
    from fxlrp.adapters import quantus

    model, x = network(), pictures()
    expected = convert(model, rules="gamma")(x, target=torch.tensor([1, 2])).relevance
    found = quantus.explain(model, x.numpy(), np.array([1, 2]), rules="gamma")
    np.testing.assert_allclose(found, expected.numpy())
    pytest.importorskip("captum", reason="captum is not installed (extra `eval`)")
    from fxlrp.adapters.captum import FxLRP

    method = FxLRP(model, rules="gamma")
    torch.testing.assert_close(method.attribute(x, target=torch.tensor([1, 2])), expected)
    (several,) = method.attribute((x,), target=torch.tensor([1, 2]))
    torch.testing.assert_close(several, expected)


def trained_like(model: nn.Module) -> nn.Module:
    """Batch norms that have seen noise, ε moved into the variance: zennit 0.5 merges it and applies it once more."""
    model.double().train()
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(8, 3, 64, 64).double())
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var += module.eps
            module.eps = 1e-30  # 0 is refused by torch 2.11
    return model.eval()


@pytest.mark.parametrize(
    "name", [*(pytest.param(name, marks=pytest.mark.whole) for name in ("vgg16", "vgg16_bn")), "resnet50"]
)
def test_composites_equal_zennits(name: str) -> None:
    pytest.importorskip("zennit", reason="zennit is not installed (extra `bench`)")
    import torchvision
    from zennit import attribution, canonizers, composites
    from zennit.torchvision import ResNetCanonizer

    torch.manual_seed(0)
    model = trained_like(getattr(torchvision.models, name)(num_classes=10))
    x = torch.randn(1, 3, 64, 64).double()
    if any(isinstance(m, nn.BatchNorm2d) for m in model.modules()):
        try:
            nn.BatchNorm2d(3, eps=0.0).double().eval()(x)
        except ValueError as error:  # torch 2.11
            pytest.skip(f"zennit's canonizers set eps to 0: {error}")
    canonizer = ResNetCanonizer if "resnet" in name else canonizers.SequentialMergeBatchNorm
    box = {"low": torch.full_like(x, -2.118), "high": torch.full_like(x, 2.640)}
    for rules, kind, more in (
        ("epsilon-plus", composites.EpsilonPlus, {}),
        ("epsilon-plus-flat", composites.EpsilonPlusFlat, {}),
        ("epsilon-gamma-box", composites.EpsilonGammaBox, box),
        ("epsilon-alpha2-beta1", composites.EpsilonAlpha2Beta1, {}),
    ):
        ours = convert(model, rules=rules)(x, target=3, contrast=None).relevance
        with attribution.Gradient(model, kind(canonizers=[canonizer()], **more)) as attributor:
            _, theirs = attributor(x, lambda out: out * torch.eye(10).double()[[3]])
        assert (ours - theirs).abs().max() <= 1e-9 * theirs.abs().max(), rules


def test_the_link_at_the_root_is_the_same_registry() -> None:
    root = Path(__file__).parents[1]
    if not (root / "rules").is_symlink():
        pytest.skip("no link: this is no checkout")
    same = """
import rules.registry, fxlrp.rules.registry, rules
from rules import weighted
assert rules.registry is fxlrp.rules.registry and rules is fxlrp.rules
assert weighted is fxlrp.rules.weighted and rules.registry.rule is fxlrp.rule
"""
    done = subprocess.run([sys.executable, "-c", same], cwd=root, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
