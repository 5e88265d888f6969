"""Models whose forward takes derivatives (forces, physics, torch.func) are explained through them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxlrp import convert, rulebooks

X = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def gradient(y: Tensor, x: Tensor) -> Tensor:
    return torch.autograd.grad(y, x, torch.ones_like(y), create_graph=True)[0]


def force(energy: nn.Module, x: Tensor) -> Tensor:
    return -gradient(energy(x), x)


def residual(energy: nn.Module, x: Tensor) -> Tensor:
    return x - gradient(energy(x).sum(), x)


def laplace(energy: nn.Module, x: Tensor) -> Tensor:
    g = gradient(energy(x), x)
    return torch.stack([gradient(g[:, i], x)[:, i] for i in range(6)], 1)


def func(energy: nn.Module, x: Tensor) -> Tensor:
    return torch.func.vmap(torch.func.grad(lambda v: energy(v).sum()))(x)


def jacobian(energy: nn.Module, x: Tensor) -> Tensor:
    return torch.func.vmap(torch.func.jacrev(lambda v: energy[:-1](v)))(x).sum(1)


def forward_mode(energy: nn.Module, x: Tensor) -> Tensor:
    return x + torch.func.jvp(energy, (x,), (torch.ones_like(x),))[1]


WAYS = (force, residual, laplace, func, jacobian, forward_mode)


class Derived(nn.Module):
    def __init__(self, way: Callable, ambient: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.energy = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 1)).double()
        self.head = nn.Linear(6, 4).double()
        self.way, self.ambient = way, ambient

    def forward(self, x: Tensor) -> Tensor:
        if self.ambient:
            return self.head(self.way(self.energy, x.requires_grad_()))
        with torch.enable_grad():
            return self.head(self.way(self.energy, x if x.requires_grad else x.requires_grad_(True)))


class Picture(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.second = nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 3)
        self.head = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.requires_grad_()
            energy = F.softplus(self.second(F.silu(self.norm(self.first(x)))))
            return self.head((x * gradient(energy.sum(), x)).mean((2, 3)))


class Molecule(nn.Module):
    """Energy by distances of atoms, and the forces on them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.atom = nn.Embedding(10, 8)
        self.filter = nn.Sequential(nn.Linear(6, 8), nn.Softplus(), nn.Linear(8, 8))
        self.out = nn.Sequential(nn.Linear(8, 8), nn.Softplus(), nn.Linear(8, 1))

    def forward(self, z: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
        at = at.requires_grad_()
        i, j = torch.triu_indices(5, 5, 1)
        i, j = torch.cat([i, j]), torch.cat([j, i])
        distance = (at[:, i] - at[:, j]).norm(dim=-1)
        near = torch.exp(-((distance[..., None] - torch.arange(6.0).to(at)) ** 2))
        h = self.atom(z)
        h = h + torch.zeros_like(h).index_add(1, i, h[:, j] * self.filter(near))
        energy = self.out(h).sum((1, 2))
        return energy, -gradient(energy.sum(), at)


def check(
    model: nn.Module, x: Tensor, *before: Tensor, rules: str, output: int | None = None, generic: int = 0
) -> None:
    """The output is the model's, rows alone are rows of the batch, and gradient-input is x times its own gradient."""

    def own(x: Tensor) -> Tensor:
        out = model(*before, x)
        return out if output is None else out[output]

    leaf = x.clone().requires_grad_()
    y = own(leaf)
    weights = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(1))
    explainer = convert(model, rules=rules, output=output)
    a = explainer(*before, x, target=weights, contrast=None)
    torch.testing.assert_close(a.output if output is None else a.output[output], y.detach())
    relevance = a.relevance if isinstance(a.relevance, tuple) else (a.relevance,)
    assert relevance[-1].abs().sum() > 0
    b = explainer(*(t[1:2] for t in before), x[1:2], target=weights[1:2], contrast=None)
    alone = b.relevance if isinstance(b.relevance, tuple) else (b.relevance,)
    for r, one in zip(relevance, alone, strict=True):
        torch.testing.assert_close(one, r[1:2], rtol=0, atol=1e-8 * float(r.abs().max()))
    if rules == "gradient-input":
        expected = x * torch.autograd.grad((y * weights).sum(), leaf)[0]
        torch.testing.assert_close(relevance[-1], expected, rtol=0, atol=1e-8 * float(expected.abs().max()))
    assert explainer.report().counts["generic"] == generic


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_derivatives(way: Callable) -> None:
    check(Derived(way).eval(), X, rules="gradient-input")


