"""Where the relevance went: the mass along each edge of the graph adds up, and the tree says it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

import fxlrp
from fxlrp import FxlrpError, convert


def test_mass_arrives_at_the_input_and_nothing_is_made(cnn: nn.Module) -> None:
    x = torch.randn(2, 3, 8, 8).double()
    explainer = convert(cnn, rules="abslrp")
    a = explainer(x, contrast=None)
    report = explainer.report(x, contrast=None)
    rows = {n.name: n for n in report.nodes}
    seed = [mass for (node, _), mass in report.edges.items() if node == "output"]
    assert sum(m.positive for m in seed) == pytest.approx(2)  # one unit a sample
    read = [mass for (_, source), mass in report.edges.items() if source == "readout"]
    assert sum(m.positive for m in read) == pytest.approx(a.relevance.clamp(min=0).sum().item())
    assert sum(m.negative for m in read) == pytest.approx(-a.relevance.clamp(max=0).sum().item())
    for n in rows.values():
        if n.kind in ("rule", "structural") and n.arrives:
            assert n.leaves is None or n.leaves.size <= n.arrives.size * (1 + 1e-9)


def test_a_leak_is_seen() -> None:
    class Leaks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) + 100 * torch.ones(4)

    model = Leaks().eval()
    nn.init.constant_(model.layer.weight, -1)
    report = convert(model, rules="abslrp").report(torch.rand(1, 4), contrast=None)
    linear = next(n for n in report.nodes if n.op.startswith("add"))
    assert linear.arrives.size == pytest.approx(1)
    assert linear.leaves.size == 0  # every summand but the constant was negative
    console = Console(record=True, width=120)
    console.print(report.tree())
    assert "(0%)" in console.export_text()


@pytest.mark.parametrize("op", [torch.atan2, torch.fmod, torch.hypot, torch.logaddexp, torch.copysign])
def test_inputs_of_opposite_shares_keep_the_mass(op: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Of ops without a rule: an angle does not change with the length, so what its two sides give cancels."""

    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first, self.head = nn.Linear(6, 12), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            a, b = self.first(x).chunk(2, -1)
            return self.head(op(a, b))

    x = torch.randn(3, 6, generator=torch.Generator().manual_seed(4)).double()
    explainer = convert(Pair().double().eval(), rules="abslrp")
    a = explainer(x, target=1, contrast=None)
    assert (a.relevance.abs().sum(1) <= 1 + 1e-9).all()
    assert a.relevance.any()
    alone = [explainer(row, target=1, contrast=None).relevance for row in x.split(1)]
    torch.testing.assert_close(torch.cat(alone), a.relevance, rtol=1e-7, atol=1e-9)
    for n in explainer.report(x, target=1, contrast=None).nodes:
        if n.kind == "generic":
            assert n.leaves.size == pytest.approx(n.arrives.size)


def test_modules_of_the_tree_add_up(cnn: nn.Module) -> None:
    report = convert(cnn).report(torch.randn(1, 3, 8, 8).double())
    console = Console(record=True, width=120)
    console.print(report.tree(depth=1))
    text = console.export_text()
    assert "conv1" in text
    assert "head" in text


def test_report_of_nothing_is_an_error() -> None:
    with pytest.raises(FxlrpError, match="Nothing is captured yet"):
        convert(nn.Linear(2, 2).eval()).report()
    assert isinstance(fxlrp.convert(nn.Linear(2, 2).eval(), torch.ones(1, 2)).report().counts, dict)


@pytest.mark.parametrize("rules", ["abslrp", "abslrp-2024-12"])
def test_a_softmax_of_the_logarithm_of_zero(rules: str) -> None:
    class LogWeights(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(5, 5), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(x).relu().log().softmax(-1))

    x = torch.randn(4, 5, dtype=torch.float64)
    assert convert(LogWeights().double().eval(), x[:2], rules=rules)(x, target=1).relevance.isfinite().all()
