"""Exported programs: real ones load and compute the same; ones that hold code are refused before any of it runs."""

import functools
import io
import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

from fxlrp import FxlrpError
from fxlrp.inputs import load_model
from fxlrp.inputs.exported import check_inputs, input_shape, load_exported
from fxlrp.inputs.exported.kernels import replacements
from fxlrp.inputs.exported.operators import operators


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.Linear(4, 5)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.register_buffer("shift", torch.rand(4))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        x = torch.relu(self.norm(self.conv(x))).flatten(2).transpose(1, 2) + self.shift
        return {"logits": self.fc(self.attention(x, x, x, need_weights=False)[0].mean(1))}


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture(scope="module")
def exported(net: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    auto = torch.export.Dim.AUTO
    path = tmp_path_factory.mktemp("pt2") / "net.pt2"
    program = torch.export.export(net, (torch.rand(2, 3, 17, 16),), dynamic_shapes=({0: auto, 2: auto},))
    torch.export.save(program, path)
    return path


def changed(path: Path, out: Path, change: Callable[[str, bytes], bytes | None], **more: bytes) -> Path:
    """A copy of an archive with its records changed, dropped (None) or added."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w") as new:
        for record in old.namelist():
            if (data := change(record, old.read(record))) is not None:
                new.writestr(record, data)
        for record, data in more.items():
            new.writestr(f"net/{record}", data)
    return out


def test_computes_the_same(net: nn.Module, exported: Path) -> None:
    module = load_exported(exported)
    x = torch.rand(3, 3, 21, 16)
    torch.testing.assert_close(module(x)["logits"], net(x)["logits"])
    assert not module.training
    assert input_shape(module) == [0, 3, 0, 16]
    assert input_shape(net) is None


def test_an_unchanged_copy_loads(exported: Path, tmp_path: Path) -> None:
    load_exported(changed(exported, tmp_path / "net.pt2", lambda record, data: data))


class Evil:
    def __init__(self, code: str) -> None:
        self.code = code

    def __reduce__(self) -> tuple:
        return exec, (self.code,)


def pickled(code: str) -> bytes:
    buffer = io.BytesIO()
    torch.save(Evil(code), buffer)
    return buffer.getvalue()


def add(kind: str, key: str, new: Any) -> Callable[[str, bytes], bytes]:
    """Give every dict in the program that looks like a `kind` one more key."""

    def walk(value: Any) -> Any:
        if isinstance(value, dict):
            extra = {key: new} if kind == "Node" and "is_hop_single_tensor_return" in value else {}
            return {k: walk(v) for k, v in value.items()} | extra
        return [walk(v) for v in value] if isinstance(value, list) else value

    return lambda record, data: json.dumps(walk(json.loads(data))).encode() if record.endswith(".json") else data


def edit(key: str, new: Any) -> Callable[[str, bytes], bytes]:
    """Set every value under a key in the JSON records."""

    def walk(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: new if k == key else walk(v) for k, v in value.items()}
        return [walk(v) for v in value] if isinstance(value, list) else value

    return lambda record, data: json.dumps(walk(json.loads(data))).encode() if record.endswith(".json") else data


ATTACKS = {
    "pickled inputs": lambda code: lambda r, d: pickled(code) if r.endswith("sample_inputs/model.pt") else d,
    "size": lambda code: edit("expr_str", f"__import__('builtins').exec({code!r})"),
    "size without quotes": lambda code: edit("expr_str", "eval(chr(49)+chr(43)+chr(49))"),
    "operator": lambda code: edit("target", "torch.serialization.os.system"),
    "file operator": lambda code: edit("target", "torch.ops.aten.from_file.default"),
    "pickled weight": lambda code: edit("use_pickle", True),
    "name": lambda code: edit("parameter_name", f'x"); exec({code!r}); ("'),
    "tree": lambda code: edit("in_spec", '[1, {"type": "enum.Enum", "context": "null", "children_spec": []}]'),
    "path": lambda code: edit("path_name", "../custom_obj_0"),
    # what torch takes for true, a whole number or a name, though it is none
    "pickled weight, by 1": lambda code: edit("use_pickle", 1),
    "pickled weight, by a text": lambda code: edit("use_pickle", "false"),
    "unknown key": lambda code: add("Node", "custom_obj", "x"),
    "operator that trusts indices": lambda code: edit("target", "torch.ops.aten.max_unpool2d.default"),
    "operator of another library": lambda code: edit("target", "torch.ops.prims.add.default"),
    "python function": lambda code: edit("target", "torch.hub.load"),
    "operator beside its list": lambda code: edit("target", "torch.ops.aten.relu.default.__class__"),
    "place of a weight": lambda code: edit("parameter_name", "__class__.__base__.forward"),
    "place of a buffer": lambda code: edit("buffer_name", "graph.owning_module"),
    "power of a power": lambda code: edit("expr_str", "Pow(Integer(10), Pow(Integer(10), Integer(10)))"),
    "high power": lambda code: edit("expr_str", "Pow(Symbol('s0'), Integer(99))"),
    "size by value": lambda code: edit("expr_str", "Symbol('u999999999')"),
    "size without example": lambda code: edit("hint", None),
    "variable": lambda code: edit("as_name", "torch"),
    "huge integer": lambda code: edit("as_int", 10**11),
    "huge weight": lambda code: edit("sizes", [{"as_int": 2**30}, {"as_int": 2**30}]),
    "negative stride": lambda code: edit("strides", [{"as_int": -1}]),
    "number of the wrong type": lambda code: edit("dtype", 10**6),
    "boolean for a number": lambda code: edit("dtype", True),
    "device": lambda code: edit("device", {"type": "meta", "index": None}),
    "sparse": lambda code: edit("layout", 1),
    "guards of another kind of program": lambda code: edit("verifiers", ["EDGE"]),
    "nested": lambda code: edit("as_ints", functools.reduce(lambda inner, _: [inner], range(200), 1)),
    "text with controls": lambda code: edit("metadata", {"stack_trace": "\x1b[2J"}),
}


@pytest.mark.parametrize("how", ATTACKS)
def test_code_is_refused(how: str, exported: Path, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    path = changed(exported, tmp_path / "net.pt2", ATTACKS[how](f"open('{marker}', 'w').close()"))
    with pytest.raises(FxlrpError, match="holds more than a network"):
        load_exported(path)
    assert not marker.exists()


@pytest.mark.parametrize("how", ["pickled inputs", "size"])
def test_the_attacks_work_on_torch(how: str, exported: Path, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    path = changed(exported, tmp_path / "net.pt2", ATTACKS[how](f"open('{marker}', 'w').close()"))
    with pytest.raises(FxlrpError):
        load_exported(path, trust=True)
    assert marker.exists()


def test_guards_are_not_run(exported: Path, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    guard = f"open('{marker}', 'w')"
    path = changed(exported, tmp_path / "net.pt2", edit("guards_code", [guard]))
    load_exported(path)(torch.rand(1, 3, 17, 16))
    assert not marker.exists()


@pytest.mark.parametrize("record", ["data/aotinductor/model/model.so", "data/constants/opaque_obj_0", "extra/a.py"])
def test_other_records_are_refused(record: str, exported: Path, tmp_path: Path) -> None:
    with pytest.raises(FxlrpError, match=f"a record '{record}'"):
        load_exported(changed(exported, tmp_path / "net.pt2", lambda record, data: data, **{record: b"?"}))


class Bomb(nn.Module):
    """Small at its input, and a thousand million times as large ten lines later."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(25):
            x = torch.cat([x, x], 1)
        return x


def test_tensors_out_of_proportion_are_refused_before_they_are_made(exported: Path, tmp_path: Path) -> None:
    auto = torch.export.Dim.AUTO
    program = torch.export.export(Bomb(), (torch.empty(2, 3),), dynamic_shapes=({0: auto},))
    torch.export.save(program, tmp_path / "bomb.pt2")
    with pytest.raises(FxlrpError, match="out of proportion"):
        load_exported(tmp_path / "bomb.pt2")
    check_inputs(load_exported(exported), torch.rand(1, 3, 21, 16))
    with pytest.raises(FxlrpError, match="does not run for inputs of shape"):
        check_inputs(load_exported(exported), torch.rand(1, 4, 21, 16))


def test_a_shape_is_checked_once(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a folder of pictures the network is run without storage for the first alone."""
    loaded, seen = load_model(str(exported)), []
    monkeypatch.setattr("fxlrp.inputs.models.check_inputs", lambda module, x: seen.append(tuple(x.shape)))
    for side in (21, 21, 25, 21):
        loaded.like(torch.rand(1, 3, side, 16))
    assert seen == [(1, 3, 21, 16), (1, 3, 25, 16)]


class Pooled(nn.Module):
    """The derivative of max pooling, whose kernel writes wherever an index says."""

    def forward(self, g: torch.Tensor, x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        return torch.ops.aten.max_pool2d_with_indices_backward(g, x, [2, 2], [2, 2], [0, 0], [1, 1], False, index)


def test_indices_are_looked_at(tmp_path: Path) -> None:
    x = torch.rand(2, 3, 6, 6)
    z, index = torch.nn.functional.max_pool2d(x, 2, return_indices=True)
    torch.export.save(torch.export.export(Pooled(), (z, x, index)), tmp_path / "pooled.pt2")
    module = load_exported(tmp_path / "pooled.pt2")
    assert torch.equal(module(z, x, index), Pooled()(z, x, index))
    with pytest.raises((RuntimeError, IndexError)):
        module(z, x, torch.full_like(index, 10**11))


FAITHFUL = {  # what is run in the place of kernels that trust their arguments, against these kernels
    "avg_pool2d_backward.default": lambda x: (x[..., :3, :3], x, [2, 2], [2, 2], [0, 0], False, True, None),
    "_adaptive_avg_pool2d_backward.default": lambda x: (x[..., :2, :2], x),
    "reflection_pad2d_backward.default": lambda x: (torch.rand(2, 4, 8, 8).to(x), x, [1, 1, 1, 1]),
    "replication_pad2d_backward.default": lambda x: (torch.rand(2, 4, 8, 8).to(x), x, [1, 1, 1, 1]),
    "_weight_norm.default": lambda x: (x[0, 0], x[0, 0, :, :1], 0),
    "_softmax_backward_data.default": lambda x: (x, x.softmax(1), 1, x.dtype),
    "native_layer_norm.default": lambda x: (x, [6], x[0, 0, 0], x[0, 0, 1], 1e-5),
    "native_group_norm.default": lambda x: (
        x,
        x[0, 0, 0, :4],
        x[0, 0, 1, :4],
        2,
        4,
        36,
        2,
        1e-5,
    ),  # torch 2.11: no strides
    "_scaled_dot_product_flash_attention_for_cpu.default": lambda x: (x, x.flip(2), x.flip(3), 0.0, True),
    "lstm.input": lambda x: (
        *(x[0], [torch.rand(1, 4, 4).to(x)] * 2, [torch.rand(16, 6).to(x), torch.rand(16, 4).to(x)]),
        *(False, 1, 0.0, False, False, True),
    ),
}


@pytest.mark.parametrize("name", FAITHFUL)
def test_replacements_compute_the_same(name: str) -> None:
    torch.manual_seed(0)
    x = torch.rand(2, 4, 6, 6, dtype=torch.float64)
    args = FAITHFUL[name](x)
    op = operators()[f"torch.ops.aten.{name}"]
    found, expected = replacements()[op](*args), op(*args)
    for f, e in zip(pytree.tree_leaves(found), pytree.tree_leaves(expected), strict=False):
        if e.numel() == f.numel():
            torch.testing.assert_close(f, e.view_as(f))


def test_replacements_have_names_that_torch_can_print() -> None:
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    for run in replacements().values():
        graph.call_function(run, (x,)).format_node()
    graph.output(None)
    assert "_backward" in torch.fx.GraphModule({}, graph).code


def test_a_recurrent_layer_whose_sizes_do_not_fit_is_refused() -> None:
    op = operators()["torch.ops.aten.lstm.input"]
    x, h, w = torch.rand(5, 2, 3), torch.rand(1, 2, 4), [torch.rand(16, 3), torch.rand(16, 4)]
    rest = (False, 1, 0.0, False, False, False)
    assert torch.equal(replacements()[op](x, [h, h], w, *rest)[0], op(x, [h, h], w, *rest)[0])
    for state, weights in (([h], w), ([h, h[:, :1]], w), ([h, h], w[:1]), ([h, h], [w[0], w[1][:8]])):
        with pytest.raises(ValueError, match="don't fit each other"):
            replacements()[op](x, state, weights, *rest)


def test_every_operator_stands_for_itself() -> None:
    """Nothing that opens files, trusts a value for a size, or is of another library stands in the list."""
    for op in operators().values():
        assert op.namespace == "aten"
        name = op._schema.name.removeprefix("aten::")
        assert not re.search("file|save|load|print|^nonzero|unique|bincount|resize|set_|unpool|_sparse|item", name)


def test_not_an_archive(tmp_path: Path) -> None:
    (tmp_path / "net.pt2").write_bytes(b"no")
    with pytest.raises(FxlrpError, match=r"not written by torch\.export\.save"):
        load_exported(tmp_path / "net.pt2")
