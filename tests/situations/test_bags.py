"""nn.EmbeddingBag is the lookup, and the sum, mean or maximum, that it stands for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fxlrp import convert

IDS = torch.tensor([[3, 3, 1, 7], [2, 3, 5, 9], [8, 8, 1, 0]])
BOOKS = ("abslrp", "abslrp-hybrid", "epsilon", "gradient-input")
MODES = [(mode, padding) for mode in ("sum", "mean", "max") for padding in (None, 3)]


class Bag(nn.Module):
    def __init__(self, mode: str, padding: int | None, last: bool = False) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(20, 8, mode=mode, padding_idx=padding, include_last_offset=last)
        self.body = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))

    def forward(self, *args: Tensor | None) -> Tensor:
        return self.body(self.bag(*args))


class Written(Bag):
    """The same, written out."""

    def forward(self, ids: Tensor, _: None = None, weights: Tensor | None = None) -> Tensor:
        padding = -1 if self.bag.padding_idx is None else self.bag.padding_idx
        v, kept = nn.functional.embedding(ids, self.bag.weight), ids != padding
        v = v if weights is None else v * weights[..., None]
        if self.bag.mode == "max":
            return self.body(v.masked_fill(~kept[..., None], -torch.inf).amax(1))
        total = (v * kept[..., None]).sum(1)
        return self.body(total / kept.sum(1, keepdim=True) if self.bag.mode == "mean" else total)


def pair(mode: str, padding: int | None) -> tuple[nn.Module, nn.Module]:
    bag, written = Bag(mode, padding), Written(mode, padding)
    written.load_state_dict(bag.state_dict())
    return bag.double().eval(), written.double().eval()


@pytest.mark.parametrize("ids", [IDS, IDS[:, 2:3]], ids=["several", "one"])
@pytest.mark.parametrize("rules", BOOKS)
@pytest.mark.parametrize(("mode", "padding"), MODES)
def test_rows_of_ids(mode: str, padding: int | None, rules: str, ids: Tensor) -> None:
    bag, written = pair(mode, padding)
    explainer = convert(bag, rules=rules)
    a = explainer(ids)
    torch.testing.assert_close(a.output, bag(ids).detach())
    torch.testing.assert_close(a.relevance, convert(written, rules=rules)(ids).relevance)
    torch.testing.assert_close(explainer(ids[1:2], target=a.target[1:2]).relevance, a.relevance[1:2])
    assert a.relevance.any(1).all()
    assert not a.relevance[padding == ids].any()
    assert explainer.report().mode.endswith("any size")
    assert not explainer.report().counts["generic"]


@pytest.mark.parametrize("rules", BOOKS)
@pytest.mark.parametrize("padding", [None, 3])
def test_weights_of_ids(padding: int | None, rules: str) -> None:
    bag, written = pair("sum", padding)
    call = IDS, None, torch.rand(3, 4, dtype=torch.float64)
    found, expected = convert(bag, rules=rules)(*call), convert(written, rules=rules)(*call)
    assert len(found.relevance) == 2
    torch.testing.assert_close(found.relevance, expected.relevance)


class Text(Bag):
    """A line of ids and where the text of each sample starts, one text at a time."""

    def forward(self, ids: Tensor, offsets: Tensor) -> Tensor:
        return super().forward(ids.flatten(), offsets.flatten())


@pytest.mark.parametrize(("last", "rules"), [(False, "abslrp-hybrid"), (True, "gradient-input")])
@pytest.mark.parametrize(("mode", "padding"), MODES)
def test_offsets(mode: str, padding: int | None, last: bool, rules: str) -> None:
    text, written = Text(mode, padding, last), Written(mode, padding)
    text, written = text.double().eval(), written.double().eval()
    written.load_state_dict(text.state_dict())
    offsets = torch.tensor([[0, 4]] if last else [[0]])
    a = convert(text, rules=rules)(IDS[:1], offsets)
    torch.testing.assert_close(a.output, text(IDS[:1], offsets).detach())
    torch.testing.assert_close(a.relevance, convert(written, rules=rules)(IDS[:1]).relevance)


@pytest.mark.parametrize(("mode", "padding"), MODES)
def test_bags_without_a_word(mode: str, padding: int | None) -> None:
    """Of several bags beside each other, one has nothing in it and one but padding."""

    class Bags(Text):
        def forward(self, ids: Tensor, offsets: Tensor) -> Tensor:
            return super().forward(ids, offsets).flatten()[None]

    bags = Bags(mode, padding).double().eval()
    ids, offsets = torch.tensor([[3, 3, 1, 7, 7]]), torch.tensor([[0, 2, 2, 3]])
    a = convert(bags, rules="gradient-input")(ids, offsets, target=4, contrast=None)
    torch.testing.assert_close(a.output, bags(ids, offsets).detach())
    assert not a.relevance.any(), "class 4 is the second bag's, which is empty"
    r = convert(bags, rules="gradient-input")(ids, offsets, target=7, contrast=None).relevance
    v = bags.bag.weight[1].detach().requires_grad_()
    (g,) = torch.autograd.grad(bags.body(v)[1], v)
    expected = torch.zeros_like(r)
    expected[0, 2] = (v.detach() * g).sum()
    torch.testing.assert_close(r, expected)


def test_a_bag_beside_numbers() -> None:
    class Beside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bag, self.mix, self.head = nn.EmbeddingBag(20, 8), nn.Linear(4, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor, ids: Tensor) -> Tensor:
            return self.head((self.mix(x) + self.bag(ids)).relu())

    model, x = Beside().double().eval(), torch.randn(3, 4, dtype=torch.float64)
    a = convert(model)(x, IDS)
    assert list(a.named) == ["0", "1"]
    assert all(r.any() for r in a.relevance)


@pytest.mark.parametrize("rules", BOOKS)
def test_rows_brought_to_a_norm(rules: str) -> None:
    model = nn.Sequential(nn.Embedding(20, 8, max_norm=1.0), nn.Flatten(), nn.Linear(32, 3)).double().eval()
    ids = IDS.clone()
    table = model[0].weight.detach().renorm(2, 0, 1.0)
    a = convert(model, rules=rules)(ids, target=1)
    model[0] = nn.Embedding.from_pretrained(table)
    torch.testing.assert_close(a.relevance, convert(model, rules=rules)(ids, target=1).relevance)
    assert a.relevance.shape == ids.shape
