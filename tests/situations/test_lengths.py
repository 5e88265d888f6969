"""Sequences of any length go through one graph, masks and all; where each length needs its own, it gets it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fxlrp import convert
from tests.conftest import randomize

BOOKS = ("abslrp", "abslrp-hybrid", "epsilon", "gradient-input")


class Encoder(nn.Module):
    """Vectors [B, T, 8] or ids [B, T], with a mask that is given or made."""

    def __init__(self, ids: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(20, 8) if ids else nn.Identity()
        self.layers = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.embed(x)
        mask = causal(x.shape[1], x) if mask is None else mask
        return self.head(self.layers(x, mask=mask)[:, -1])


class Translator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers, self.head = nn.Transformer(8, 2, 1, 1, 16, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.head(self.layers(x, y, tgt_mask=causal(y.shape[1], y)).mean(1))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.head = nn.LSTM(8, 6, batch_first=True), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x)[0][:, -1])


def causal(n: int, like: Tensor) -> Tensor:
    return nn.Transformer.generate_square_subsequent_mask(n, dtype=like.dtype)


def vectors(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


def calls(name: str, batch: int, length: int) -> tuple[Tensor, ...]:
    x = vectors(batch, length, 8)
    return {
        "mask made": (x,),
        "mask given": (x, causal(length, x)),
        "any mask": (x, vectors(length, length)),
        "ids": (torch.arange(batch * length).view(batch, length) % 20,),
        "two lengths": (x, vectors(batch, length + 2, 8)),
        "steps": (x,),
    }[name]


MODELS = {
    "mask made": Encoder,
    "mask given": Encoder,
    "any mask": Encoder,
    "ids": lambda: Encoder(ids=True),
    "two lengths": Translator,
    "steps": Recurrent,
}


@pytest.mark.parametrize("rules", BOOKS)
@pytest.mark.parametrize("name", MODELS)
def test_every_length_is_explained_as_by_a_graph_of_its_own(name: str, rules: str) -> None:
    model = randomize(MODELS[name]())
    explainer = convert(model, rules=rules)
    for batch, length in ((2, 5), (1, 7), (3, 4)):
        a = explainer(*calls(name, batch, length), target=1)
        alone = convert(model, rules=rules)(*calls(name, batch, length), target=1)
        torch.testing.assert_close(a.relevance, alone.relevance)
        torch.testing.assert_close(a.output, model(*calls(name, batch, length)).detach())
    graphs = len(explainer.plans.cache.plans)
    one = name != "steps" and rules != "abslrp"  # its normalisation knows where samples are for one length alone
    assert graphs == (1 if one else 3)
