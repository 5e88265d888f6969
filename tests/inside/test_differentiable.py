"""Maps as an objective: their derivatives by the weights and by the input are those of finite differences."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor, nn

import fxlrp
from tests.inside.networks import branches

STEP = 1e-8  # the absolute methods have kinks near by


def difference(f, t: Tensor, at: tuple[int, ...]) -> Tensor:
    """∂f/∂t at an entry, by central differences."""
    with torch.no_grad():
        before = t[at].clone()
        t[at] = before + STEP
        above = f()
        t[at] = before - STEP
        below = f()
        t[at] = before
    return (above - below) / (2 * STEP)


def small(name: str) -> tuple[nn.Module, dict[str, Tensor]]:
    """A network of each kind with one block, in float64."""
    if name == "branches":
        return branches()[:2]
    if name == "vit":
        net = timm.models.VisionTransformer(8, 4, embed_dim=6, depth=1, num_heads=2, num_classes=3, mlp_ratio=2)
        return net.double().eval(), {"x": torch.randn(2, 3, 8, 8).double()}
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=9, hidden_size=6, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, num_labels=3
    )
    return BertForSequenceClassification(config).double().eval(), {"input_ids": torch.randint(0, 9, (2, 4))}


CASES = [("branches", "abslrp-hybrid"), ("branches", "abslrp"), ("branches", "epsilon-plus")]
CASES += [("vit", "abslrp-hybrid"), ("vit", "abslrp"), ("bert", "cp-lrp")]


@pytest.mark.every(2)
@pytest.mark.parametrize(("name", "rules"), CASES)
def test_derivatives_are_those_of_finite_differences(name: str, rules: str) -> None:
    model, call = small(name)
    explainer = fxlrp.convert(model, rules=rules, differentiable=True)
    plain = fxlrp.convert(model, rules=rules)(**call, target=1)
    weights = torch.randn_like(plain.relevance)

    def loss() -> Tensor:
        return (explainer(**call, target=1).relevance * weights).sum()

    a = explainer(**call, target=1)
    torch.testing.assert_close(a.relevance.detach(), plain.relevance)
    names, parameters = zip(*((n, p) for n, p in model.named_parameters() if p.ndim > 1), strict=True)
    grads = torch.autograd.grad(loss(), parameters, allow_unused=True)
    scale = max(float(g.abs().max()) for g in grads if g is not None)
    moved = [(n, p, g) for n, p, g in zip(names, parameters, grads, strict=True) if g is not None and g.any()]
    assert len(moved) > 3
    for n, p, g in moved[:: len(moved) // 4]:
        at = tuple(int(i) for i in torch.unravel_index(g.abs().argmax(), g.shape))
        apart = abs(float(difference(loss, p, at) - g[at]))
        assert apart < 1e-5 * scale + 1e-4 * abs(float(g[at])), (n, at, float(g[at]))


def test_by_the_input_too() -> None:
    model, call, _, _ = branches()
    explainer = fxlrp.convert(model, differentiable=True)
    x = call["x"].clone().requires_grad_()
    loss = explainer(x, target=1).relevance.square().sum()
    (g,) = torch.autograd.grad(loss, x)
    at = tuple(int(i) for i in torch.unravel_index(g.abs().argmax(), g.shape))
    found = difference(lambda: explainer(x, target=1).relevance.square().sum(), x, at)
    torch.testing.assert_close(found.detach(), g[at], rtol=1e-4, atol=1e-10)


def test_training_on_a_map_moves_relevance() -> None:
    """Relevance is pushed out of the upper half, while the logits are held."""
    model, call, _, _ = branches()
    explainer = fxlrp.convert(model, differentiable=True)
    x, before = call["x"], model(call["x"]).detach()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)

    def above() -> float:
        r = fxlrp.convert(model)(x, target=1).relevance.abs()
        return float(r[:, :, :4].sum() / r.sum())

    first, captures = above(), len(explainer.plans.cache.plans)
    for _ in range(15):
        a = explainer(x, target=1)
        r = a.relevance
        loss = r[:, :, :4].abs().sum() / r.abs().sum() + (a.logits - before).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert above() < 0.8 * first
    assert captures == 0
    assert len(explainer.plans.cache.plans) == 1, "one graph for all steps"


def test_what_can_not_be_asked_is_said() -> None:
    model, call, _, _ = branches()
    explainer = fxlrp.convert(model, differentiable=True)
    for wrong in ({"at": ["stem"]}, {"trace": True}, {"given": {"stem": [0]}}, {"target": lambda out: out[:, 0]}):
        with pytest.raises(fxlrp.FxlrpError):
            explainer(**call, **wrong)
    assert explainer(**call, target=[0, 1]).relevance.shape == (2, 2, 3, 9, 9)
    assert not fxlrp.convert(model)(**call).relevance.requires_grad
