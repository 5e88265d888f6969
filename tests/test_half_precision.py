"""Models in half precision are explained in float32: the same map as of the same weights in float32, beside the model's
own output, whatever the rulebook and however the model is called."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxlrp
from fxlrp import FxlrpError, convert
from fxlrp.capture import precision

HALF = (torch.float16, torch.bfloat16)
LARGE = 1024
BOOKS = sorted(fxlrp.rulebooks())


class Deep(nn.Module):
    """Convolutions, batch norms and ReLUs on many pixels, with large values in front: what each of these gets of the
    relevance, over its value, is below what float16 holds."""

    def __init__(self, depth: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, 8, 3, padding=1)]
        for _ in range(depth):
            layers += [nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
        self.body, self.head = nn.Sequential(*layers), nn.Linear(8, 5)
        self.body[0].weight.data *= LARGE
        self.body[1].weight.data /= LARGE

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))


class Attention(nn.Module):
    """Tokens of ids, whose types are cast by hand as transformers do: a mask by the type's least number, a softmax in
    float32, waves in float32 cast to the type of what they are added to."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.norm, self.head = nn.Embedding(11, 16), nn.LayerNorm(16), nn.Linear(16, 4)
        self.q, self.k, self.v, self.out = (nn.Linear(16, 16) for _ in range(4))
        self.register_buffer("waves", torch.linspace(0, 2, 16))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids)
        at = torch.arange(ids.shape[1], device=ids.device, dtype=x.dtype)
        x = x + (at[:, None].float() * self.waves.float()).sin().type_as(x)
        shut = torch.full((), torch.finfo(x.dtype).min, dtype=x.dtype)
        mask = torch.where(at[:, None] >= at, torch.zeros((), dtype=x.dtype), shut)
        y = self.norm(x)
        scores = self.q(y) @ self.k(y).transpose(-1, -2) / 4 + mask
        weights = torch.softmax(scores, -1, dtype=torch.float32).to(y.dtype)
        x = x + self.out(weights @ self.v(y))
        return self.head(nn.functional.gelu(x).mean(1))


