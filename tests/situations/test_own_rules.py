"""A rule that a user registers is never passed over, and is told what is wrong with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

import fxlrp
from fxlrp import FxlrpError, convert

BOOKS = ["abslrp", "abslrp-hybrid", "epsilon", "gradient-input"]
X = torch.randn(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@torch.library.custom_op("fxlrptest::mixed", mutates_args=())
def mixed(x: Tensor, y: Tensor) -> Tensor:
    return x * y + x


mixed.register_fake(lambda x, y: torch.empty_like(x))
mixed.register_autograd(
    lambda ctx, g: (g * (ctx.saved_tensors[1] + 1), g * ctx.saved_tensors[0]),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
)
OP = torch.ops.fxlrptest.mixed.default


class Net(nn.Module):
    """Its op takes two inputs that carry relevance, or one of them and a constant."""

    def __init__(self, active: str = "both") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.head = (nn.Linear(i, o).double() for i, o in ((6, 8), (6, 8), (8, 4)))
        self.w, self.active = nn.Parameter(torch.randn(8).double()), active

    def forward(self, x: Tensor) -> Tensor:
        a, b, w = self.a(x), self.b(x), self.w.expand(len(x), 8)
        return self.head(mixed(*{"both": (a, b), "first": (a, w), "second": (w, b)}[self.active]))


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    yield
    fxlrp.unregister(OP)


def to_first(g: Tensor, z: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return g * z / x


def to_both(g: Tensor, z: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return g * z / x / 2, g * z / y / 2


CASES: dict[str, tuple[Callable, tuple[int, ...] | None, str]] = {
    "one of two": (to_first, (0,), "both"),
    "two of two": (to_both, (0, 1), "both"),
    "whatever carries": (to_both, None, "both"),
    "two, of which one is constant": (to_both, (0, 1), "first"),
    "two, of which the first is constant": (to_both, (0, 1), "second"),
    "the first": (to_first, None, "first"),
}


@pytest.mark.parametrize("rules", BOOKS)
@pytest.mark.parametrize("case", list(CASES))
def test_it_is_used(case: str, rules: str) -> None:
    fn, args, active = CASES[case]
    (fxlrp.rule(OP) if args is None else fxlrp.rule(OP, args=args))(fn)
    explainer = convert(Net(active).eval(), rules=rules)
    a = explainer(X, target=[1, 2])
    assert a.relevance.isfinite().all()
    assert a.relevance.any()
    (row,) = (n for n in explainer.report().nodes if "mixed" in n.op)
    assert (row.kind, row.rule) == ("rule", fn.__name__)
    torch.testing.assert_close(explainer(X[2:3], target=[1, 2]).relevance, a.relevance[2:3])


def test_the_other_gets_nothing() -> None:
    fxlrp.rule(OP, args=(0,))(to_first)
    model = Net().eval()
    a = convert(model, rules="epsilon")(X, target=1, contrast=None)
    with torch.no_grad():
        z = mixed(model.a(X), model.b(X))
        r = z * model.head.weight[1]
        expected = X * ((r / model.a(X)) @ model.a.weight)
    torch.testing.assert_close(a.relevance, expected, rtol=1e-3, atol=1e-4)


def test_a_rule_for_other_arguments_is_an_error() -> None:
    fxlrp.rule(OP, args=(0,))(to_first)
    with pytest.raises(FxlrpError, match=r"to_first.*args=\(1,\)"):
        convert(Net("second").eval(), X)
    fxlrp.unregister(OP)
    fxlrp.rule(OP)(to_first)
    with pytest.raises(FxlrpError, match=r"to_first.*first argument.*args=\(1,\)"):
        convert(Net("second").eval(), X)
    fxlrp.rule(OP, args=(1,))(lambda g, z, x, y: g * z / y)
    assert convert(Net("second").eval())(X).relevance.any(1).all()


WRONG: dict[str, Callable] = {
    "NaN": lambda g, z, x, y: (g * float("nan"), g),
    "no relevance": lambda g, z, x, y: (torch.zeros_like(x), torch.zeros_like(y)),
    "nothing": lambda g, z, x, y: None,
    "cotangents of shapes": lambda g, z, x, y: g,
}


@pytest.mark.parametrize("rules", BOOKS)
@pytest.mark.parametrize("target", [1, [1, 2]])
@pytest.mark.parametrize("said", list(WRONG))
def test_its_author_is_told(said: str, target: int | list[int], rules: str) -> None:
    def my_rule(g: Tensor, z: Tensor, x: Tensor, y: Tensor) -> object:
        return WRONG[said](g, z, x, y)

    fxlrp.rule(OP)(my_rule)
    with pytest.raises(FxlrpError, match=f"my_rule.*{said}"):
        convert(Net().eval(), rules=rules)(X, target=target)


@pytest.mark.parametrize("rules", BOOKS)
def test_none_says_that_an_argument_gets_nothing(rules: str) -> None:
    fxlrp.rule(OP)(lambda g, z, x, y: (g * z / x, None))
    a = convert(Net().eval(), rules=rules)(X, target=1).relevance
    fxlrp.unregister(OP)
    fxlrp.rule(OP, args=(0,))(to_first)
    torch.testing.assert_close(a, convert(Net().eval(), rules=rules)(X, target=1).relevance)
