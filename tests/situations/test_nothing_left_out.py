"""Whatever x · gradient reaches, relevance reaches, and ids beside numbers are explained as ids alone are."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxlrp import convert

BOOKS = ("abslrp", "abslrp-hybrid", "epsilon", "gradient-input")
X = torch.randn(1, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
EDGES = torch.tensor([[0, 1, 2, 3, 1, 4, 2], [1, 2, 3, 0, 4, 2, 0]])


class Graph(nn.Module):
    """Attention over the edges of a graph, whose ends are rows picked by integers."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.sends, self.takes = nn.Linear(4, 8), nn.Linear(8, 1), nn.Linear(8, 1)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        h, i, j = self.mix(x.squeeze(0)), edges[0], edges[1]
        w = F.leaky_relu(self.sends(h)[i] + self.takes(h).index_select(0, j)).exp()
        total = x.new_zeros(len(h), 1).index_add(0, j, w)
        return self.head(torch.zeros_like(h).index_add(0, j, h[i] * w / total[j]).mean(0, keepdim=True))


@pytest.mark.parametrize("rules", BOOKS)
def test_rows_of_an_activation_are_no_lookups(rules: str) -> None:
    model = Graph().double().eval()
    a = convert(model, rules=rules)(X, EDGES, target=1, contrast=None)
    assert list(a.named) == ["0"]
    assert a.relevance.any()
    if rules == "gradient-input":
        x = X.clone().requires_grad_()
        (grad,) = torch.autograd.grad(model(x, EDGES)[0, 1], x)
        torch.testing.assert_close(a.relevance, X * grad)


def test_rows_of_what_other_ids_look_up() -> None:
    """The kinds of a graph's nodes are explained, not which of them the edges join."""

    class Kinds(Graph):
        def forward(self, kinds: Tensor, edges: Tensor) -> Tensor:
            return super().forward(F.one_hot(kinds, 4).to(self.mix.weight.dtype), edges)

    model, kinds = Kinds().double().eval(), torch.tensor([[0, 3, 1, 1, 2]])
    a = convert(model, rules="abslrp-hybrid")(kinds, EDGES, target=1)
    assert list(a.named) == ["0"]
    assert a.relevance.any(0).all()


Body = Callable[[nn.Module, Tensor], Tensor]
CATEGORIES: dict[str, Body] = {
    "one-hot": lambda m, ids: F.one_hot(ids, 6),
    "one-hot in floats": lambda m, ids: F.one_hot(ids, 6).float(),
    "compared": lambda m, ids: ids[:, None] == torch.arange(6),
    "compared and cast": lambda m, ids: (ids[:, None] == m.classes).double(),
    "rows of an identity": lambda m, ids: torch.eye(6, dtype=torch.float64)[ids],
    "unbound": lambda m, ids: F.one_hot(torch.stack([ids, ids], 1).unbind(1)[0], 6),
}


class Beside(nn.Module):
    def __init__(self, body: Body) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.mix, self.head = body, nn.Linear(10, 8), nn.Linear(8, 3)
        self.register_buffer("classes", torch.arange(6))

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        return self.head(F.gelu(self.mix(torch.cat([x, self.body(self, ids)], 1))))


@pytest.mark.parametrize("rules", BOOKS)
@pytest.mark.parametrize("how", list(CATEGORIES))
def test_one_hots_beside_numbers(how: str, rules: str) -> None:
    x, ids = X[0, :3], torch.tensor([1, 4, 2])
    model = Beside(CATEGORIES[how]).double().eval()
    explainer = convert(model, rules=rules)
    a = explainer(x, ids, target=1, contrast=None)
    torch.testing.assert_close(a.output, model(x, ids).detach())
    rows = torch.cat([x, F.one_hot(ids, 6)], 1)
    plain = nn.Sequential(model.mix, nn.GELU(), model.head).eval()
    expected = convert(plain, rules=rules)(rows, target=1, contrast=None)
    torch.testing.assert_close(a.relevance[0], expected.relevance[:, :4])
    torch.testing.assert_close(a.relevance[1].double(), expected.relevance[:, 4:].sum(1), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(explainer(x[:1], ids[:1], target=1, contrast=None).relevance[1], a.relevance[1][:1])


@pytest.mark.parametrize("rules", BOOKS)
@pytest.mark.parametrize("how", ["cast", "bucketed", "hashed"])
def test_categories_among_numbers(how: str, rules: str) -> None:
    """A column of floats that is looked up is explained by what it looked up, the others as the numbers they are."""

    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.mix, self.head = nn.Embedding(24, 6), nn.Linear(3, 6), nn.Linear(6, 2)
            self.register_buffer("edges", torch.linspace(0, 24, 23))

        def index(self, x: Tensor) -> Tensor:
            x = x.nan_to_num()
            return {"cast": x.long(), "bucketed": torch.bucketize(x, self.edges), "hashed": x.long() * 7 % 24}[how]

        def forward(self, x: Tensor) -> Tensor:
            return self.rest(x[:, 1:], self.index(x[:, 0]))

        def rest(self, x: Tensor, ids: Tensor) -> Tensor:
            return self.head(F.gelu(self.mix(x) + self.words(ids)))

    class Apart(Table):
        def forward(self, x: Tensor, ids: Tensor) -> Tensor:
            return self.rest(x, ids)

    table, apart = Table().double().eval(), Apart().double().eval()
    apart.load_state_dict(table.state_dict())
    x = torch.cat([torch.tensor([[2.0], [23.0], [7.0]]), X[0, :3, :3]], 1)
    a = convert(table, rules=rules)(x, target=1)
    numbers, ids = convert(apart, rules=rules)(x[:, 1:], table.index(x[:, 0]), target=1).relevance
    torch.testing.assert_close(a.relevance, torch.cat([ids[:, None], numbers], 1))
    assert ids.all()
