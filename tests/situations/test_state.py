"""Models that change: by a switch, a hook or a patch, by being run, or by the numbers they draw."""

from __future__ import annotations

import functools
import random
import subprocess
import sys
from collections.abc import Callable
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fxlrp import convert
from tests.conftest import randomize

X = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Switched(nn.Module):
    """Two branches and a slope, chosen by attributes of every kind."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net, self.other, self.head = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 3)
        self.task, self.slope, self.scale, self.active = "a", 0.5, torch.tensor(2.0).double(), ["net"]
        self.options = {"bias": True}
        self.register_buffer("shift", torch.zeros(3).double())

    def forward(self, x: Tensor) -> Tensor:
        h = sum(getattr(self, name)(x) for name in self.active) if self.task == "a" else self.other(x)
        h = nn.functional.leaky_relu(h, self.slope) * self.scale
        return self.head(h + 1 if self.options["bias"] else h) + self.shift


def patched(x: Tensor) -> Tensor:
    return x[:, :3] * 2


CHANGES: dict[str, Callable[[Switched], object]] = {
    "a word": lambda m: setattr(m, "task", "b"),
    "a number": lambda m: setattr(m, "slope", 0.1),
    "a tensor": lambda m: setattr(m, "scale", torch.tensor(-1.0).double()),
    "a list": lambda m: m.active.append("other"),
    "a dict": lambda m: m.options.update(bias=False),
    "a hook": lambda m: m.net.register_forward_hook(lambda module, args, out: out.tanh()),
    "a hook before": lambda m: m.head.register_forward_pre_hook(lambda module, args: (args[0] ** 2,)),
    "a patched forward": lambda m: setattr(m, "forward", patched),
    "a layer": lambda m: setattr(m, "head", randomize(nn.Linear(8, 3))),
    "a weight": lambda m: setattr(m.head, "weight", nn.Parameter(torch.ones(3, 8).double())),
    "a buffer": lambda m: setattr(m, "shift", torch.arange(3).double()),
    "a non-linearity": lambda m: setattr(m, "head", nn.Sequential(nn.Tanh(), m.head)),
}


@pytest.mark.parametrize("name", list(CHANGES))
def test_a_change_of_the_model_is_noticed(name: str) -> None:
    model = Switched().double().eval()
    explainer = convert(model, rules="epsilon")
    before = explainer(X, target=1)
    CHANGES[name](model)
    a = explainer(X, target=1)
    torch.testing.assert_close(a.output, model(X).detach())
    assert not torch.allclose(a.output, before.output)
    torch.testing.assert_close(a.relevance, convert(model, rules="epsilon")(X, target=1).relevance)


class Counts(nn.Module):
    """Counts its calls, keeps what it saw, and updates a running mean."""

    calls: Tensor
    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Linear(6, 3)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.register_buffer("mean", torch.zeros(6))
        self.seen, self.times = [0], 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.times += 1
        self.mean.mul_(0.9).add_(0.1 * x.detach()[0])
        self.last = self.net(x)
        return self.last


def test_a_run_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Counts().double().eval()
    model(X)
    kept = {k: v.clone() for k, v in model.state_dict().items()}
    attributes, drawn = dict(vars(model)), torch.get_rng_state()
    explainer = convert(model)
    explainer(X)
    assert all(torch.equal(v, kept[k]) for k, v in model.state_dict().items())
    assert all(vars(model)[k] is v for k, v in attributes.items())
    assert vars(model).keys() == attributes.keys()
    assert torch.equal(torch.get_rng_state(), drawn)
    model(X)  # what running it changes is no reason to capture it again
    monkeypatch.setattr("fxlrp.plans.capture", lambda *a, **k: pytest.fail("captured again"))
    explainer(X)


class Queue(nn.Module):
    """Compares with what it was given before, and keeps it where a number among its buffers says, as MoCo does."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Linear(6, 4).double()
        self.register_buffer("queue", torch.randn(4, 8).double())
        self.register_buffer("at", torch.zeros(1, dtype=torch.long))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        q = self.net(x)
        out = q @ self.queue.clone().detach()
        at = int(self.at)
        self.queue[:, at : at + len(q)] = q.detach().mT
        self.at[0] = (at + len(q)) % self.queue.shape[1]
        return out * 2 if at > 3 else out


class OfOne(Queue):
    """Also branches on the values of its input."""

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        return -out if x.sum() > 0 else out


@pytest.mark.parametrize("rules", ["abslrp", "abslrp-hybrid", "epsilon", "attnlrp", "gradient-input"])
@pytest.mark.parametrize("kind", [Queue, OfOne])
def test_a_model_that_writes_where_its_buffers_say(kind: type[Queue], rules: str) -> None:
    """It is explained as it is now, and stays as it was; run since then, it is explained as it has become."""
    model, x = kind().eval(), torch.randn(1, 6).double()
    explainer = convert(model, rules=rules)
    for _ in range(6):
        kept = {k: v.clone() for k, v in model.state_dict().items()}
        a = explainer(x, target=1, contrast=None)
        assert all(torch.equal(v, kept[k]) for k, v in model.state_dict().items())
        torch.testing.assert_close(a.relevance, convert(model, rules=rules)(x, target=1, contrast=None).relevance)
        torch.testing.assert_close(a.output, model(x).detach())
        assert a.relevance.any() or not a.output[0, 1] > 0
    batch = torch.stack([x[0], -x[0]])
    torch.testing.assert_close(explainer(batch, target=1, contrast=None).output, model(batch).detach())


