"""What the table of situations found wrong: models are left as they were, and alike calls are explained alike."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor, nn

from fxlrp import FxlrpError, NoRelevance, convert

BOOKS = ("abslrp", "abslrp-hybrid", "epsilon", "gradient-input")
X = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1)).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def test_lists_dicts_and_buffers_that_a_run_fills_are_emptied_again() -> None:
    class Keeps(Net):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[Tensor] = []
            self.by_name: dict[str, Tensor] = {}
            self.names = {"first"}
            self.register_buffer("table", torch.zeros(0, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            self.seen.append(x.detach())
            self.by_name["x"] = x.detach()
            self.names.add("x")
            if not self.table.numel():
                self.table = torch.ones(6, dtype=x.dtype)
            return super().forward(x * self.table)

    model = Keeps().eval()
    buffer, seen = model.table, model.seen
    a = convert(model, rules="epsilon")(X)
    assert model.table is buffer
    assert model.seen is seen
    assert not seen
    assert not model.by_name
    assert model.names == {"first"}
    torch.testing.assert_close(a.output, model(X).detach())


def test_a_cache_in_the_function_around_a_class_keeps_nothing_that_was_traced() -> None:
    @functools.lru_cache
    def rates(n: int) -> Tensor:
        return torch.arange(1, n + 1) / n

    kept: dict[int, Tensor] = {}

    class Cached(Net):
        def forward(self, x: Tensor) -> Tensor:
            if 6 not in kept:
                kept[6] = torch.ones(6, dtype=torch.float64)
            return super().forward(x * rates(6) * kept[6])

    model = Cached().eval()
    a = convert(model, rules="epsilon")(X)
    torch.testing.assert_close(a.output, model(X).detach())
    assert type(rates(6)) is type(kept[6]) is Tensor


@pytest.mark.filterwarnings("ignore::fxlrp.NoRelevance")  # of some samples, of a single frequency
@pytest.mark.parametrize("rules", BOOKS)
@pytest.mark.parametrize("how", ["slice", "row"])
def test_complex_numbers_written_into_a_part(how: str, rules: str) -> None:
    class Filter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.w, self.head = nn.Parameter(torch.randn(3, dtype=torch.complex128)), nn.Linear(6, 3).double()

        def forward(self, x: Tensor) -> Tensor:
            f = torch.fft.rfft(x)
            out = torch.zeros_like(f)
            if how == "slice":
                out[:, :3] = f[:, :3] * self.w
            else:
                out[:, 1] = f[:, 1] * self.w[0]
            return self.head(torch.fft.irfft(out, n=6))

    model = Filter().eval()
    a = convert(model, rules=rules)(X, target=1, contrast=None)
    torch.testing.assert_close(a.output, model(X).detach())
    assert a.relevance.any()
    if rules == "gradient-input":
        x = X.clone().requires_grad_()
        (grad,) = torch.autograd.grad(model(x)[:, 1].sum(), x)
        torch.testing.assert_close(a.relevance, X * grad)


@pytest.mark.parametrize("rules", BOOKS)
def test_a_probability_squeezed_to_a_number(rules: str) -> None:
    class Squeezed(Net):
        def forward(self, x: Tensor) -> Tensor:
            return torch.sigmoid(self.net(x)).squeeze()

    explainer = convert(Squeezed().eval(), rules=rules)
    a = explainer(X)
    for i in range(3):
        alone = explainer(X[i : i + 1])
        torch.testing.assert_close(alone.relevance, a.relevance[i : i + 1])
        torch.testing.assert_close(alone.output, a.output[i])


@pytest.mark.parametrize("rules", BOOKS)
def test_a_generator_of_the_models_own_is_refused(rules: str) -> None:
    class Noisy(Net):
        def forward(self, x: Tensor) -> Tensor:
            g = torch.Generator().manual_seed(7)
            return self.net(x + torch.randn(x.shape, generator=g, dtype=x.dtype))

    with pytest.raises(FxlrpError, match=r"torch.Generator of the model's own"):
        convert(Noisy().eval(), rules=rules)(X)


def test_a_zero_map_of_an_output_that_a_callable_is_about_says_why() -> None:
    class Two(Net):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            y = self.net(x)
            return {"boxes": y.exp(), "scores": torch.tanh(y - 9).squeeze(1)}

    with pytest.warns(NoRelevance, match="tanh"):
        a = convert(Two().eval(), rules="abslrp")(X[:1], target=lambda out: out["scores"])
    assert not a.relevance.any()
    assert a.ended is not None


@pytest.mark.parametrize("rules", BOOKS)
def test_the_module_of_an_exported_program(rules: str) -> None:
    """It says that it is training, and has no eval() that could be called."""
    model = Net().eval()
    program = torch.export.export(model, (X,), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    a, expected = (convert(m, rules=rules)(X) for m in (program.module(), model))
    torch.testing.assert_close(a.relevance, expected.relevance)
    torch.testing.assert_close(a.output, expected.output)