class Mixed(nn.Module):
    """A layer in half precision between others in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.a(x.to(self.a.weight.dtype)).relu().float())
        return self.b(y.to(self.b.weight.dtype)).float()

    def to_half(self, dtype: torch.dtype) -> Mixed:
        self.a.to(dtype)
        self.b.to(dtype)
        return self


def network(kind: Callable[[], nn.Module]) -> nn.Module:
    """Weights that no half precision rounds, none of them the start value of a norm."""
    torch.manual_seed(0)
    model = kind().eval().requires_grad_(False)
    for name, t in model.state_dict().items():
        if t.is_floating_point():
            t.add_(0.3 * torch.rand_like(t)) if t.ndim <= 1 and "waves" not in name else t.mul_(1.5)
            t.copy_(t.to(torch.float16).to(torch.bfloat16))
    return model


def inputs(kind: Callable[[], nn.Module], count: int = 2) -> Tensor:
    rng = torch.Generator().manual_seed(1)
    if kind is Attention:
        return torch.randint(11, (count, 6), generator=rng)
    shape = (count, 6) if kind is Mixed else (count, 3, 32, 32)
    return torch.randn(shape, generator=rng).to(torch.float16).to(torch.bfloat16).float()


def of_type(thing: Any, dtype: torch.dtype) -> Any:
    """A copy of a model, or a tensor unless of integers, in another type."""
    if isinstance(thing, Mixed):
        return copy.deepcopy(thing).to_half(dtype)
    return copy.deepcopy(thing).to(dtype) if isinstance(thing, nn.Module) or thing.is_floating_point() else thing


FEW = ("abslrp", "abslrp-2024-12", "abslrp-hybrid", "attnlrp", "epsilon", "zplus")


@pytest.mark.every(2)
@pytest.mark.parametrize(
    ("kind", "rules"),
    [*((Deep, b) for b in BOOKS), *((Attention, b) for b in FEW), (Mixed, "abslrp"), (Mixed, "gamma")],
)
def test_the_map_is_that_of_float32(kind: Callable[[], nn.Module], rules: str) -> None:
    model, x = network(kind), inputs(kind)
    full = convert(model, rules=rules)(x, target=1)
    assert full.relevance.any()
    for dtype in HALF:
        half, given = of_type(model, dtype), of_type(x, dtype)
        explainer = convert(half, rules=rules)
        found = explainer(given, target=1)
        assert found.relevance.dtype == torch.float32
        torch.testing.assert_close(found.relevance, full.relevance, rtol=1e-3, atol=1e-4 * full.relevance.abs().max())
        with torch.no_grad():
            expected = half(given)
        assert torch.equal(found.output, expected)
        assert torch.equal(found.logits, expected)
        assert found.output.dtype == expected.dtype
        assert found.inputs[0].dtype == given.dtype
        assert explainer.report().counts["generic"] == 0


@pytest.mark.parametrize("dtype", HALF)
def test_every_way_of_asking(dtype: torch.dtype) -> None:
    model, x = network(Deep), inputs(Deep, 3)
    half, given = of_type(model, dtype), of_type(x, dtype)
    full, explainer, small = (
        convert(model, rules="abslrp"),
        convert(half, rules="abslrp"),
        convert(half, checkpoint=True, rules="abslrp"),
    )
    top = half(given).argmax(1)
    assert torch.equal(explainer(given).target, top)
    for target, contrast in ((None, None), ([1, 2], "others"), (torch.tensor([0, 1, 2]), "softmax"), (4, 0)):
        asked = {"target": top if target is None else target, "contrast": contrast}
        a, b = full(x, at=["body.4"], **asked), explainer(given, at=["body.4"], target=target, contrast=contrast)
        near = {"rtol": 1e-2, "atol": 1e-3 * float(a.relevance.abs().max())}  # "softmax" weighs by rounded logits
        torch.testing.assert_close(b.relevance, a.relevance, **near)
        torch.testing.assert_close(b.latent["body.4"], a.latent["body.4"], **near)
        torch.testing.assert_close(small(given, **asked).relevance, a.relevance, **near)
    a, b = full(x, target=lambda out: out[:, 1] - out[:, 2]), explainer(given, target=lambda out: out[:, 1] - out[:, 2])
    torch.testing.assert_close(b.relevance, a.relevance, rtol=1e-2, atol=1e-3 * float(a.relevance.abs().max()))
    kept = explainer(given, target=1, contrast=None, trace=True).conservation()
    assert kept.read == pytest.approx(kept.seed, rel=1e-3)


def test_joint_compiled_and_exported(tmp_path: Path) -> None:
    model, x, dtype = network(lambda: Deep(1)), inputs(Deep, 3), torch.float16
    half, given = of_type(model, dtype), of_type(x, dtype)
    full, explainer = convert(model)(x, target=1).relevance, convert(half, given[:2])
    near = {"rtol": 1e-3, "atol": 1e-4 * float(full.abs().max())}
    target = torch.ones(3, dtype=torch.int64)
    for graph in (explainer.joint(), torch.export.load(explainer.export(tmp_path / "half.pt2")).module()):
        logits, found = graph(given, target)
        assert logits.dtype == dtype
        torch.testing.assert_close(logits.float(), half(given).float(), rtol=0.05, atol=0.05)
        torch.testing.assert_close(found, full, **near)
    compiled = explainer.compile(backend="aot_eager")(given, target=1)
    torch.testing.assert_close(compiled.relevance, full, **near)
    assert torch.equal(compiled.output, half(given))
    assert torch.equal(explainer(given).target, half(given).argmax(1))


class Probabilities(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = Deep(1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"features": x.mean((2, 3)), "probabilities": self.body(x).softmax(1)}


def test_probabilities_are_explained_by_their_logits() -> None:
    model, x, dtype = network(Probabilities), inputs(Deep), torch.bfloat16
    half, given = of_type(model, dtype), of_type(x, dtype)
    a, b = (convert(m, output="probabilities") for m in (model, half))
    top = half(given)["probabilities"].argmax(1)
    found = b(given)
    assert torch.equal(found.target, top)
    assert torch.equal(found.output["probabilities"], half(given)["probabilities"])
    assert found.logits.dtype == dtype
    torch.testing.assert_close(found.relevance, a(x, target=top).relevance, rtol=1e-3, atol=1e-6)
    score = a(x, target=lambda out: out["probabilities"][:, 1]).relevance
    by_score = b(given, target=lambda out: out["probabilities"][:, 1]).relevance
    torch.testing.assert_close(by_score, score, rtol=0.05, atol=0.02 * float(score.abs().max()))
    compiled = b.compile(backend="aot_eager")(given)
    torch.testing.assert_close(compiled.relevance, found.relevance, rtol=1e-3, atol=1e-6)
    assert torch.equal(compiled.target, top)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("rules", ["zplus", "abslrp", "attnlrp"])
def test_autocast_casts_the_output_alone(rules: str, dtype: torch.dtype) -> None:
    model, x = network(Deep), inputs(Deep)
    explainer = convert(model, x, rules=rules)
    full = explainer(x, target=1)
    with torch.autocast("cpu", dtype):
        found, output = explainer(x, target=1), model(x)
    assert torch.equal(found.output, output)
    assert output.dtype == dtype
    torch.testing.assert_close(found.relevance, full.relevance, rtol=1e-4, atol=1e-8)
    again = explainer(x, target=1)
    assert torch.equal(again.output, full.output)


def test_a_branch_on_values() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            return self.b(y.relu() if y.sum() > 0 else y.tanh())

    model, x = network(Branching), inputs(Mixed, 3)
    half, given = of_type(model, torch.float16), of_type(x, torch.float16)
    full, found = convert(model)(x, target=1), convert(half)(given, target=1)
    torch.testing.assert_close(found.relevance, full.relevance, rtol=1e-3, atol=1e-5)
    assert torch.equal(found.output, half(given))


@pytest.mark.parametrize("rules", ["abslrp", "epsilon"])
def test_no_second_copy_of_the_weights(rules: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[tuple[int, ...], weakref.ref]] = []
    plain = precision.cast

    def cast(w: Tensor) -> Tensor:
        wide = plain(w)
        made.append((tuple(w.shape), weakref.ref(wide.untyped_storage())))
        return wide

    monkeypatch.setattr(precision, "cast", cast)
    model = of_type(network(Attention), torch.float16)
    explainer = convert(model, inputs(Attention), rules=rules)
    made.clear()
    alive: list[int] = []
    pass_back = fxlrp.answers.propagate

    def propagate(*args: Any, **kwargs: Any) -> Any:
        alive.extend(i for i, (_, storage) in enumerate(made) if storage() is not None)
        return pass_back(*args, **kwargs)

    monkeypatch.setattr("fxlrp.answers.propagate", propagate)
    assert explainer(inputs(Attention), target=1).relevance.any()
    assert len(made) > 8
    assert not alive
    assert tuple(model.words.weight.shape) not in [shape for shape, _ in made]  # rows are looked up, then cast


def test_float32_is_as_it_was() -> None:
    explainer = convert(network(Deep), inputs(Deep))
    assert explainer.latest.capture.narrow == []
    assert not any(n.target is precision.cast for n in explainer.graph.graph.nodes)


@torch.library.custom_op("fxlrp_tests::only_half", mutates_args=())
def only_half(x: Tensor) -> Tensor:
    if x.dtype != torch.float16:
        raise ValueError("a kernel for half precision")
    return x * 2


only_half.register_fake(torch.empty_like)


@pytest.mark.parametrize(
    ("write", "says"),
    [
        (lambda x: torch.ops.fxlrp_tests.only_half(x), r"only_half.* does not run in float32 \(a kernel for half"),
        (lambda x: x * (x.view(torch.int16) > 3), r"view.* reads the bits of a value in half precision"),
    ],
)
def test_what_float32_can_not_stand_for_is_refused(write: Callable[[Tensor], Tensor], says: str) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(write(self.a(x)))

    with pytest.raises(FxlrpError, match=says) as refused:
        convert(Model().half().eval())(inputs(Mixed).half())
    assert "test_half_precision.py" in str(refused.value)
