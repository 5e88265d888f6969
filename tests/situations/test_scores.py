"""Outputs that are no row of classes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fxlrp
from fxlrp import FxlrpError, convert

X = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Score(nn.Module):
    """A score [B, 1] for each sample, or [B] of it, below zero where `shift` is."""

    def __init__(self, flat: bool, shift: float, head: nn.Module | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1)).double()
        self.flat, self.shift, self.head = flat, shift, head or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.net(x) + self.shift
        return self.head(y.squeeze(-1) if self.flat else y)


@pytest.mark.parametrize("rules", list(fxlrp.rulebooks()))
@pytest.mark.parametrize("shift", [-3.0, 3.0])
def test_one_score_for_each_sample(rules: str, shift: float) -> None:
    flat, column = Score(True, shift).eval(), Score(False, shift).eval()
    a, b = convert(flat, rules=rules)(X), convert(column, rules=rules)(X)
    assert a.output.shape == (5,)
    assert a.relevance.any(1).all()
    torch.testing.assert_close(a.relevance, b.relevance)
    by_score = convert(flat, rules=rules)(X, target=lambda out: out)
    torch.testing.assert_close(by_score.relevance, a.relevance)


def test_one_probability_for_each_sample() -> None:
    model = Score(True, -1.0, nn.Sigmoid()).eval()
    a, b = convert(model)(X), convert(Score(True, -1.0).eval())(X)
    torch.testing.assert_close(a.relevance, b.relevance)
    torch.testing.assert_close(a.output, model(X).detach())


class Total(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).sum(-1)


def test_other_ways_to_run_it(tmp_path: Path) -> None:
    model = Score(True, 1.0).eval()
    expected = convert(model)(X).relevance
    torch.testing.assert_close(convert(model).compile(backend="eager")(X).relevance, expected)
    torch.testing.assert_close(convert(model, X).joint()(X, torch.zeros(5, dtype=torch.long))[1], expected)
    explainer = convert(Total(4, 3).double().eval(), X)
    for run in (explainer.joint, lambda: explainer.export(tmp_path / "e.pt2")):
        with pytest.raises(FxlrpError, match=r"no row of classes"):
            run()
    expected = explainer(X).relevance
    torch.testing.assert_close(explainer.compile(backend="eager")(X).relevance, expected)
    with pytest.raises(FxlrpError, match="callable"):
        explainer(X, target=1)


class Tagger(nn.Module):
    """Scores at each of a sequence [B, T, K], or the other way round [T, B, K], by steps from one side or from both."""

    def __init__(self, both: bool, batch_first: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(20, 4)
        self.layer = nn.GRU(4, 6, batch_first=batch_first, bidirectional=both)
        self.head = nn.Linear(12 if both else 6, 5)
        self.double().eval()

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.embed(ids)
        return self.head(self.layer(x if mask is None else x * mask[..., None])[0])


@pytest.mark.parametrize("first", [True, False])
def test_the_last_token_of_a_causal_model_is_explained(first: bool) -> None:
    ids = torch.arange(8).view(2, 4) if first else torch.arange(8).view(2, 4).T.contiguous()
    explainer = convert(Tagger(False, first), rules="epsilon", batch=0 if first else 1)
    torch.testing.assert_close(explainer(ids).relevance, explainer(ids, position=-1).relevance)


def test_other_sequences_of_scores_want_a_position() -> None:
    ids = torch.arange(8).view(2, 4)
    with pytest.raises(FxlrpError, match="position=0"):
        convert(Tagger(True))(ids)
    explainer = convert(Tagger(False))
    with pytest.raises(FxlrpError, match="position=0"):  # whose last token is padding
        explainer(ids, mask=torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]))
    whole = torch.ones_like(ids)
    torch.testing.assert_close(explainer(ids, mask=whole).relevance, explainer(ids, mask=whole, position=-1).relevance)
