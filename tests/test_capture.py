"""Capture: the graph computes what the model computes, in-place ops, odd structures and all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from conftest import randomize
from torch import Tensor, nn

import fxlrp
from fxlrp.capture.axes import Axes
from fxlrp.capture.calls import Signature, split_tensors
from fxlrp.capture.functionalize import functional_twin
from fxlrp.capture.model import capture

aten = torch.ops.aten


class Body(nn.Module):
    """A function of x and one linear layer, as a module."""

    def __init__(self, body: Callable[[Tensor, nn.Linear], Tensor]) -> None:
        super().__init__()
        self.lin, self.body = nn.Linear(6, 6), body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x, self.lin)


def relu_after_view(x: Tensor, lin: nn.Linear) -> Tensor:
    y = lin(x)
    flat = y.view(-1)
    y.relu_()  # seen through the view
    return flat.view(x.shape[0], 6) + y


def slice_assign(x: Tensor, lin: nn.Linear) -> Tensor:
    y = lin(x)
    y[:, ::2] += 1
    y[:, 1] = 0
    return y


def input_written(x: Tensor, lin: nn.Linear) -> Tensor:
    x += 1
    return lin(x)


def chain(x: Tensor, lin: nn.Linear) -> Tensor:
    y = lin(x)
    y += x
    y.mul_(2).relu_()
    return y.add_(lin(y))


def used_before(x: Tensor, lin: nn.Linear) -> Tensor:
    y = lin(x)
    before = y * 3
    y.sigmoid_()
    return before + y


def promoted(x: Tensor, lin: nn.Linear) -> Tensor:
    counts = torch.ones(x.shape[0], 6, dtype=x.dtype)
    counts += lin(x)
    return counts


def degrees(x: Tensor, lin: nn.Linear) -> Tensor:
    """As graph networks norm their edges."""
    y = lin(x).square_()
    y.pow_(-0.5)
    y.masked_fill_(y == float("inf"), 0)
    return y.float_power_(2) + y.floor_divide_(x)


@pytest.mark.parametrize("body", [relu_after_view, slice_assign, input_written, chain, used_before, promoted, degrees])
def test_in_place_ops(body: Callable) -> None:
    model = randomize(Body(body))
    x = torch.randn(3, 6).double()
    graph = capture(model, (x,), {}).graph
    assert not any(getattr(n.target, "_schema", None) and n.target._schema.is_mutable for n in graph.graph.nodes)
    for batch in (1, 3, 5):
        x = torch.randn(batch, 6).double()
        torch.testing.assert_close(graph(x.clone())[0], model(x.clone()))


IN_PLACE = [
    getattr(packet, overload)
    for name in dir(torch.ops.aten)
    if name.endswith("_") and not name.startswith("_") and hasattr(packet := getattr(torch.ops.aten, name), "overloads")
    for overload in packet.overloads()
]


def test_an_op_that_writes_has_the_function_of_its_own_arguments() -> None:
    def meanings(op: Any) -> list[tuple[str, str]]:
        return [(a.name, str(a.type)) for a in op._schema.arguments]

    twins = {op: functional_twin(op) for op in IN_PLACE}
    assert all(twin is None or meanings(twin) == meanings(op) for op, twin in twins.items())
    assert sum(twin is not None for twin in twins.values()) > 200
    for op in (aten.pow_.Scalar, aten.pow_.Tensor, aten.add_.Tensor, aten.masked_fill_.Scalar, aten.div_.Tensor_mode):
        x, other = torch.rand(3).double() + 1, torch.rand(3).double() + 1
        more = {"Scalar": (-0.5,), "Tensor": (other,), "Tensor_mode": (other,)}[op._overloadname]
        more = (x > 1.5, 0.0) if op is aten.masked_fill_.Scalar else more
        kwargs = {"rounding_mode": "floor"} if op is aten.div_.Tensor_mode else {}
        assert torch.equal(twins[op](x, *more, **kwargs), op(x.clone(), *more, **kwargs))


def test_relevance_through_in_place_ops() -> None:
    """In-place and functional spellings of one model have one relevance."""
    spelled = randomize(Body(chain))

    def functional(x: Tensor, lin: nn.Linear) -> Tensor:
        y = torch.relu((lin(x) + x) * 2)
        return y + lin(y)

    plain = Body(functional).double().eval()
    plain.load_state_dict(spelled.state_dict())
    x = torch.randn(2, 6).double()
    a, b = fxlrp.convert(spelled)(x), fxlrp.convert(plain)(x)
    torch.testing.assert_close(a.relevance, b.relevance)


def test_inputs_are_not_written_into() -> None:
    x = torch.randn(2, 6).double()
    before = x.clone()
    fxlrp.convert(randomize(Body(input_written)))(x)
    assert torch.equal(x, before)


def test_signature_is_the_call_but_for_the_batch() -> None:
    def of(*args: object, **kwargs: object) -> tuple:
        described = Signature(args, kwargs, Axes.first(split_tensors(args, kwargs)[0]))
        return described.shapes, described.like, described.kind

    x = torch.ones(2, 3)
    assert of(x) == of(torch.ones(5, 3))
    assert of(x, flag=True) != of(x, flag=False)
    assert of(x, flag=True) != of(x, flag=1)
    assert of(x) != of(x.double())
    assert of(x) != of(torch.ones(2, 4))
    assert of({"a": x}) != of({"b": x})


def test_reused_modules_and_tied_weights() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(32, 32), nn.Linear(32, 32)
            self.b.weight = self.a.weight
            self.act = nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.act(self.a(self.act(self.a(x)))))

    model, x = randomize(Tied()), torch.randn(2, 32).double()
    a = fxlrp.convert(model, strict=True, rules="abslrp")(x, contrast=None)
    torch.testing.assert_close(a.output, model(x))
    torch.testing.assert_close(a.relevance.sum(1), torch.ones(2).double())


class Branches(nn.Module):
    """Takes a branch on values, loops over what it finds, and writes into views."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        h = h.relu() if h.sum() > 0 else h.tanh()
        for i in (h[:, 0] > 0).nonzero()[:, 0]:
            h = h.index_add(0, i[None], h[i][None])
        with torch.no_grad():
            h[:, 1] = 2 * h[:, 0]
        return self.b(h)