@functools.lru_cache(None)
def table(n: int) -> Tensor:
    return torch.linspace(0, 1, n, dtype=torch.float64)


TABLES: dict[int, Tensor] = {}


class Cached(nn.Module):
    """Keeps tables in a function's cache, in a dict beside it, in one of its class and in its own."""

    shared: ClassVar[dict[int, tuple[Tensor, int]]] = {}

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net, self.own = nn.Linear(6, 3), dict[int, Tensor]()

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[1]
        if n not in TABLES:
            TABLES[n] = torch.arange(n, dtype=x.dtype)
        if n not in self.shared:
            self.shared[n] = (torch.ones(n, dtype=x.dtype), n)
        if n not in self.own:
            self.own[n] = torch.full((n,), 2.0, dtype=x.dtype)
        return self.net(x + table(n) + TABLES[n] + self.shared[n][0] + self.own[n])


def test_no_cache_keeps_what_was_traced() -> None:
    model = Cached().double().eval()
    a = convert(model)(X)
    assert type(model(X)) is Tensor
    torch.testing.assert_close(model(X), a.output)
    assert type(table(6)) is type(TABLES[6]) is type(Cached.shared[6][0]) is type(model.own[6]) is Tensor
    torch.testing.assert_close(convert(model)(X).relevance, a.relevance)


class Draws(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net, self.head, self.how = nn.Linear(6, 8), nn.Linear(8, 3), how

    def forward(self, x: Tensor) -> Tensor:
        h = self.net(x)
        if self.how == "noise":
            h = h + torch.randn_like(h)
        if self.how == "dropout":
            h = nn.functional.dropout(h, 0.3, training=True)
        if self.how == "gumbel":
            h = nn.functional.gumbel_softmax(h, dim=-1)
        if self.how == "latent":
            h = h + (0.5 * h).exp() * torch.randn(h.shape, dtype=h.dtype)
        if self.how == "python":
            h = h * (1 + random.random())
        if self.how == "numpy":
            h = h + torch.from_numpy(np.random.rand(*h.shape[1:]))  # noqa: NPY002
        return self.head(h)


def states() -> tuple:
    """The state of all random numbers."""
    return torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())  # noqa: NPY002


@pytest.mark.parametrize("how", ["noise", "dropout", "gumbel", "latent", "python", "numpy"])
def test_a_random_model_is_explained_for_one_draw(how: str) -> None:
    model = Draws(how).double().eval()
    before = states()
    explainer = convert(model, rules="gradient-input", seed=3)
    a, b = explainer(X, target=1, contrast=None), explainer(X, target=1, contrast=None)
    alone = explainer(X[:1], target=1, contrast=None)
    assert states() == before
    assert torch.equal(a.relevance, b.relevance)
    if how in ("python", "numpy"):
        torch.testing.assert_close(alone.relevance, a.relevance[:1])
    else:
        assert "one draw" in explainer.report().mode
    other = convert(model, rules="gradient-input", seed=4)(X, target=1, contrast=None)
    assert not torch.allclose(a.output, other.output)
    x = X.clone().requires_grad_()
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002
    out = model(x)
    torch.testing.assert_close(a.output, out.detach())
    torch.testing.assert_close(a.relevance, (x * torch.autograd.grad(out[:, 1].sum(), x)[0]).detach())
    for rules in ("abslrp", "abslrp-hybrid", "epsilon"):
        a = convert(model, rules=rules, seed=3)(X, target=1)
        torch.testing.assert_close(a.output, out.detach())
        assert a.relevance.isfinite().all()
        assert a.relevance.any(1).all()


def test_the_first_use_draws_nothing() -> None:
    """Whatever is imported for it."""
    code = "import random, fxlrp; before = random.getstate(); fxlrp.convert; assert random.getstate() == before"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_is_written_unseen_is_put_back() -> None:
    """Observers of torch.ao write into buffers without a new version of them."""
    model = nn.Sequential(torch.ao.quantization.QuantStub(), nn.Linear(6, 3)).train()
    model.qconfig = torch.ao.quantization.get_default_qat_qconfig("fbgemm")
    model = torch.ao.quantization.prepare_qat(model)
    model(X.float())
    before = {name: b.clone() for name, b in model.eval().named_buffers()}
    a = convert(model, rules="epsilon")(2 * X.float(), target=1)
    assert a.relevance.any()
    for name, b in model.named_buffers():
        torch.testing.assert_close(b, before[name], msg=name)
