"""Small networks of every kind, in float64, with what to call them with."""

from __future__ import annotations

from functools import cache

import timm
import torch
from torch import Tensor, nn

import fxlrp


class Branches(nn.Module):
    """A convolutional network with a shortcut, and two branches beside each other."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.left, self.right = nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 1)
        self.body = nn.Sequential(nn.ReLU(), nn.Conv2d(6, 5, 3, stride=2), nn.ReLU())
        self.head = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(self.body(x + self.left(x) - self.right(x)).mean((2, 3)))


def branches() -> tuple[nn.Module, dict[str, Tensor], str, int]:
    return Branches().double().eval(), {"x": torch.randn(2, 3, 9, 9).double()}, "body.1", 5


def vit() -> tuple[nn.Module, dict[str, Tensor], str, int]:
    net = timm.models.VisionTransformer(16, 4, embed_dim=12, depth=3, num_heads=3, num_classes=4)
    return net.double().eval(), {"x": torch.randn(2, 3, 16, 16).double()}, "blocks.1", 12


def swin() -> tuple[nn.Module, dict[str, Tensor], str, int]:
    net = timm.models.SwinTransformer(
        32, embed_dim=8, depths=(2, 2), num_heads=(2, 2), window_size=4, num_classes=4, patch_size=4
    )
    return net.double().eval(), {"x": torch.randn(2, 3, 32, 32).double()}, "layers.0", 8


def bert() -> tuple[nn.Module, dict[str, Tensor], str, int]:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=20, hidden_size=12, num_hidden_layers=3, num_attention_heads=3, intermediate_size=16, num_labels=4
    )
    ids = torch.randint(0, 20, (2, 6))
    return BertForSequenceClassification(config).double().eval(), {"input_ids": ids}, "bert.encoder.layer.1", 12


def gpt() -> tuple[nn.Module, dict[str, Tensor], str, int]:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=20, n_embd=12, n_layer=3, n_head=3, n_positions=8, bos_token_id=0, eos_token_id=0)
    return GPT2LMHeadModel(config).double().eval(), {"input_ids": torch.randint(0, 20, (2, 6))}, "transformer.h.1", 12


ALL = {"branches": branches, "vit": vit, "swin": swin, "bert": bert, "gpt": gpt}


@cache
def captured(name: str) -> tuple[fxlrp.Explainer, dict[str, Tensor]]:
    """An explainer of a network, captured once for all rulebooks, which `by` gives it; and a call."""
    torch.manual_seed(0)
    model, call, _, _ = ALL[name]()
    explainer = fxlrp.convert(model)
    explainer(**call, target=1)
    return explainer, call


ATTENTION = {
    "vit": ("blocks.1.attn", 3),
    "swin": ("layers.0.blocks.1.attn", 2),
    "bert": ("bert.encoder.layer.1.attention.self", 3),
    "gpt": ("transformer.h.1.attn", 3),
}
