"""A sparse adjacency, as an argument or a buffer, is explained as the dense one: a constant."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxlrp import FxlrpError, convert

BOOKS = ("abslrp", "abslrp-hybrid", "epsilon", "zplus", "gamma", "gradient-input")
GENERATOR = torch.Generator().manual_seed(0)
A = torch.randn(5, 5, dtype=torch.float64, generator=GENERATOR)
A = A * (torch.rand(5, 5, generator=GENERATOR) > 0.4)
X = torch.randn(5, 4, dtype=torch.float64, generator=GENERATOR)
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {"coo": Tensor.to_sparse, "csr": Tensor.to_sparse_csr}
Product = Callable[[Tensor, Tensor], Tensor]
PRODUCTS: dict[str, Product] = {
    "sparse.mm": torch.sparse.mm,
    "@": torch.matmul,
    "mm": torch.mm,
    "transposed": lambda a, x: (x.T @ a.T).T,
    "added": lambda a, x: torch.sparse.addmm(torch.zeros_like(x), a, x),
}


class Graphs(nn.Module):
    """Two layers over an adjacency, its own `a` or the one it is given."""

    def __init__(self, product: Product, a: Tensor | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(4, 6).double(), nn.Linear(6, 3).double()
        self.register_buffer("a", a)
        self.product = product

    def forward(self, x: Tensor, a: Tensor | None = None) -> Tensor:
        a = self.a if a is None else a
        return self.second(self.product(a, F.relu(self.product(a, self.first(x)))))


def node(out: Tensor) -> Tensor:
    return out[2, 1]


def dense(rules: str) -> Tensor:
    return convert(Graphs(torch.matmul, A).eval(), rules=rules, batch=None)(X, target=node).relevance


@pytest.mark.parametrize("rules", BOOKS)
@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_a_sparse_argument(layout: str, rules: str) -> None:
    a = convert(Graphs(torch.sparse.mm).eval(), rules=rules)(X, LAYOUTS[layout](A), target=node)
    assert list(a.named) == ["0"]
    torch.testing.assert_close(a.relevance, dense(rules))


@pytest.mark.parametrize("rules", ["abslrp", "epsilon"])
@pytest.mark.parametrize("name", list(PRODUCTS))
def test_a_sparse_buffer(name: str, rules: str) -> None:
    model = Graphs(PRODUCTS[name], A.to_sparse()).eval()
    explainer = convert(model, rules=rules)
    torch.testing.assert_close(explainer(X, target=node).relevance, dense(rules))
    assert not explainer.report().counts["generic"]


def test_other_adjacencies_of_one_model() -> None:
    explainer = convert(Graphs(torch.sparse.mm).eval())
    for a in (A, A.T, A * 0 + torch.eye(5)):
        found = explainer(X, a.contiguous().to_sparse(), target=node)
        torch.testing.assert_close(found.output, explainer.model(X, a).detach())
    assert "a" in explainer.report().left_out


def test_no_relevance_stands_at_a_sparse_tensor() -> None:
    class Attending(Graphs):
        def forward(self, x: Tensor, a: Tensor | None = None) -> Tensor:
            edges = torch.tensor([[0, 1, 2], [1, 2, 0]])
            weights = torch.sparse_coo_tensor(edges, (x[edges[0]] * x[edges[1]]).sum(1), (5, 5))
            return self.second(self.first(weights.to_dense() @ x))

    with pytest.raises(FxlrpError, match="index_add"):
        convert(Attending(torch.matmul).eval(), batch=None)(X, target=node)
