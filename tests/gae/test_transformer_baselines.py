"""Baselines of transformers against their formulas, written over a model that shows its attention."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import SmallCNN, randomize
from text_cases import legrads
from torch import Tensor, nn
from torch.nn.functional import interpolate, scaled_dot_product_attention

from fxlrp import FxlrpError, convert
from fxlrp.gae import BASELINES, Views, explain_by
from fxlrp.gae.attention_maps import Grid, grid_of
from fxlrp.gae.texts import Sample
from fxlrp.gae.texts.attention import Base
from fxlrp.gae.texts.case import make_case
from fxlrp.gae.texts.methods import explain_by as explain_text_by
from fxlrp.gae.texts.methods import run
from tests.text.models import byte_level, decoder_only


class Tokens(nn.Module):
    """Two blocks of attention over 3 × 2 patches of 4 × 4 pixels, with or without a class token.

    explicit: keeps the weights of each layer and the output of each norm, in the place of fused attention.
    """

    def __init__(self, extra: int) -> None:
        super().__init__()
        self.cut, self.first = nn.Conv2d(3, 8, 4, stride=4), nn.Parameter(torch.randn(1, extra, 8))
        self.norms = nn.ModuleList(nn.LayerNorm(8) for _ in range(3))
        self.qkv, self.out = (nn.ModuleList(nn.Linear(8, n) for _ in range(2)) for n in (24, 8))
        self.head, self.extra, self.explicit = nn.Linear(8, 5), extra, False
        self.weights: list[Tensor] = []
        self.normed: list[Tensor] = []
        self.between = torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        x = self.cut(x).flatten(2).mT
        x = torch.cat([self.first.expand(len(x), -1, -1), x], 1)
        for norm, qkv, out in zip(self.norms, self.qkv, self.out, strict=False):
            normed = norm(x)
            q, k, v = qkv(normed).unflatten(2, (3, 2, 4)).permute(2, 0, 3, 1, 4)
            if self.explicit:
                weights = (q @ k.mT / 2).softmax(-1)
                self.weights, self.normed = [*self.weights, weights], [*self.normed, normed]
                y = weights @ v
            else:
                y = scaled_dot_product_attention(q, k, v)
            x = x + out(y.transpose(1, 2).flatten(2))
            self.between = x if len(self.weights) == 1 else self.between
        x = self.norms[-1](x)
        self.normed = [*self.normed, x] if self.explicit else []
        return self.head(x[:, 0] if self.extra else x.mean(1))


def views(count: int = 3, size: tuple[int, int] = (12, 8)) -> Views:
    x = torch.randn(count, 3, *size, dtype=torch.float64)
    return Views(x, torch.tensor([1, 4, 0])[:count], [str(i) for i in range(count)])


@pytest.mark.parametrize("extra", [0, 1, 3])
@pytest.mark.parametrize("method", ["attention-rollout", "chefer", "gradcam"])
def test_equals_its_formula(method: str, extra: int) -> None:
    model, asked = randomize(Tokens(extra)), views()
    got = explain_by(method, model)(asked)
    model.explicit = True
    score = model(asked.x).gather(1, asked.target[:, None]).sum()
    if method == "gradcam":
        layer = model.normed[-1] if not extra else model.normed[1]  # of the class token alone after that
        (slope,) = torch.autograd.grad(score, layer)
        row = (layer[:, extra:] * slope[:, extra:].mean(1, keepdim=True)).sum(2)
    else:
        reached = torch.eye(6 + extra, dtype=torch.float64).expand(3, -1, -1)
        for a, g in zip(model.weights, torch.autograd.grad(score, model.weights), strict=True):
            if method == "chefer":
                reached = reached + (a * g).relu().mean(1) @ reached
            else:
                reached = (a.mean(1) + torch.eye(6 + extra, dtype=torch.float64)) / 2 @ reached
        row = (reached[:, 0] if extra else reached.mean(1))[:, extra:]
    wanted = interpolate(row.unflatten(1, (1, 3, 2)), size=(12, 8), mode="bilinear")
    torch.testing.assert_close(got, wanted.detach(), rtol=1e-9, atol=1e-12)
    assert wanted.any()


@pytest.mark.parametrize("extra", [0, 1, 3])
def test_legrad_equals_its_formula(extra: int) -> None:
    model, asked = randomize(Tokens(extra)), views()
    got = explain_by("legrad", model)(asked)
    model.explicit = True
    score = model(asked.x).gather(1, asked.target[:, None]).sum()
    (second,) = torch.autograd.grad(score, model.weights[1], retain_graph=True)
    tokens = model.norms[-1](model.between)  # what the head would see if the first block were the last
    early = model.head(tokens[:, 0] if extra else tokens.mean(1)).gather(1, asked.target[:, None]).sum()
    (first,) = torch.autograd.grad(early, model.weights[0])
    row = (first.relu() + second.relu()).mean((1, 2))[:, extra:]
    wanted = interpolate(row.unflatten(1, (1, 3, 2)), size=(12, 8), mode="bilinear")
    torch.testing.assert_close(got, wanted.detach(), rtol=1e-9, atol=1e-12)
    assert wanted.any()


@pytest.mark.parametrize("extra", [0, 1])
def test_libragrad_equals_its_formula(extra: int) -> None:
    """Attention and deviations detached by hand; x ⊙ gradient at what each norm reads."""
    model, asked = randomize(Tokens(extra)), views()
    got = explain_by("libragrad", model)(asked)
    read: list[Tensor] = []

    def constant_norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
        read.append(x)
        deviation = (x.var(-1, unbiased=False, keepdim=True) + norm.eps).sqrt().detach()
        return (x - x.mean(-1, keepdim=True)) / deviation * norm.weight + norm.bias

    x = torch.cat([model.first.expand(3, -1, -1), model.cut(asked.x).flatten(2).mT], 1)
    for norm, qkv, out in zip(model.norms, model.qkv, model.out, strict=False):
        q, k, v = qkv(constant_norm(norm, x)).unflatten(2, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        x = x + out(((q @ k.mT / 2).softmax(-1).detach() @ v).transpose(1, 2).flatten(2))
    x = constant_norm(model.norms[-1], x)
    score = model.head(x[:, 0] if extra else x.mean(1)).gather(1, asked.target[:, None]).sum()
    row = sum((t * g).sum(2) for t, g in zip(read, torch.autograd.grad(score, read), strict=True))[:, extra:]
    wanted = interpolate(row.unflatten(1, (1, 3, 2)), size=(12, 8), mode="bilinear")
    torch.testing.assert_close(got, wanted.detach(), rtol=1e-9, atol=1e-12)


def test_grids_of_tokens() -> None:
    assert grid_of(196, (224, 224)) == Grid(0, 14, 14)
    assert grid_of(197, (224, 224)) == Grid(1, 14, 14)
    assert grid_of(201, (224, 224)) == Grid(5, 14, 14)
    assert grid_of(8 * 12 + 1, (64, 96)) == Grid(1, 8, 12)
    assert grid_of(7, (224, 224)) is None or grid_of(7, (224, 224)) == Grid(3, 2, 2)
    assert grid_of(2, (8, 8)) is None


@pytest.mark.parametrize("method", ["attention-rollout", "chefer", "legrad", "libragrad"])
def test_a_model_without_attention_is_refused(method: str) -> None:
    with pytest.raises(FxlrpError, match="attention among all patches"):
        explain_by(method, randomize(SmallCNN()))(views(2, (8, 8)))


@pytest.mark.parametrize("method", ["occlusion", "kernel-shap"])
def test_of_a_linear_model_they_are_its_terms(method: str) -> None:
    model, asked = randomize(nn.Sequential(nn.Flatten(), nn.Linear(3 * 14 * 14, 5))), views(2, (14, 14))
    got = explain_by(method, model)(asked)
    terms = (model[1].weight[asked.target].view(2, 3, 14, 14) * asked.x).detach()
    if method == "kernel-shap":  # the terms of each of 7 × 7 squares, shared out among its entries
        sums = terms.sum(1).unflatten(2, (7, 2)).unflatten(1, (7, 2)).sum((2, 4))
        shown = got.sum(1).unflatten(2, (7, 2)).unflatten(1, (7, 2)).sum((2, 4))
        assert torch.corrcoef(torch.stack([sums.flatten(), shown.flatten()]))[0, 1] > 0.999
    else:  # squares of 2 × 2 that move by 1, and the mean of those that a pixel is in
        squares = nn.functional.avg_pool2d(terms.sum(1, keepdim=True), 2, 1, divisor_override=1)
        counted = nn.functional.conv_transpose2d(torch.ones_like(squares), torch.ones(1, 1, 2, 2, dtype=terms.dtype))
        mean = nn.functional.conv_transpose2d(squares, torch.ones(1, 1, 2, 2, dtype=terms.dtype)) / counted
        torch.testing.assert_close(got, mean.expand_as(got), rtol=1e-6, atol=1e-9)


def test_every_baseline_leaves_the_model_alone() -> None:
    model, asked = randomize(Tokens(1)).float(), views()
    asked = Views(asked.x.float(), asked.target, asked.keys)
    before = {name: p.clone() for name, p in model.state_dict().items()}
    for name in ("attention-rollout", "chefer", "gradcam", "occlusion", "kernel-shap"):
        assert name in BASELINES
        explain_by(name, model)(asked)
    assert all(torch.equal(before[n], p) for n, p in model.state_dict().items())
    assert not any(m._forward_hooks or m._backward_hooks for m in model.modules())
    assert all(p.grad is None for p in model.parameters())


def test_norms_that_are_written_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """LeGrad and LibraGrad on a model whose norms are roots of mean squares in its own ops."""
    tokenizer = byte_level()
    model = decoder_only("llama", tokenizer).double()
    case = make_case(model, tokenizer, Sample("The capital of France is", continuation=" Paris, and"), 0)
    base = Base(convert(model))
    found = [run(explain_text_by(name, base), case) for name in ("legrad", "libragrad")]
    expected = legrads(model, case, model.model.norm)
    seen, softmax = [], nn.functional.softmax

    def norm(module: Any, args: tuple, out: Tensor) -> Tensor:
        x = args[0]
        x.retain_grad()
        seen.append(x)
        return module.weight * x * ((x * x).mean(-1, keepdim=True) + module.variance_epsilon).rsqrt().detach()

    for m in model.modules():
        if hasattr(m, "variance_epsilon"):
            m.register_forward_hook(norm)
        elif hasattr(m, "act_fn"):
            m.act_fn.register_forward_hook(lambda module, args, out: out.detach())
    monkeypatch.setattr(nn.functional, "softmax", lambda *args, **how: softmax(*args, **how).detach())
    model(**case.inputs).logits[0, case.at, case.target].sum().backward()
    assert len(seen) == 5
    libragrads = sum((x * x.grad)[0].sum(-1).detach() for x in seen)
    torch.testing.assert_close(found, [expected.float(), libragrads.float()], rtol=1e-4, atol=1e-6)
