"""From real numbers to complex ones and back: relevance stands at the real and the imaginary part."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxlrp import FxlrpError, convert

BOOKS = ("abslrp", "abslrp-hybrid", "epsilon", "gradient-input")
WINDOW = torch.hann_window(16, dtype=torch.float64)


def spectrum(x: Tensor) -> Tensor:
    return torch.stft(x, 16, 8, window=WINDOW, return_complex=True)


def rows(n: int, m: int) -> Tensor:
    return torch.randn(n, m, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    """What a function of a complex linear layer, or of a spectrum, makes of an input."""

    def __init__(self, f: Callable[[nn.Module, Tensor], Tensor], size: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.f = f
        self.linear = nn.Linear(6, 8, dtype=torch.complex128)
        self.conv = nn.Conv1d(2, 3, 2, dtype=torch.complex128)
        self.head = nn.Linear(size, 3, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.f(self, x).flatten(1))


def lifted(x: Tensor) -> Tensor:
    return torch.complex(x, x.flip(1) / 2)


CASES: dict[str, tuple[Callable[[nn.Module, Tensor], Tensor], int, Tensor]] = {
    "magnitude of a spectrum": (lambda m, x: spectrum(x).abs().mean(-1), 9, rows(2, 40)),
    "power": (lambda m, x: torch.log1p(spectrum(x).abs() ** 2).mean(-1), 9, rows(2, 40)),
    "phase": (lambda m, x: torch.fft.fft(x).angle().cos(), 6, rows(2, 6)),
    "parts": (lambda m, x: torch.cat([(z := torch.fft.fft(x)).real.relu(), z.imag.relu()], 1), 12, rows(2, 6)),
    "masked": (
        lambda m, x: torch.istft(spectrum(x) * spectrum(x).abs().sigmoid(), 16, 8, window=WINDOW),
        40,
        rows(2, 40),
    ),
    "linear": (lambda m, x: m.linear(lifted(x)).abs(), 8, rows(2, 6)),
    "convolution": (lambda m, x: m.conv(lifted(x).view(-1, 2, 3)).abs(), 6, rows(2, 6)),
    "functions": (lambda m, x: torch.view_as_real((1 + m.linear(lifted(x)).tanh()).exp()), 16, rows(2, 6)),
    "shifts": (lambda m, x: (2 - (lifted(x) + (1 + 2j)) / (2 - 1j) - 1).abs(), 6, rows(2, 6)),
    "correlation": (lambda m, x: torch.fft.irfft(torch.fft.rfft(x) * torch.fft.rfft(x.flip(1)).conj()), 6, rows(2, 6)),
    "square": (lambda m, x: (z := m.linear(lifted(x))).mul(z.conj()).real, 8, rows(2, 6)),
    "magnitude of the conjugate": (lambda m, x: m.linear(lifted(x)).conj().abs(), 8, rows(2, 6)),
    "adjoint": (lambda m, x: ((z := lifted(x).view(-1, 2, 3)) @ z.mH).abs(), 4, rows(2, 6)),
    "means": (lambda m, x: (m.linear(lifted(x)).view(-1, 2, 4).mean(1) / (1 + lifted(x)[:, :1])).abs(), 4, rows(2, 6)),
}


@pytest.mark.parametrize("rules", ["abslrp", "epsilon", "gradient-input"])
@pytest.mark.parametrize("name", list(CASES))
def test_through_complex_numbers(name: str, rules: str) -> None:
    f, size, x = CASES[name]
    model = Net(f, size).eval()
    explainer = convert(model, rules=rules)
    a = explainer(x, target=1, contrast=None)
    torch.testing.assert_close(a.output, model(x).detach())
    assert a.relevance.dtype == x.dtype
    assert a.relevance.isfinite().all()
    assert a.relevance.flatten(1).any(1).all()
    torch.testing.assert_close(explainer(x[1:], target=1, contrast=None).relevance[0], a.relevance[1])
    if rules == "gradient-input":
        leaf = x.clone().requires_grad_()
        (grad,) = torch.autograd.grad(model(leaf)[:, 1].sum(), leaf)
        torch.testing.assert_close(a.relevance, x * grad)


class Real(nn.Module):
    """`linear` by real layers for the real and the imaginary parts."""

    def __init__(self, net: Net) -> None:
        super().__init__()
        w, b, self.head = net.linear.weight.detach(), net.linear.bias.detach(), net.head
        self.real, self.imag = (nn.Linear(6, 8, dtype=torch.float64) for _ in "ab")
        self.real.weight, self.imag.weight = nn.Parameter(w.real.clone()), nn.Parameter(w.imag.clone())
        self.real.bias, self.imag.bias = nn.Parameter(b.real.clone()), nn.Parameter(b.imag.clone())

    def forward(self, x: Tensor) -> Tensor:
        a, b = x, x.flip(1) / 2
        real = self.real(a) - F.linear(b, self.imag.weight)
        imag = self.imag(a) + F.linear(b, self.real.weight)
        return self.head(torch.stack([real, imag], -1).norm(dim=-1))


@pytest.mark.parametrize("rules", [*BOOKS, "zplus", "gamma"])
def test_a_complex_layer_is_the_real_ones_it_stands_for(rules: str) -> None:
    f, size, x = CASES["linear"]
    net = Net(f, size).eval()
    found, expected = (convert(m, rules=rules)(x, target=1, contrast=None).relevance for m in (net, Real(net).eval()))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", ["magnitude of a spectrum", "linear", "convolution", "masked"])
def test_what_is_linear_keeps_relevance(name: str) -> None:
    f, size, x = CASES[name]
    model = Net(f, size).eval()
    for module in (model.linear, model.conv, model.head):
        module.bias = None
    if name == "masked":
        model.f = lambda m, x: torch.istft(spectrum(x) * (0.5 - 2j), 16, 8, window=WINDOW).sin()
    a = convert(model, rules="epsilon:epsilon=0")(x, target=1, contrast=None)
    torch.testing.assert_close(a.relevance.sum(1), a.logits[:, 1])


@pytest.mark.parametrize("rules", BOOKS)
def test_complex_inputs(rules: str) -> None:
    """Its map has the relevance of the real part as its real part, and so the imaginary."""
    model = Net(lambda m, z: m.linear(z).abs(), 8).eval()
    z = lifted(rows(2, 6))
    a = convert(model, rules=rules)(z, target=1, contrast=None)
    split = Net(lambda m, x: m.linear(torch.view_as_complex(x)).abs(), 8).eval()
    pairs = convert(split, rules=rules)(torch.view_as_real(z).contiguous(), target=1, contrast=None)
    torch.testing.assert_close(torch.view_as_real(a.relevance), pairs.relevance)


POWERS: dict[str, Callable[[Tensor], Tensor]] = {
    "product": lambda z: z * z.conj(),
    "vecdot": lambda z: torch.linalg.vecdot(z.view(-1, 4, 2), z.view(-1, 4, 2)),
    "einsum": lambda z: torch.einsum("bki,bki->bk", z.view(-1, 4, 2), z.view(-1, 4, 2).conj()),
}


@pytest.mark.parametrize("rules", BOOKS)
@pytest.mark.parametrize("name", list(POWERS))
def test_a_power_is_explained_though_its_type_is_complex(name: str, rules: str) -> None:
    net = Net(lambda m, x: POWERS[name](m.linear(lifted(x))), 8).eval()
    net.head = nn.Identity()
    real = Net(lambda m, x: POWERS[name](m.linear(lifted(x))).real, 8).eval()
    real.head = nn.Identity()
    x = rows(3, 6)
    a, b = (convert(m, rules=rules)(x, target=1) for m in (net, real))
    torch.testing.assert_close(a.output, net(x).detach())
    assert a.output.is_complex()
    torch.testing.assert_close(a.relevance, b.relevance)
    assert a.relevance.any()
    by_callable = convert(net, rules=rules)(x, target=lambda out: out.abs()[:, 1])
    torch.testing.assert_close(by_callable.relevance, convert(real, rules=rules)(x, target=lambda y: y[:, 1]).relevance)


def test_what_is_real_by_chance_is_complex() -> None:
    class Spectrum(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.fft.fft(x)

    even = torch.tensor([[3.0, 1.0, 2.0, 1.0]]).double()
    assert not Spectrum()(even).imag.any()
    with pytest.raises(FxlrpError, match="is complex"):
        convert(Spectrum().eval(), rules="epsilon")(even)


@pytest.mark.parametrize("name", ["real", "complex"])
def test_what_is_given_beside_complex_numbers_may_be_sparse(name: str) -> None:
    """Its entries can't be nudged, to see whether an output has an imaginary part."""

    class Graph(nn.Module):
        def forward(self, x: Tensor, a: Tensor) -> Tensor:
            y = torch.sparse.mm(a, x)
            return y if name == "real" else lifted(y) * lifted(y).conj()

    a = torch.sparse_coo_tensor(torch.tensor([[0, 1, 2], [1, 2, 0]]), torch.ones(3).double(), (3, 3))
    explainer = convert(Graph().eval(), rules="epsilon", batch=None)
    found = explainer(rows(3, 4), a, position=1, target=0)
    assert found.relevance[2].any()
    assert not found.relevance[:2].any()


@pytest.mark.parametrize("rules", BOOKS)
def test_a_complex_constant_that_is_added_is_no_mask(rules: str) -> None:
    start = torch.zeros(6, dtype=torch.complex128)
    model = Net(lambda m, x: (start + lifted(x)).abs(), 6).eval()
    explainer = convert(model, rules=rules)
    a = explainer(rows(2, 6), target=1)
    torch.testing.assert_close(a.output, model(rows(2, 6)).detach())
    torch.testing.assert_close(explainer(rows(2, 6)[1:], target=1).relevance, a.relevance[1:])
    assert a.relevance.any(1).all()
