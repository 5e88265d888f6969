"""Exported programs: real ones load and compute the same; ones that hold code are refused before any of it runs."""

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fxlrp import FxlrpError
from fxlrp.inputs.exported import input_shape, load_exported


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


def test_not_an_archive(tmp_path: Path) -> None:
    (tmp_path / "net.pt2").write_bytes(b"no")
    with pytest.raises(FxlrpError, match=r"not written by torch\.export\.save"):
        load_exported(tmp_path / "net.pt2")
