"""Analyse: where the samples of a batch are, wherever the model put them, and what is known of signs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from conftest import randomize
from torch import Tensor, nn

import fxlrp
from fxlrp.capture.model import capture
from fxlrp.graph.analyse import find_nonnegative
from fxlrp.graph.layouts import locate
from fxlrp.rules.per_sample import SampleAxis

aten = torch.ops.aten


class Moves(nn.Module):
    """A linear layer, a product and a norm on x [B, 4, 6] after `there` moved its samples; `back` moves them back."""

    def __init__(self, there: Callable[[Tensor], Tensor], back: Callable[[Tensor, int], Tensor]) -> None:
        super().__init__()
        self.lin, self.norm, self.head = nn.Linear(6, 6), nn.LayerNorm(6), nn.Linear(6, 3)
        self.there, self.back = there, back

    def forward(self, x: Tensor) -> Tensor:
        y = self.there(x)
        y = self.norm(torch.nn.functional.gelu(self.lin(y)) + y)
        y = y * torch.sigmoid(self.lin(y))
        return self.head(self.back(y, x.shape[0]).mean(1))


PLACES = {
    "first": (lambda x: x, lambda y, b: y),
    "second": (lambda x: x.transpose(0, 1), lambda y, b: y.transpose(0, 1)),
    "folded before": (lambda x: x.reshape(-1, 6), lambda y, b: y.reshape(b, 4, 6)),
    "folded behind": (
        lambda x: x.transpose(0, 1).reshape(-1, 6),
        lambda y, b: y.reshape(4, b, 6).transpose(0, 1),
    ),
    "folded amid": (
        lambda x: x.view(-1, 2, 2, 6).transpose(0, 1).reshape(-1, 6),
        lambda y, b: y.reshape(2, b, 2, 6).transpose(0, 1).reshape(b, 4, 6),
    ),
    "last": (lambda x: x.permute(1, 0, 2), lambda y, b: y.permute(1, 0, 2)),
}


@pytest.mark.parametrize("rules", ["abslrp", "abslrp-2024-04", "abslrp-2024-12"])
@pytest.mark.parametrize("place", PLACES)
def test_samples_are_told_apart_wherever_they_are(place: str, rules: str) -> None:
    model = randomize(Moves(*PLACES[place]))
    explainer = fxlrp.convert(model, rules=rules)
    x = torch.randn(3, 4, 6).double()
    together = explainer(x).relevance
    for i in range(3):
        alone = explainer(x[i : i + 1]).relevance[0]
        torch.testing.assert_close(alone, together[i], rtol=1e-10, atol=1e-13)
    assert len(explainer.plans.cache.plans) == 1


def test_fixed_batch_is_captured_at_its_own_size() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            rows = [self.lin(x[i]) for i in range(x.shape[0])]  # unrolled over the batch
            return torch.stack(rows) + self.lin(x)

    explainer = fxlrp.convert(randomize(Fixed()))
    x = torch.randn(3, 6).double()
    together = explainer(x).relevance
    for i in range(3):
        torch.testing.assert_close(explainer(x[i : i + 1]).relevance[0], together[i], rtol=1e-10, atol=1e-13)


def test_locate_finds_the_layout() -> None:
    mask = torch.zeros(2, 3, 4, dtype=torch.bool)  # [before, samples, after]
    mask[:, 0] = True
    assert list(locate(mask.reshape(24, 1).expand(24, 5), [0, 1], 3)) == [SampleAxis(0, 2, 4)]
    assert list(locate(mask.reshape(1, 24), [0, 1], 3)) == [SampleAxis(1, 2, 4)]
    assert not list(locate(mask.reshape(1, 24), [0, 1], 3, sample=1))
    assert not list(locate(torch.ones(6, 2, dtype=torch.bool), [0], 3))


def test_nonnegative_values_are_known(cnn: nn.Module) -> None:
    gm = capture(cnn, (torch.randn(2, 3, 8, 8).double(),), {}).graph
    known = find_nonnegative(gm)
    seen: dict[str, Tensor] = {}

    class Record(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> object:
            seen[n.name] = super().run_node(n)
            return seen[n.name]

    Record(gm).run(torch.randn(2, 3, 8, 8).double())
    assert all((seen[n.name] >= 0).all() for n in known)
    assert {n.target.overloadpacket for n in known} >= {aten.relu, aten.sigmoid, aten.mean, aten.cat}


class Folded(nn.Module):
    """A linear layer on samples and rows folded into one axis, behind what may hide a change of its input."""

    def __init__(self, hiding: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.hiding, self.rows, self.head = hiding, nn.Linear(6, 6), nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        folded = self.hiding(x).flatten(0, 1)
        return self.head(torch.addmm(self.rows.bias, folded, self.rows.weight.T).view(x.shape).relu().flatten(1))


SEEDED = torch.Generator().manual_seed(0)


@pytest.mark.parametrize(
    ("hiding", "example"),
    [
        (lambda x: x + (x.round() - x).detach(), torch.randn(2, 4, 6, generator=SEEDED)),
        (lambda x: x.round(), torch.randn(2, 4, 6, generator=SEEDED)),
        (lambda x: x, torch.zeros(2, 4, 6)),
        (nn.functional.hardtanh, 1.2 + torch.rand(2, 4, 6, generator=SEEDED)),
        (torch.relu, -0.2 - torch.rand(2, 4, 6, generator=SEEDED)),
    ],
    ids=["straight-through", "rounded", "zeros", "saturated", "dead"],
)
def test_samples_are_found_behind_what_hides_a_nudge(hiding: Callable[[Tensor], Tensor], example: Tensor) -> None:
    torch.manual_seed(0)
    model, x = Folded(hiding).double().eval(), torch.randn(3, 4, 6, dtype=torch.float64)
    explainer = fxlrp.convert(model, example.double())
    assert explainer.latest.samples_separable
    whole = explainer(x, target=1).relevance
    for i in range(3):
        torch.testing.assert_close(explainer(x[i : i + 1], target=1).relevance[0], whole[i], rtol=1e-9, atol=1e-12)