@pytest.mark.parametrize("rules", sorted(rulebooks()))
def test_by_every_rulebook(rules: str) -> None:
    check(Derived(force, ambient=True).eval(), X, rules=rules)


@pytest.mark.parametrize("rules", ["gradient-input", "abslrp-hybrid"])
def test_of_convolutions(rules: str) -> None:
    x = torch.randn(3, 3, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    check(Picture().double().eval(), x, rules=rules)


@pytest.mark.parametrize("rules", ["gradient-input", "abslrp-hybrid"])
def test_forces(rules: str) -> None:
    chance = torch.Generator().manual_seed(0)
    z, at = torch.randint(10, (3, 5), generator=chance), torch.randn(3, 5, 3, dtype=torch.float64, generator=chance)
    check(Molecule().double().eval(), at, z, rules=rules, output=1)


class Lagrangian(nn.Module):
    """The acceleration that a learned Lagrangian gives, by its Hessian."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.vmap(self.acceleration)(*x.chunk(2, -1))

    def acceleration(self, q: Tensor, v: Tensor) -> Tensor:
        mass = torch.func.hessian(self.energy, 1)(q, v)
        mixed = torch.func.jacrev(torch.func.grad(self.energy, 1), 0)(q, v)
        return torch.linalg.solve(mass, torch.func.grad(self.energy)(q, v) - mixed @ v)

    def energy(self, q: Tensor, v: Tensor) -> Tensor:
        return self.net(torch.cat([q, v])).sum() + v.square().sum()


@pytest.mark.every(2)
@pytest.mark.parametrize("rules", ["abslrp-hybrid", "gradient-input"])
def test_solves_with_hessians(rules: str) -> None:
    check(Lagrangian().double().eval(), X, rules=rules, generic=int(rules != "gradient-input"))


def test_conserves() -> None:
    """The force of a quadratic energy is linear."""
    model = Derived(force)
    model.energy = nn.Sequential(nn.Linear(6, 8, bias=False), nn.Bilinear(8, 8, 1, bias=False)).double()
    model.energy[1].forward = lambda h: F.bilinear(h, h, model.energy[1].weight)
    model.head = nn.Linear(6, 4, bias=False).double()
    a = convert(model.eval(), rules="epsilon")(X, target=1, contrast=None)
    torch.testing.assert_close(a.relevance.sum(1), a.output[:, 1], rtol=1e-4, atol=1e-4)


def test_batches_of_any_size() -> None:
    explainer = convert(Derived(force).eval())
    explainer(X)
    assert explainer.report().mode.endswith("any size")
    graph = explainer.graph
    explainer(torch.cat([X, X]))
    assert explainer.graph is graph


def test_leaves_buffers_as_they_were() -> None:
    """A model that counts its calls beside the derivative it takes."""

    class Counts(Derived):
        def __init__(self) -> None:
            super().__init__(force)
            self.register_buffer("calls", torch.zeros(()))
            self.register_buffer("mean", torch.zeros(6).double())

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            self.mean.lerp_(x.detach().mean(0), 0.1)
            return super().forward(x)

    model = Counts().eval()
    for x in (X, X[:1]):
        a = convert(model, rules="gradient-input")(x, target=1, contrast=None)
        assert not model.calls
        assert not model.mean.any()
        expected = convert(Derived(force).eval(), rules="gradient-input")(x, target=1, contrast=None)
        torch.testing.assert_close(a.relevance, expected.relevance)


def test_leaves_no_gradients() -> None:
    """A model that calls backward itself keeps what it has, and nothing of the trace."""

    class Backward(Derived):
        def forward(self, x: Tensor) -> Tensor:
            with torch.enable_grad():
                x = x.detach().clone().requires_grad_()
                self.energy(x).sum().backward(create_graph=True)
            assert x.grad is not None
            return self.head(x.grad)

    model = Backward(force).eval()
    model.energy[0].weight.grad = known = torch.ones(8, 6, dtype=torch.float64)
    a = convert(model, rules="gradient-input")(X, target=1, contrast=None)
    expected = convert(Derived(force).eval(), rules="gradient-input")(X, target=1, contrast=None)
    assert model.energy[0].weight.grad is known
    assert torch.equal(known, torch.ones_like(known))
    assert all(p.grad is None for p in model.parameters() if p is not model.energy[0].weight)
    torch.testing.assert_close(a.output, model(X).detach())
    torch.testing.assert_close(a.relevance, -expected.relevance)
