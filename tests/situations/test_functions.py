"""A torch.autograd.Function keeps its own backward as its derivative; what is opaque is explained by what it does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxlrp
from fxlrp import convert

BOOKS = ["abslrp", "abslrp-hybrid", "epsilon", "zplus", "attnlrp", "gradient-input"]
X = torch.randn(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
Function = torch.autograd.Function


class Sign(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.sign()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g


class Clipped(Function):
    """A binarised activation whose gradient is that of a hard tanh; its context is set up apart."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return torch.where(x >= 0, 1.0, -1.0).to(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return g * (x.abs() <= 1)


class Reversed(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple:
        return -ctx.factor * g, None


class NumpyTanh(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = torch.tanh(torch.from_numpy(x.detach().numpy() + 0))
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return g * (1 - y * y)


class Swish(Function):
    """As of EfficientNet, to save memory: the backward is the derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x.sigmoid()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        s = x.sigmoid()
        return g * s * (1 + x * (1 - s))


class Shut(Function):
    """A softmax over some entries, whose forward writes over what the derivative of its ops would need."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        shut = torch.arange(x.shape[-1]) > 7
        out = x.masked_fill(shut, torch.finfo(x.dtype).min).softmax(-1)
        out.masked_fill_(shut, 0)
        ctx.save_for_backward(out)
        return out

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (out,) = ctx.saved_tensors
        return out * (g - (g * out).sum(-1, keepdim=True))


class Split(Function):
    """Two outputs, one of which has a gradient of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.round(), 2 * x

    @staticmethod
    def backward(ctx: Any, g: Tensor, h: Tensor) -> Tensor:
        return g + 2 * h


class Packed(Function):
    """A product with a weight in whole numbers, which are unpacked by an op that nobody knows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(packed, scale)
        return torch.nn.functional.linear(x, unpacked(packed, scale), bias)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple:
        return g @ unpacked(*ctx.saved_tensors), None, None, None


def unpacked(packed: Tensor, scale: Tensor) -> Tensor:
    return torch.from_numpy(packed.numpy() * 1.0) * scale


class Net(nn.Module):
    def __init__(self, q: Callable[..., Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.q = nn.Linear(6, 10).double(), nn.Linear(10, 4).double(), q

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.q(self.a(x)))


def sum_of_both(y: Tensor) -> Tensor:
    first, second = Split.apply(y)
    return first + second


OWN: dict[str, Callable[[Tensor], Tensor]] = {
    "sign": Sign.apply,
    "looked up when called": lambda y: Sign.apply(y),
    "clipped": Clipped.apply,
    "reversed": lambda y: Reversed.apply(y, 0.5),
    "numpy": NumpyTanh.apply,
    "swish": Swish.apply,
    "written over": Shut.apply,
    "two outputs": sum_of_both,
}


@pytest.mark.parametrize("name", list(OWN))
def test_gradient_is_its_own(name: str) -> None:
    model, x = Net(OWN[name]).eval(), X.clone().requires_grad_()
    (g,) = torch.autograd.grad(model(x)[:, 1].sum(), x)
    a = convert(model, rules="gradient-input")(X, target=1, contrast=None)
    torch.testing.assert_close(a.relevance, X * g)
    torch.testing.assert_close(a.output, model(X).detach())


@pytest.mark.parametrize("rules", BOOKS)
@pytest.mark.parametrize("name", list(OWN))
def test_relevance_arrives(name: str, rules: str) -> None:
    a = convert(Net(OWN[name]).eval(), rules=rules)(X, target=[1, 2])
    assert a.relevance.isfinite().all()
    assert a.relevance.flatten(2).any(2).all()


class Residual(Function):
    """Quantised, and then what is left quantised again: the value is a sum."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return residual(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g


def residual(x: Tensor) -> Tensor:
    return x.round() + (x - x.round()).sign() / 4


def straight(y: Tensor, q: Callable[[Tensor], Tensor]) -> Tensor:
    return y + (q(y) - y).detach()


LIKE: dict[str, tuple[Callable, Callable]] = {
    "swish": (Swish.apply, nn.functional.silu),
    "numpy": (NumpyTanh.apply, torch.tanh),
    "written over": (Shut.apply, lambda y: y.masked_fill(torch.arange(10) > 7, float("-inf")).softmax(-1)),
    "sign": (Sign.apply, lambda y: straight(y, torch.sign)),
    "a sum": (Residual.apply, lambda y: straight(y, residual)),
    "of a sum": (lambda y: Sign.apply(y - y.flip(1)), lambda y: straight(y - y.flip(1), torch.sign)),
    "sums of a sum": (lambda y: Residual.apply(y - y.flip(1)), lambda y: straight(y - y.flip(1), residual)),
}


@pytest.mark.parametrize("rules", BOOKS)
@pytest.mark.parametrize("name", list(LIKE))
def test_it_is_explained_as_what_it_is(name: str, rules: str) -> None:
    own, plain = LIKE[name]
    a, b = (convert(Net(q).eval(), rules=rules)(X, target=1) for q in (own, plain))
    torch.testing.assert_close(a.relevance, b.relevance)


def test_gradients_go_on_as_before() -> None:
    """What was recorded while the model was traced runs as it did; a trained copy has a graph of its own."""
    model = Net(Clipped.apply).eval()
    before = model(X).sum().backward() or [p.grad.clone() for p in model.parameters()]
    convert(model)(X)
    model.zero_grad()
    model(X).sum().backward()
    for p, g in zip(model.parameters(), before, strict=True):
        assert torch.equal(p.grad, g)


class Quantised(nn.Module):
    """A linear layer whose weight is kept in whole numbers, and how it is multiplied."""

    def __init__(self, columns: int, rows: int, how: Callable[..., Tensor]) -> None:
        super().__init__()
        weight, bias = torch.randn(rows, columns).double(), torch.randn(rows).double()
        self.register_buffer("scale", weight.abs().amax(1, keepdim=True) / 7)
        self.register_buffer("packed", (weight / self.scale).round().to(torch.int8))
        self.register_buffer("bias", bias)
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        return self.how(x, self.packed, self.scale, self.bias)

    def plain(self) -> nn.Linear:
        layer = nn.Linear(self.packed.shape[1], self.packed.shape[0]).double()
        layer.weight.data, layer.bias.data = self.packed * self.scale, self.bias
        return layer


@torch.library.custom_op("fxlrptest::packed_linear", mutates_args=())
def packed_linear(x: Tensor, packed: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Has no derivative."""
    return torch.nn.functional.linear(x, packed * scale, bias)


@packed_linear.register_fake
def _(x: Tensor, packed: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], packed.shape[0])


@torch.library.custom_op("fxlrptest::rounded_linear", mutates_args=())
def rounded_linear(x: Tensor, packed: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Has no derivative, and rounds x to 8 bits first."""
    step = x.abs().amax(-1, keepdim=True).clamp(min=1e-9) / 127
    return torch.nn.functional.linear((x / step).round() * step, packed * scale, bias)


@rounded_linear.register_fake
def _(x: Tensor, packed: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], packed.shape[0])


def in_torch(x: Tensor, packed: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return torch.nn.functional.linear(x, packed.to(x.dtype) * scale, bias)


@pytest.mark.parametrize("rules", BOOKS)
@pytest.mark.parametrize("how", [Packed.apply, packed_linear, rounded_linear, in_torch])
def test_quantised_products(how: Callable[..., Tensor], rules: str) -> None:
    torch.manual_seed(0)
    layers = [Quantised(6, 16, how), Quantised(16, 4, how)]
    model = nn.Sequential(layers[0], nn.ReLU(), layers[1]).eval()
    plain = nn.Sequential(layers[0].plain(), nn.ReLU(), layers[1].plain()).eval()
    a, b = convert(model, rules=rules)(X, target=1), convert(plain, rules=rules)(X, target=1)
    assert torch.equal(a.output, model(X))
    off = 5e-2 if how is rounded_linear else 1e-9
    torch.testing.assert_close(a.relevance, b.relevance, rtol=0, atol=off * float(b.relevance.abs().max()))


@torch.library.custom_op("fxlrptest::shuffled", mutates_args=())
def shuffled(x: Tensor) -> Tensor:
    """Has no derivative, and is neither a product nor entry by entry."""
    return x.sort(-1).values.cumsum(-1)


shuffled.register_fake(torch.empty_like)


@pytest.mark.parametrize("rules", BOOKS)
def test_what_is_not_found_out_is_refused(rules: str) -> None:
    with pytest.raises(fxlrp.FxlrpError, match=r"shuffled.*test_functions\.py.*no derivative.*@fxlrp\.rule"):
        convert(Net(shuffled).eval(), X, rules=rules)
    fxlrp.rule(torch.ops.fxlrptest.shuffled.default)(lambda g, z, x: g * z / x)
    try:
        assert convert(Net(shuffled).eval(), rules=rules)(X, target=1).relevance.any(1).all()
    finally:
        fxlrp.unregister(torch.ops.fxlrptest.shuffled.default)


@torch.library.custom_op("fxlrptest::squash", mutates_args=())
def squash(x: Tensor) -> Tensor:
    """Has no derivative."""
    return x.tanh()


squash.register_fake(torch.empty_like)


@pytest.mark.parametrize("rules", BOOKS)
def test_an_activation_without_derivative_passes_relevance_on(rules: str) -> None:
    model = Net(squash).eval()
    a = convert(model, rules=rules)(X, target=1)
    assert a.relevance.any(1).all()
    assert torch.equal(a.output, model(X))


class Nibbles(nn.Parameter):
    """A weight of 4 bits in a parameter of a kind of its own, with what it takes to unpack it."""

    scale: Tensor

    @staticmethod
    def of(weight: Tensor) -> Nibbles:
        scale = weight.abs().amax(1, keepdim=True) / 7
        new = torch.Tensor._make_subclass(Nibbles, (weight / scale).round().to(torch.int8), False)
        new.scale = scale
        return new


class NibbleLinear(nn.Module):
    def __init__(self, columns: int, rows: int) -> None:
        super().__init__()
        self.weight = Nibbles.of(torch.randn(rows, columns).double())
        self.bias = nn.Parameter(torch.randn(rows).double())

    def forward(self, x: Tensor) -> Tensor:
        values = torch.from_numpy(self.weight.detach().as_subclass(Tensor).numpy() + 0)
        return nn.functional.linear(x, values * self.weight.scale, self.bias)

    def plain(self) -> nn.Linear:
        layer = nn.Linear(self.weight.shape[1], self.weight.shape[0]).double()
        layer.weight.data, layer.bias.data = self.weight.as_subclass(Tensor) * self.weight.scale, self.bias.data
        return layer


class NibbleKernel(NibbleLinear):
    """As bitsandbytes' kernel for CPUs, it is for inference alone."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(for_inference_alone(x))


def for_inference_alone(x: Tensor) -> Tensor:
    if x.requires_grad and torch.is_grad_enabled():
        raise RuntimeError("a view of a leaf that requires grad is being used in an in-place operation")
    return x


class NibbleSteps(nn.Module):
    """Rounds by a step that is in a parameter of a kind of its own, for inference alone."""

    def __init__(self) -> None:
        super().__init__()
        self.step = Nibbles.of(torch.full((1, 1), 0.7).double())

    def forward(self, x: Tensor) -> Tensor:
        return (for_inference_alone(x) / self.step.scale).round() * self.step.scale


@pytest.mark.parametrize("rules", BOOKS)
def test_steps_for_inference_alone_pass_relevance_on(rules: str) -> None:
    model = Net(NibbleSteps()).eval()
    a = convert(model, rules=rules)(X, target=1)
    b = convert(Net(lambda y: y + ((y / 0.1).round() * 0.1 - y).detach()).eval(), rules=rules)(X, target=1)
    with torch.no_grad():
        torch.testing.assert_close(a.output, model(X))
    torch.testing.assert_close(a.relevance, b.relevance)
    assert a.relevance.any(1).all()


NIBBLES = {"of its own": NibbleLinear, "of its own, for inference alone": NibbleKernel}


def of_bitsandbytes(name: str) -> nn.Module:
    layers = pytest.importorskip("bitsandbytes").nn
    kwargs = {"has_fp16_weights": False} if "8" in name else {"compute_dtype": torch.float32}
    return getattr(layers, name)(64, 32, **kwargs).to("cpu").eval()


@pytest.mark.parametrize("rules", BOOKS)
@pytest.mark.parametrize("name", [*NIBBLES, "Linear8bitLt", "Linear4bit"])
def test_weights_of_a_kind_that_cannot_be_traced(name: str, rules: str) -> None:
    torch.manual_seed(0)
    layer = NIBBLES[name](64, 32) if name in NIBBLES else of_bitsandbytes(name)
    x = torch.randn(5, 64, dtype=torch.float64 if name in NIBBLES else torch.float32)
    head = nn.Linear(32, 4).to(x.dtype)
    model = nn.Sequential(layer, nn.ReLU(), head).eval()
    if name in NIBBLES:
        same = layer.plain()
    else:
        same, nothing = nn.Linear(64, 32), layer(torch.zeros(1, 64))
        same.weight.data, same.bias.data = (layer(torch.eye(64)) - nothing).t().detach(), nothing[0].detach()
    before = {name: id(p) for name, p in model.named_parameters()}
    explainer = convert(model, rules=rules)
    a = explainer(x, target=1)
    b = convert(nn.Sequential(same, nn.ReLU(), head).eval(), rules=rules)(x, target=1)
    assert torch.equal(a.output, model(x))
    assert explainer.report().mode.endswith("any size")
    assert before == {name: id(p) for name, p in model.named_parameters()}
    torch.testing.assert_close(a.relevance, b.relevance, rtol=0, atol=0.03 * float(b.relevance.abs().max()))
    torch.testing.assert_close(explainer(x[2:3], target=1).relevance, a.relevance[2:3])


def test_plain_layers_are_not() -> None:
    explainer = convert(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten()).eval())
    explainer(torch.randn(2, 3, 5, 5))
    assert {n.op for n in explainer.report().nodes} >= {"conv2d.default", "batch_norm.default"}


def test_compiled_and_exported(tmp_path: Path) -> None:
    """Forward and relevance pass as one graph, the backward among them."""
    model = Net(Clipped.apply).eval()
    a = convert(model)(X, target=1)
    b = convert(model).compile(backend="eager")(X, target=1)
    torch.testing.assert_close(a.relevance, b.relevance)
    convert(model, X).export(tmp_path / "e.pt2", contrast=None)
    run = torch.export.load(tmp_path / "e.pt2").module()
    found = run(X, torch.ones(5, dtype=torch.long))[1]
    torch.testing.assert_close(found, convert(model)(X, target=1, contrast=None).relevance)
