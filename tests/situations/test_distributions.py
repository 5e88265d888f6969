"""torch.distributions inside forward: their checks of values don't tie a graph to these values."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import pytest
import torch
from torch import Tensor, distributions, nn

from fxlrp import convert

BOOKS = ("abslrp-hybrid", "epsilon", "attnlrp", "gradient-input")
X = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
Made = Callable[[Tensor, bool | None], Tensor]


def of_matrix(y: Tensor, checks: bool | None) -> Tensor:
    lower = y[..., None] * y[:, None] / 9 + 2 * torch.eye(6).to(y)
    return distributions.MultivariateNormal(y, lower @ lower.mT, validate_args=checks).log_prob(y / 2)[:, None]


MADE: dict[str, Made] = {
    "normal": lambda y, checks: distributions.Normal(y, y.exp(), validate_args=checks).log_prob(y.sin()),
    "categorical": lambda y, checks: distributions.Categorical(logits=y, validate_args=checks).logits,
    "probabilities": lambda y, checks: distributions.Categorical(y.softmax(-1), validate_args=checks).probs,
    "independent": lambda y, checks: (
        distributions.Independent(
            distributions.Beta(y.exp(), 1 + y.square(), validate_args=checks), 1, validate_args=checks
        )
        .log_prob(y.sigmoid())
        .view(-1, 1)
    ),
    "geometric": lambda y, checks: distributions.Geometric(y.sigmoid(), validate_args=checks).log_prob(y * 0 + 2),
    "matrix": of_matrix,
    "of a class of its own": lambda y, checks: Logistic(y, checks).log_prob(y.sin()),
}


class Logistic(distributions.Distribution):
    arg_constraints: ClassVar = {"loc": distributions.constraints.real}
    support = distributions.constraints.real

    def __init__(self, loc: Tensor, checks: bool | None) -> None:
        self.loc = loc
        super().__init__(loc.shape, torch.Size(), checks)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return nn.functional.logsigmoid(value - self.loc) + nn.functional.logsigmoid(self.loc - value)


class Net(nn.Module):
    def __init__(self, made: Made, checks: bool | None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.made, self.checks = nn.Linear(6, 6).double(), made, checks

    def forward(self, x: Tensor) -> Tensor:
        return self.made(self.linear(x), self.checks)


@pytest.mark.parametrize("rules", BOOKS)
@pytest.mark.parametrize("name", list(MADE))
def test_checks_leave_the_graph_open(name: str, rules: str) -> None:
    plain = convert(Net(MADE[name], False).eval(), rules=rules)(X, target=0)
    for checks in (None, True):
        model = Net(MADE[name], checks).eval()
        explainer = convert(model, rules=rules)
        a = explainer(X, target=0)
        torch.testing.assert_close(a.output, model(X).detach())
        torch.testing.assert_close(a.relevance, plain.relevance)
        assert "any size" in explainer.report().mode
    assert a.relevance.any()
    with pytest.raises(ValueError, match="to satisfy the constraint"):
        distributions.Normal(X, -torch.ones(1), validate_args=True)  # torch.compile turns off the default
