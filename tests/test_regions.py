"""A graph that is compiled piece by piece computes what it does as a whole, and what repeats is compiled once."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

from fxlrp import convert
from fxlrp.compiled import _graphs_compiled
from fxlrp.export import regions
from fxlrp.export.regions import Listing, Piece, assembled, compiled_by_regions, repeats, with_the_rest

aten = torch.ops.aten


@pytest.fixture
def given_to_compile(monkeypatch: pytest.MonkeyPatch) -> list[fx.GraphModule]:
    """What torch.compile is called with, which returns it as it is."""
    graphs: list[fx.GraphModule] = []
    monkeypatch.setattr(torch, "compile", lambda graph, **options: graphs.append(graph) or graph)
    return graphs


class Transformer(nn.Module):
    def __init__(self, depth: int) -> None:
        super().__init__()
        block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True, activation="gelu")
        self.stem, self.head = nn.Linear(3, 8), nn.Linear(8, 4)
        self.blocks = nn.TransformerEncoder(block, depth, enable_nested_tensor=False)
        for p in self.parameters():  # the layers are copies of one
            nn.init.normal_(p, std=0.3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean(1))


def tokens(count: int, length: int = 5) -> Tensor:
    return torch.randn(count, length, 3, generator=torch.Generator().manual_seed(count))


@pytest.fixture(scope="module")
def transformer() -> nn.Module:
    torch.manual_seed(0)
    return Transformer(6).eval()


@pytest.mark.every(2)
@pytest.mark.parametrize("rules", ["abslrp-hybrid", "abslrp", "attnlrp", "gradient-input"])
def test_a_block_is_compiled_once_and_computes_the_same(
    transformer: nn.Module, rules: str, given_to_compile: list[fx.GraphModule]
) -> None:
    graph = convert(transformer, tokens(2), rules=rules).joint().traced
    by_pieces = compiled_by_regions(graph)
    assert sum(len(Listing(g).ops) for g in given_to_compile) < len(Listing(graph).ops) / 2
    for count in (2, 3):
        x, target = tokens(count), torch.arange(count)
        for got, expected in zip(by_pieces(x, target), graph(x, target), strict=True):
            assert torch.equal(got, expected)


def test_what_repeats_little_is_compiled_whole(cnn: nn.Module, given_to_compile: list[fx.GraphModule]) -> None:
    graph = convert(cnn, torch.randn(2, 3, 8, 8, dtype=torch.float64)).joint().traced
    assert isinstance(compiled_by_regions(graph), Piece)
    assert given_to_compile == [graph]


@pytest.mark.every(2)
@pytest.mark.parametrize("dynamic", [None, True, False])
def test_another_batch_compiles_nothing_anew(transformer: nn.Module, dynamic: bool | None) -> None:
    explainer = convert(transformer, tokens(2), rules="gradient-input").compile(backend="eager", dynamic=dynamic)
    compiled = []
    for count in (3, 2, 5):
        explainer(tokens(count))
        compiled.append(_graphs_compiled())
    assert (compiled[0] == compiled[1] == compiled[2]) == (dynamic is not False)


def test_compiled_by_inductor_piece_by_piece(transformer: nn.Module) -> None:
    explainer = convert(transformer, tokens(2), rules="abslrp-hybrid")
    eager = [explainer(tokens(count), contrast="others").relevance for count in (3, 2)]
    explainer.compile()
    before = _graphs_compiled()
    for expected, count in zip(eager, (3, 2), strict=True):
        got = explainer(tokens(count), contrast="others").relevance
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=float(1e-5 * expected.abs().max()))
    assert 1 < _graphs_compiled() - before < 10  # the block forward and back, and what stands between, once each


STEPS: dict[str, Callable[..., Tensor]] = {
    "add": lambda x, y, w: x + y,
    "mul": lambda x, y, w: x * w,
    "write": lambda x, y, w: x.clone().add_(y),
    "write here": lambda x, y, w: x.mul_(0.5),
    "view": lambda x, y, w: x.t(),
    "size": lambda x, y, w: x * y.shape[0],
    "reshape": lambda x, y, w: (x + w).view(x.shape[0] * 3).view(x.shape[0], 3) if x.is_contiguous() else x + 1,
    "split": lambda x, y, w: torch.cat(x.unbind(1)[::-1], 0).view(3, x.shape[0]).t(),
    "norm": lambda x, y, w: nn.functional.layer_norm(x + y, (3,)) if x.shape[1] == 3 else x + y,
}
BLOCK = st.lists(st.sampled_from([*STEPS]), min_size=2, max_size=6)
PROGRAM = st.tuples(
    st.lists(BLOCK, min_size=1, max_size=3),
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=2, max_size=7),  # which block, wired how
)


@settings(max_examples=60, deadline=None)
@given(PROGRAM, st.booleans())
def test_any_program_of_repeated_blocks(program: tuple[list[list[str]], list[tuple[int, int]]], symbolic: bool) -> None:
    blocks, order = program
    weights = [torch.randn(3) for _ in order]

    def run(x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        values = [x, x * 2, x + 3]
        for w, (b, wired) in zip(weights, order, strict=True):
            for k, step in enumerate(blocks[b % len(blocks)]):
                x, y = values[-1], values[-1 - k * wired % 3]
                x, y = (v if v.shape[1] == 3 and v.shape[0] != 3 else v.t() for v in (x, y))
                values.append(STEPS[step](x, y, w))
        return values[-1].clone(), sum(v.sum() for v in values)

    x = torch.randn(4, 3)
    graph = make_fx(run, tracing_mode="symbolic" if symbolic else "real")(x.clone(), *weights)
    graph.graph.eliminate_dead_code()
    listing = Listing(graph)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(regions, "LEAST", 2)
        patch.setattr(torch, "compile", lambda graph, **options: graph)
        found = repeats(listing)
        taken = sorted(i for r in found for start in r.starts for i in range(start, start + r.size))
        assert len(set(taken)) == len(taken)
        assert all(len(r.starts) > 1 for r in found)
        by_pieces = assembled(graph, listing, with_the_rest(found, len(listing.ops)), {})
    for count in (4, 5) if symbolic else (4,):
        x = torch.randn(count, 3)
        for got, expected in zip(by_pieces(x.clone(), *weights), graph(x.clone(), *weights), strict=True):
            torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)
