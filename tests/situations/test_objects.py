"""Arguments and outputs may be any object that holds tensors: its tensors are explained where they stand."""

from __future__ import annotations

import copy
import weakref
from collections import UserDict
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxlrp import FxlrpError, convert

BOOKS = ("abslrp", "abslrp-hybrid", "epsilon", "gradient-input")
X, M = torch.randn(2, 2, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@dataclass
class Pair:
    x: Tensor
    m: Tensor


@dataclass(frozen=True, slots=True)
class Frozen:
    x: Tensor
    m: Tensor
    more: str = "no"


class Plain:
    def __init__(self, x: Tensor, m: Tensor) -> None:
        self.x, self.m, self.scale = x, m, 2
        self.owner = weakref.ref(self)


class Stored:
    """Keeps its tensors out of sight, as data of graph libraries do."""

    def __init__(self, x: Tensor, m: Tensor) -> None:
        self._store = SimpleNamespace(_mapping={"x": x, "m": m}, _parent=self)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return self._store._mapping[name]


class Items(UserDict):
    def __init__(self, x: Tensor, m: Tensor) -> None:
        super().__init__({"x": x, "m": m})
        self._encodings = [object()]

    def __getattr__(self, name: str) -> Any:
        if name == "data":
            raise AttributeError(name)
        return self.data[name]


KINDS: list[Callable[[Tensor, Tensor], Any]] = [Pair, Frozen, Plain, Stored, Items]


class Net(nn.Module):
    """A network of what a function reads from its arguments; `wrap` makes what it returns."""

    def __init__(self, read: Callable[..., Tensor], wrap: Callable[[Tensor], Any] = lambda y: y) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).double()
        self.read, self.wrap = read, wrap
        self.calls = 0

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.wrap(self.net(self.read(*args, **kwargs)))


def product(x: Tensor, m: Tensor) -> Tensor:
    return x * m


@pytest.mark.parametrize("rules", BOOKS)
@pytest.mark.parametrize("kind", KINDS)
def test_an_object_as_argument(kind: Callable[[Tensor, Tensor], Any], rules: str) -> None:
    expected = convert(Net(product).eval(), rules=rules)(X, M, target=1)
    explainer = convert(Net(lambda b: product(b.x, b.m)).eval(), rules=rules)
    a = explainer(kind(X, M), target=1)
    torch.testing.assert_close(a.relevance, expected.relevance)
    torch.testing.assert_close(a.output, expected.output)
    assert list(a.named) == ["0.x", "0.m"]
    alone = explainer(kind(X[1:], M[1:]), target=1)
    torch.testing.assert_close([r[0] for r in alone.relevance], [r[1] for r in a.relevance])


def test_it_stays_as_it_was_and_its_constants_count() -> None:
    def read(batch: Plain) -> Tensor:
        batch.x = batch.x * batch.scale  # on a copy
        return product(batch.x, batch.m)

    model = Net(read).eval()
    explainer, batch = convert(model), Plain(X, M)
    a = explainer(batch)
    assert batch.x is X
    torch.testing.assert_close(a.output, model(copy.copy(batch)).detach())
    batch.scale = 3
    torch.testing.assert_close(explainer(batch).output, model(copy.copy(batch)).detach())


def test_objects_in_containers_and_keywords() -> None:
    model = Net(lambda pairs, more: product(pairs[0].x, pairs[1].m) + more.x * 0.5).eval()
    a = convert(model, rules="gradient-input")([Pair(X, M), Pair(X, M.clone())], more=Plain(M, X))
    assert {"0.0.x", "0.1.m", "more.x"} <= {*a.named}
    assert convert(model, ([Pair(X, M), Pair(X, M.clone())], Plain(M, X))).graph


def test_one_cache_of_a_model_is_not_grown() -> None:
    """It is an object that forward writes into: what it writes goes to a copy."""

    class Cache:
        def __init__(self) -> None:
            self.keys = [M]

        def update(self, x: Tensor) -> Tensor:
            self.keys.append(x)
            return torch.stack(self.keys).sum(0)

    cache = Cache()
    model = Net(lambda x, past: past.update(x)).eval()
    a = convert(model, rules="gradient-input")(X, past=cache, target=1, contrast=None)
    assert len(cache.keys) == 1
    leaf = X.clone().requires_grad_()
    (grad,) = torch.autograd.grad(model.net(leaf + M)[:, 1].sum(), leaf)
    torch.testing.assert_close(a.named["0"], X * grad)


class Answer:
    def __init__(self, logits: Tensor, kind: str) -> None:
        self.hidden, self.logits, self.kind = [logits * 2], logits, kind


class Attributes(dict):
    __getattr__ = dict.__getitem__


@pytest.mark.parametrize("rules", BOOKS)
@pytest.mark.parametrize("wrap", [lambda y: Answer(y, "of a class"), lambda y: Attributes(hidden=y * 2, logits=y)])
def test_an_object_as_output(wrap: Callable[[Tensor], Any], rules: str) -> None:
    expected = convert(Net(lambda x: x).eval(), rules=rules)(X, target=1)
    a = convert(Net(lambda x: x, wrap).eval(), rules=rules)(X, target=1)
    assert type(a.output) is type(wrap(X))
    torch.testing.assert_close(a.output.logits, expected.output)
    torch.testing.assert_close(a.relevance, expected.relevance)
    b = convert(Net(lambda x: x, wrap).eval(), rules=rules)(X, target=lambda out: out.logits[:, 1], contrast=None)
    assert b.relevance.shape == X.shape


def test_arrays_are_no_tensors() -> None:
    with pytest.raises(FxlrpError, match="numpy"):
        convert(Net(lambda x: x, lambda y: y.detach().numpy()).eval())(X)


def test_data_of_graphs() -> None:
    data = pytest.importorskip("torch_geometric.data")
    edges = torch.tensor([[0, 1, 2, 3], [1, 2, 3, 0]])

    def read(d: Any) -> Tensor:
        return d.x.index_add(0, d.edge_index[1], d.x[d.edge_index[0]]).mean(0, keepdim=True)

    x = torch.randn(4, 6, dtype=torch.float64)
    model = Net(read).eval()
    a = convert(model, rules="gradient-input")(data.Data(x=x, edge_index=edges), target=1, contrast=None)
    assert list(a.named) == ["0.x"]
    leaf = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(model(data.Data(x=leaf, edge_index=edges))[:, 1].sum(), leaf)
    torch.testing.assert_close(a.relevance, x * grad)


def test_encodings_of_tokenizers() -> None:
    tokens = pytest.importorskip("transformers").BatchEncoding
    table = nn.Embedding(20, 6, dtype=torch.float64)
    model = Net(lambda enc: table(enc["input_ids"]).mean(1)).eval()
    a = convert(model)(tokens({"input_ids": torch.tensor([[1, 4, 3], [2, 5, 3]])}))
    assert list(a.named) == ["0.input_ids"]
    assert a.relevance.any(1).all()
