"""Edges between modules: they add up, they are direct, and they can be drawn, printed and saved."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fxlrp
from fxlrp.inside.blocks import blocks
from tests.inside.networks import ALL, branches, captured

RULES = ("abslrp-hybrid", "abslrp", "abslrp-2024-12", "attnlrp")


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("name", ALL)
def test_rows_add_up_to_the_relevance_of_a_module(name: str, rules: str) -> None:
    explainer, call = captured(name)
    explainer = explainer.by(rules)
    edges = explainer.edges(**call, target=1)
    count = len(edges.nodes)
    assert edges.relevance.shape == (2, count, count)
    assert count > 4
    inside = list(edges.nodes[1:-1])
    a = explainer(**call, target=1, at=inside)
    expected = {edges.nodes[0]: a.relevance, **a.latent}
    size = max(float(r.abs().sum()) for r in expected.values())
    for node, r in expected.items():
        own = r if len(r) == 2 else r.unflatten(0, (2, -1))  # windows lie in the axis of samples
        apart = edges.relevance[:, edges.nodes.index(node)].sum(1) - own.flatten(1).sum(1)
        assert apart.abs().max() / size < 1e-6
    assert not edges.relevance.tril().any(), "relevance goes from the output backwards alone"


class Residual(nn.Module):
    """Two linear branches on a stream, so that every way is a product of matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = (nn.Linear(3, 3, bias=False) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.a(x)
        return self.head(x + self.b(x))


def test_edges_are_the_direct_ways_alone() -> None:
    """Of linear branches, by the products of their matrices."""
    model, x = Residual().double().eval(), torch.randn(2, 3).double()
    edges = fxlrp.convert(model, rules="gradient-input").edges(x, nodes=["a", "b"], target=1, contrast=None)
    assert edges.nodes == ("x", "a", "b", "output")
    a, b, v = model.a.weight, model.b.weight, model.head.weight[1]
    of_a = x @ a.T
    expected = {
        ("x", "output"): x @ v,
        ("x", "a"): (x @ a.T) @ (v + v @ b),
        ("x", "b"): x @ b.T @ v,
        ("a", "output"): of_a @ v,
        ("a", "b"): of_a @ b.T @ v,
        ("b", "output"): (x + of_a) @ b.T @ v,
    }
    for (source, to), r in expected.items():
        torch.testing.assert_close(edges.relevance[:, edges.nodes.index(source), edges.nodes.index(to)], r.detach())
    torch.testing.assert_close(edges.node[:, -1], model(x)[:, 1].detach())


def test_the_blocks_are_found_by_structure() -> None:
    found = {name: blocks(captured(name)[0].latest) for name in ALL}
    assert found["vit"] == [f"blocks.{i}.{part}" for part in ("attn", "mlp") for i in range(3)]
    assert found["gpt"] == [f"transformer.h.{i}.{part}" for part in ("attn", "mlp") for i in range(3)]
    assert "bert.encoder.layer.2.attention" in found["bert"]
    assert "bert.encoder.layer.0.output" in found["bert"]
    assert found["branches"] == ["stem", "left", "right", "body", "head"]
    assert len(found["swin"]) == 8


def test_modules_of_a_depth_and_what_is_none() -> None:
    model, call, _, _ = branches()
    explainer = fxlrp.convert(model)
    assert explainer.edges(**call, depth=1).nodes == ("x", "stem", "left", "right", "body", "output")
    assert "body.1" in explainer.edges(**call, depth=2).nodes
    with pytest.raises(fxlrp.FxlrpError, match="names no module"):
        explainer.edges(**call, nodes=["nowhere"])
    with pytest.raises(fxlrp.FxlrpError, match="one class"):
        explainer.edges(**call, target=[0, 1])


def test_a_circuit_is_printed_and_saved(tmp_path: Path) -> None:
    explainer, call = captured("vit")
    edges = explainer.edges(**call, target=1)
    top = edges.top(3, index=1)
    sizes = [abs(r) for _, _, r in top]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == float(edges.relevance[1].abs().max())
    assert "blocks.2.mlp" in str(edges)
    saved = json.loads(edges.save(tmp_path / "c.json", index=1).read_text())
    assert saved["target"] == 1
    assert saved["edges"][0]["relevance"] == pytest.approx(top[0][2])
    svg = edges.save(tmp_path / "c.svg", top=5).read_text()
    assert svg.count('class="edge"') == 5
    assert svg.startswith("<svg")
    with pytest.raises(fxlrp.FxlrpError, match="none of"):
        edges.save(tmp_path / "c.png")


def test_the_page_of_a_circuit(tmp_path: Path, open_page) -> None:
    explainer, call = captured("vit")
    page = open_page(explainer.edges(**call, target=1).save(tmp_path / "c.html", top=10))
    assert page.locator(".edge:visible").count() == 10
    assert page.locator("tbody tr:visible").count() == 10
    page.locator(".node").filter(has_text="blocks.2.mlp").click()
    shown = page.locator("tbody tr:visible").all_inner_texts()
    assert shown
    assert all("blocks.2.mlp" in row for row in shown)
    assert "blocks.2.mlp: relevance" in page.locator("output.about").inner_text()
    page.locator("input[type=range]").fill("3")
    assert page.locator(".edge:visible").count() <= 3