def test_branches_on_values_are_taken_sample_by_sample() -> None:
    model, x = randomize(Branches()), torch.randn(12, 4).double()
    explainer = fxlrp.convert(model)
    together = explainer(x)  # which takes one branch for all of them
    torch.testing.assert_close(together.output, model(x))
    assert together.relevance.any()
    x = x[model.a(x).sum(1) > 0][:5]
    alone = [explainer(x[i : i + 1], contrast=None).relevance for i in range(5)]
    assert "make_fx" in explainer.report().mode
    torch.testing.assert_close(explainer(x[3:4]).output, model(x[3:4]))
    a = explainer(x, contrast=None)
    torch.testing.assert_close(a.relevance, torch.cat(alone))
    torch.testing.assert_close(a.output, model(x))
    assert a.target.shape == (5,)


@dataclass
class Answer:
    logits: Tensor
    more: dict[str, Tensor]
    cache: object = None


def test_dataclass_outputs_come_back() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Answer:
            h = self.lin(x)
            return Answer(h, {"sum": h.sum(1)}, cache=[object()])

    model, x = Model().eval(), torch.randn(2, 4)
    a = fxlrp.convert(model)(x)
    assert isinstance(a.output, Answer)
    torch.testing.assert_close(a.output.more["sum"], model(x).more["sum"])
    assert "not captured" in repr(a.output.cache)


