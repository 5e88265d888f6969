"""Patching: by a formula written by hand with hooks, and by patching with hooks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxlrp
from tests.inside.networks import captured, vit

WIDTH, HEADS = 12, 3


class Attention(nn.Module):
    def __init__(self, linearized: bool) -> None:
        super().__init__()
        self.qkv, self.out, self.linearized = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH), linearized

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-1, -2) / 2).softmax(-1)
        weights = weights.detach() if self.linearized else weights
        return self.out((weights @ v).transpose(1, 2).flatten(2))


class Norm(nn.LayerNorm):
    linearized = False

    def forward(self, x: Tensor) -> Tensor:
        if not self.linearized:
            return super().forward(x)
        deviation = (x.var(-1, keepdim=True, correction=0) + self.eps).sqrt().detach()
        return (x - x.mean(-1, keepdim=True)) / deviation * self.weight + self.bias


class Pair(nn.Module):
    def __init__(self, linearized: bool) -> None:
        super().__init__()
        self.up, self.down, self.linearized = nn.Linear(WIDTH, 20), nn.Linear(20, WIDTH), linearized

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(x)
        return self.down(x * (F.gelu(x) / x).detach() if self.linearized else F.gelu(x))


class Transformer(nn.Module):
    """Two blocks; `linearized` with the gradients of CP-LRP: norms, activations and attention weights as constants."""

    def __init__(self, linearized: bool) -> None:
        super().__init__()
        self.norms = nn.ModuleList(Norm(WIDTH) for _ in range(5))
        for norm in self.norms:
            norm.linearized = linearized
        self.attentions = nn.ModuleList(Attention(linearized) for _ in range(2))
        self.pairs = nn.ModuleList(Pair(linearized) for _ in range(2))
        self.head = nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        for i in range(2):
            x = x + self.attentions[i](self.norms[2 * i](x))
            x = x + self.pairs[i](self.norms[2 * i + 1](x))
        return self.head(self.norms[4](x)[:, 0])


PLACES = ("attentions.0", "pairs.0", "attentions.1", "pairs.1")


def values(model: nn.Module, x: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """The outputs of the places by hooks, and the model's."""
    found: dict[str, Tensor] = {}
    hooks = [
        model.get_submodule(name).register_forward_hook(lambda m, i, out, name=name: found.update({name: out}))
        for name in PLACES
    ]
    out = model(x)
    for hook in hooks:
        hook.remove()
    return found, out


@pytest.mark.parametrize("metric", [2, lambda out: out[:, 2]])
def test_estimates_are_the_formula_by_hand(metric: object) -> None:
    """(a_corrupted − a_clean) · g by hooks on a copy whose gradients are those of CP-LRP."""
    model, linearized = Transformer(False).double().eval(), Transformer(True).double().eval()
    linearized.load_state_dict(model.state_dict())
    clean, corrupted = torch.randn(2, 3, 5, WIDTH).double()
    before, out = values(linearized, clean)
    gs = torch.autograd.grad(out[:, 2].sum(), list(before.values()))
    after, _ = values(model, corrupted)
    found = fxlrp.patching(model, clean, corrupted, at=PLACES, metric=metric, rules="cp-lrp", by="tokens")
    for (name, a), g in zip(before.items(), gs, strict=True):
        expected = ((after[name] - a) * g).detach()
        torch.testing.assert_close(found.effects[name], expected, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(found.estimated[name], expected.sum(2), rtol=1e-6, atol=1e-9)


def test_exact_is_patching_by_hooks() -> None:
    model = Transformer(False).double().eval()
    clean, corrupted = torch.randn(2, 3, 5, WIDTH).double()
    after, _ = values(model, corrupted)
    before = model(clean)
    found = fxlrp.patching(model, clean, corrupted, at=PLACES, metric=1, contrast=2, by="tokens", exact=True, at_once=2)
    whole = fxlrp.patching(model, clean, corrupted, at=PLACES, metric=lambda out: out[:, 1].exp(), exact=True)
    for name in PLACES:
        for token in (0, 3):

            def replace(m: nn.Module, i: object, out: Tensor, name=name, token=token) -> Tensor:
                return torch.cat([out[:, :token], after[name][:, token : token + 1], out[:, token + 1 :]], 1)

            hook = model.get_submodule(name).register_forward_hook(replace)
            change = model(clean) - before
            hook.remove()
            expected = (change[:, 1] - change[:, 2]).detach()
            torch.testing.assert_close(found.exact[name][:, token], expected)
        hook = model.get_submodule(name).register_forward_hook(lambda m, i, out, name=name: after[name])
        torch.testing.assert_close(whole.exact[name][:, 0], (model(clean)[:, 1].exp() - before[:, 1].exp()).detach())
        hook.remove()
    assert -1 <= found.correlation <= 1
    assert "correlation" in str(found)


def test_heads_and_channels_add_up_to_their_places() -> None:
    explainer, call = captured("vit")
    other = {"x": torch.randn_like(call["x"])}
    by_channel = fxlrp.patching(explainer, call, other, metric=1, by="channels")
    by_place = fxlrp.patching(explainer, call, other, metric=1)
    for name, row in by_channel.estimated.items():
        torch.testing.assert_close(row.sum(1, keepdim=True), by_place.estimated[name])
    heads = fxlrp.patching(explainer, call, other, metric=1, by="heads", exact=True)
    assert list(heads.estimated) == [f"blocks.{i}.attn" for i in range(3)]
    assert heads.exact["blocks.1.attn"].shape == (2, 3)


def test_nothing_changes_where_nothing_is_replaced() -> None:
    explainer, call = captured("gpt")
    found = fxlrp.patching(explainer, call, call, metric=1, by="tokens", exact=True)
    assert all(not t.any() for t in found.estimated.values())
    assert all(t.abs().max() < 1e-12 for t in found.exact.values())


def test_what_can_not_be_patched_is_said() -> None:
    model, call, _, _ = vit()
    with pytest.raises(fxlrp.FxlrpError, match="two of the same"):
        fxlrp.patching(model, call["x"], call["x"][:1])
    with pytest.raises(fxlrp.FxlrpError, match="by='colours'"):
        fxlrp.patching(model, call["x"], call["x"], by="colours")
    with pytest.raises(fxlrp.FxlrpError, match="exact=True"):
        _ = fxlrp.patching(model, call["x"], call["x"]).correlation
