"""Where relevance is read: at inputs but for masks and positions, or where it is asked for; the report says why not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fxlrp import FxlrpError, convert

BOOKS = ("abslrp", "abslrp-hybrid", "epsilon", "gradient-input")
IDS = torch.tensor([[3, 7, 11, 7, 2], [1, 5, 19, 4, 8], [9, 9, 6, 13, 17]])
MASK = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])


class Text(nn.Module):
    """Places are counted from the mask and looked up, or given."""

    def __init__(self, given: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.places = nn.Embedding(20, 6), nn.Embedding(9, 6)
        self.body = nn.Sequential(nn.Linear(6, 8), nn.GELU())
        self.head, self.given = nn.Linear(8, 3), given

    def forward(self, ids: Tensor, mask: Tensor, position_ids: Tensor | None = None) -> Tensor:
        places = position_ids if position_ids is not None else mask.cumsum(1) * mask
        h = self.body(self.embed(ids) + self.places(places))
        return self.head((h * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))


@pytest.mark.parametrize("rules", BOOKS)
def test_masks_and_positions_are_left_out(rules: str) -> None:
    model = Text().double().eval()
    explainer = convert(model, rules=rules)
    a = explainer(IDS, MASK, target=1)
    assert list(a.named) == ["0"]
    assert "mask" in explainer.report().left_out
    assert "not explained: mask" in str(explainer.report().table().caption)
    b = explainer(IDS, MASK, position_ids=torch.arange(5).expand(3, 5), target=1)
    assert list(b.named) == ["0"]
    assert "read='position_ids'" in explainer.report().left_out["position_ids"]
    by_place = convert(model, rules=rules, read=("ids", "position_ids"))
    c = by_place(IDS, MASK, position_ids=torch.arange(5).expand(3, 5), target=1)
    assert list(c.named) == ["0", "position_ids"]
    if rules != "abslrp":  # whose sums are shared by what carries relevance
        torch.testing.assert_close(c.relevance[0], b.relevance)
    counted = convert(model, rules=rules, read="mask")(IDS, MASK, target=1)
    given = convert(model, rules=rules, read="position_ids")(IDS, MASK, MASK.cumsum(1) * MASK, target=1)
    torch.testing.assert_close(counted.relevance, given.relevance)


@pytest.mark.parametrize("rules", BOOKS)
def test_a_module_may_be_where_it_is_read(rules: str) -> None:
    model = Text().double().eval()
    explainer = convert(model, rules=rules, read="embed")
    a = explainer(IDS, MASK, target=1)
    assert list(a.named) == ["embed"]
    assert a.relevance.shape == (3, 5, 6)
    torch.testing.assert_close(a.inputs[0], model.embed(IDS).detach())
    torch.testing.assert_close(a.relevance.sum(-1), convert(model, rules=rules)(IDS, MASK, target=1).relevance)
    torch.testing.assert_close(explainer(IDS[1:2], MASK[1:2], target=1).relevance, a.relevance[1:2])
    inner = convert(model, rules=rules, read="body.1")(IDS, MASK, target=1, contrast=None)
    if rules == "gradient-input":
        (h,) = inner.inputs
        expected = h * model.head.weight[1] * (MASK / MASK.sum(1, keepdim=True))[..., None]
        torch.testing.assert_close(inner.relevance, expected.detach())


def test_every_call_of_a_module() -> None:
    class Twins(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.head = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5)), nn.Linear(10, 3)

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return self.head(torch.cat([self.net(a), self.net(b)], 1))

    model, (x, y) = Twins().double().eval(), torch.randn(2, 3, 4).double()
    a = convert(model, rules="epsilon", read="net")(x, y, target=1)
    assert [tuple(r.shape) for r in a.relevance] == [(3, 5), (3, 5)]
    assert list(convert(model, read="b")(x, y, target=1).named) == ["1"]
    before = convert(model, read="net.0")(x, y, target=1)
    torch.testing.assert_close(before.inputs[1], model.net[0](y).detach())
    with pytest.raises(FxlrpError, match=r"read='nothing' names no input, module or node.*a, b; modules.*net"):
        convert(model, read="nothing")(x, y)
    with pytest.raises(FxlrpError, match="read='a' has no relevance"):
        convert(model, read=["a", "net"])(x, y)


def test_why_not() -> None:
    class Picks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(4, 3)

        def forward(self, x: Tensor, row: Tensor, other: Tensor, sign: Tensor) -> Tensor:
            return self.net(x)[torch.arange(len(x)), row] * sign.sign()[:, None]

    model, x = Picks().double().eval(), torch.randn(2, 5, 4).double()
    explainer = convert(model, rules="abslrp-hybrid")
    a = explainer(x, torch.tensor([1, 3]), x[:, 0], x[:, 0, 0])
    assert "0" in a.named
    why = explainer.report().left_out
    assert "pick" in why["row"]
    assert "does not depend" in why["other"]


class Masked(nn.Module):
    """Weighs, picks, hides, gates and divides by float inputs beside the explained one."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.head = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(
        self, x: Tensor, mask: Tensor, hard_mask: Tensor, far_mask: Tensor, gate: Tensor, scale: Tensor
    ) -> Tensor:
        y = self.net(x) * torch.heaviside(gate, torch.ones(1).to(x))
        weights = (y.sum(-1) + far_mask).softmax(-1) * mask * (hard_mask > 0)
        return self.head((y * weights[..., None]).sum(1)) * scale.rsqrt()


@pytest.mark.parametrize("rules", BOOKS)
def test_why_float_inputs_are_not_explained(rules: str) -> None:
    model, x = Masked().double().eval(), torch.randn(2, 5, 4).double()
    ones = torch.ones(2, 5).double()
    far = torch.where(torch.arange(5) > 3, -torch.inf, 0).double().expand(2, 5)
    call = (x, ones / 2, ones, far, ones[..., None], 2 * ones[:, :1])
    explainer = convert(model, rules=rules)
    a, why = explainer(*call, target=1), explainer.report().left_out
    assert "read='mask' explains it" in why["mask"]
    assert why["hard_mask"] == why["gate"] == "no derivative leads to it"
    assert "infinite" in why["far_mask"]
    if rules == "gradient-input":
        assert "5" in a.named
    else:
        assert why["scale"] == f"no rule of {rules} gives it any"
    asked = convert(model, rules=rules, read=("x", "mask"))(*call, target=1)
    assert asked.named["1"].flatten(1).any(1).all()
    for name in ("hard_mask", "far_mask", "gate"):
        with pytest.raises(FxlrpError):
            convert(model, rules=rules, read=name)(*call, target=1)


def test_the_other_ways_to_run_it(tmp_path: Path) -> None:
    model = Text().double().eval()
    explainer = convert(model, read="embed")
    expected = explainer(IDS, MASK).relevance
    with pytest.raises(FxlrpError, match="read at inputs"):
        explainer.export(tmp_path / "e.pt2")
    torch.testing.assert_close(explainer.compile(backend="eager")(IDS, MASK).relevance, expected)
