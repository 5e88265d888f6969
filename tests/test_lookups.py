"""Token ids are explained where they stand, however a model moves or hashes them before it looks them up."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxlrp import convert


class Reads(nn.Module):
    """ids → vectors, by what is tested → one answer."""

    def __init__(self, body: Callable[[Reads, Tensor], Tensor]) -> None:
        super().__init__()
        self.words, self.places, self.body = nn.Embedding(20, 6), nn.Embedding(9, 6), body
        self.mix = nn.Linear(6, 6)

    def forward(self, ids: Tensor) -> Tensor:
        return (self.mix(self.body(self, ids)) ** 2).sum(1)


def written(m: Reads, ids: Tensor) -> Tensor:
    moved = ids.new_zeros(ids.shape)
    moved[:, 1:] = ids[:, :-1]
    return m.words(moved)


BODIES: dict[str, Callable[[Reads, Tensor], Tensor]] = {
    "plain": lambda m, ids: m.words(ids),
    "with places": lambda m, ids: m.words(ids) + m.places(torch.arange(ids.shape[1])),
    "transposed": lambda m, ids: m.words(ids.t()).transpose(0, 1),
    "flattened": lambda m, ids: m.words(ids.flatten()).view(*ids.shape, 6),
    "flattened, sequence first": lambda m, ids: m.words(ids.t().reshape(-1)).view(5, -1, 6).transpose(0, 1),
    "split": lambda m, ids: torch.stack([m.words(ids[:, t]) for t in range(5)], 1),
    "rolled and back": lambda m, ids: m.words(ids.roll(1, 1)).roll(-1, 1),
    "table indexed": lambda m, ids: m.words.weight[ids],
    "one-hot": lambda m, ids: F.one_hot(ids, 20).to(m.words.weight.dtype) @ m.words.weight,
    "clamped": lambda m, ids: m.words(ids.clamp(max=30)),
}


def relevance(name: str, ids: Tensor) -> Tensor:
    torch.manual_seed(0)
    model = Reads(BODIES[name]).double().eval()
    explainer = convert(model)
    a = explainer(ids, target=1, contrast=None)
    torch.testing.assert_close(a.output, model(ids))
    assert not explainer.latest.is_for_one, "samples are explained one by one"
    assert a.relevance.shape == ids.shape
    torch.testing.assert_close(explainer(ids[1:2], target=1, contrast=None).relevance[0], a.relevance[1])
    return a.relevance


IDS = torch.tensor([[3, 7, 11, 7, 2], [1, 5, 19, 4, 8], [9, 9, 6, 13, 17]])


@pytest.mark.parametrize("name", [n for n in BODIES if n not in ("plain", "with places", "one-hot")])
def test_the_way_to_the_table_makes_no_difference(name: str) -> None:
    torch.testing.assert_close(relevance(name, IDS), relevance("plain", IDS))


def test_one_hot_rows_are_looked_up() -> None:
    assert relevance("one-hot", IDS).any(1).all()


def test_what_is_shifted_out_has_nothing() -> None:
    torch.manual_seed(0)
    model = Reads(written).double().eval()
    r = convert(model)(IDS, target=1, contrast=None).relevance
    assert r[:, :-1].any()
    assert not r[:, -1].any()


def test_what_is_looked_up_beside_the_input_is_no_entry_of_it() -> None:
    """The row that is written in front of the tokens, and moves them, takes its relevance with it."""
    torch.manual_seed(0)
    model = Reads(written).double().eval()
    moved = convert(model)(IDS, target=1, contrast=None).relevance
    model.body = lambda m, ids: torch.cat([m.words.weight[:1].expand(len(ids), 1, -1), m.words(ids[:, :-1])], 1)
    torch.testing.assert_close(moved, convert(model)(IDS, target=1, contrast=None).relevance)


def test_hashes_add_up() -> None:
    torch.manual_seed(0)
    model = Reads(lambda m, ids: m.words((ids + 1) * 7 % 20) + m.words(ids)).double().eval()
    r = convert(model, rules="abslrp")(IDS, target=1, contrast=None).relevance
    assert r.sum(1).max() <= 1 + 1e-9
    assert r.any(1).all()


def test_numbers_in_integers() -> None:
    """A picture in bytes is explained pixel by pixel."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).eval()

    class Bytes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor) -> Tensor:
            return self.model(x / 255)

    x = torch.randint(0, 256, (2, 3, 2, 2), dtype=torch.uint8)
    torch.testing.assert_close(convert(Bytes().eval())(x).relevance, convert(model)(x / 255).relevance)