def test_vmap_inside_the_model() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(4, 3, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return torch.vmap(self.lin)(x)

    model, x = Model().double().eval(), torch.randn(3, 4).double()
    a = fxlrp.convert(model, strict=True)(x)
    torch.testing.assert_close(a.relevance, fxlrp.convert(model.lin)(x).relevance)


def test_an_output_that_is_rounding_alone_is_no_other_output() -> None:
    """x − flip(x) sums to zero: what is left differs between two ways to compute it by all of its size."""

    class Cancels(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            parts = (x - x.flip(-1)).split(2 if torch.compiler.is_exporting() else 3, 2)
            return 3 * torch.stack([part.sum(2) for part in parts]).sum(0)

    x = 1e3 * torch.randn(3, 50, 6, dtype=torch.float64)
    a = fxlrp.convert(Cancels().eval(), x[:2])(x, target=1)
    assert a.output.abs().max() < 1e-11


def test_a_small_output_that_differs_is_another_output() -> None:
    class Small(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            scale = 1e-14 if torch.compiler.is_exporting() else 3e-14
            return scale * x.sum(2)

    with pytest.raises(fxlrp.FxlrpError, match="computes something else"):
        fxlrp.convert(Small().eval(), torch.randn(2, 4, 6, dtype=torch.float64))


class WritesIntoConstants(nn.Module):
    """Masks that are filled region by region, as shifted windows are, and numbers that change between two uses."""

    def __init__(self, into: Callable[[Tensor, Tensor], None]) -> None:
        super().__init__()
        self.a, self.b, self.into = nn.Linear(6, 6), nn.Linear(6, 3), into

    def forward(self, x: Tensor) -> Tensor:
        regions = x.new_zeros(6, 6)
        for i, (rows, columns) in enumerate(((slice(0, 2), slice(0, 3)), (slice(2, 4), slice(3, 6)))):
            regions[rows, columns] = i + 1
        parts = regions.view(2, 3, 6).transpose(0, 1).reshape(6, 6)
        mask = torch.zeros_like(parts).masked_fill(parts != 0, -100.0)
        scale = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], dtype=x.dtype)
        y = self.a(x) * scale
        scale[:3].mul_(-1)
        self.into(scale, x)
        y = y * scale
        weights = (y[:, :, None] * y[:, None] + mask).softmax(-1)
        return self.b((weights @ y[..., None]).squeeze(-1))


@pytest.mark.parametrize("input_too", [False, True])
def test_constants_that_are_written_into(input_too: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are evaluated, unless an input is written into them; either way it is what torch's own way gives."""
    model = randomize(WritesIntoConstants((lambda scale, x: scale.add_(x[0])) if input_too else lambda scale, x: None))
    x = torch.randn(1 if input_too else 3, 6, dtype=torch.float64)
    explainer = fxlrp.convert(model, x)
    a = explainer(x, target=1)
    torch.testing.assert_close(a.output, model(x))
    monkeypatch.setattr("fxlrp.capture.trace.evaluate_written_constants", lambda *args: None)
    complete = fxlrp.convert(model, x)
    torch.testing.assert_close(a.relevance, complete(x, target=1).relevance, rtol=1e-10, atol=1e-12)
    names = [str(n.target) for n in explainer.graph.graph.nodes]
    assert any("_written" in name for name in names) != input_too
    assert (len(names) < len(complete.graph.graph.nodes)) != input_too


class Centred(nn.Module):
    """The sum of what is left of its mean, summed otherwise while traced."""

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(1, keepdim=True)
        total = centred.flip(1).cumsum(1)[:, -1:] if torch.compiler.is_exporting() else centred.sum(1, keepdim=True)
        return torch.cat([total, total], 1)


@pytest.mark.parametrize("seed", [1, 3, 23, 35, 54])
def test_an_output_that_is_what_rounding_left_may_differ(seed: int) -> None:
    torch.manual_seed(seed)
    model, x = Centred().eval(), torch.randn(1, 9, dtype=torch.float64)
    assert model(x).abs().max() < 1e-15
    taken, refused = (fxlrp.convert(m.eval(), x, rules="epsilon") for m in (model, nn.Sequential(model, Shifted())))
    assert "make_fx" not in taken.report().mode
    assert "make_fx" in refused.report().mode


class Shifted(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1e-12 * torch.compiler.is_exporting()


def test_what_is_in_no_module_says_so() -> None:
    from torch._export.passes._node_metadata_hook import _EMPTY_NN_MODULE_STACK_KEY as nowhere

    from fxlrp.reports.report import row_of

    node = torch.fx.Graph().call_function(torch.relu, ())
    node.meta["nn_module_stack"] = {nowhere: (nowhere, nn.Module)}  # as torch.export has it of sizes
    assert row_of(node).module == ""
    node.meta["nn_module_stack"]["L['self'].head"] = ("head", nn.Linear)
    assert row_of(node).module == "head"
