"""Checkpoints as trainers write them: wrappers' prefixes, averages, settings beside the weights, shards."""

from __future__ import annotations

import argparse
import datetime
import json
import pathlib
import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from typer.testing import CliRunner

from fxlrp import FxlrpError
from fxlrp.cli import app
from fxlrp.inputs import load_model

pytest.importorskip("timm")
import timm

ARCH = "timm:test_resnet"
TORCH_SAVES = (".pt", ".pth", ".ckpt")


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return timm.create_model("test_resnet").state_dict()


def prefixed(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: t for name, t in weights.items()}


def half(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: t / 2 if t.is_floating_point() else t for name, t in weights.items()}


def same(loaded: nn.Module, weights: dict[str, Tensor]) -> bool:
    return all(torch.equal(t, weights[name]) for name, t in loaded.state_dict().items())


def saved(content: Any, folder: Path) -> str:
    torch.save(content, folder / "w.pth")
    return str(folder / "w.pth")


PREFIXES = ("module.", "model.", "net.", "_orig_mod.", "backbone.", "module._orig_mod.", "a.b.c.")


@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefixes_of_wrappers(prefix: str, weights: dict[str, Tensor], tmp_path: Path) -> None:
    loaded = load_model(saved(prefixed(weights, prefix), tmp_path), arch=ARCH)
    assert same(loaded.module, weights)
    assert not loaded.notes
    beside = {**prefixed(weights, prefix), "criterion.weight": torch.ones(3)}
    loaded = load_model(saved({"state_dict": beside}, tmp_path), arch=ARCH)
    assert same(loaded.module, weights)
    assert loaded.notes == [f"1 weights that are not under {prefix!r} are left out"]


def test_compiled_blocks_and_a_prefix_that_is_missing(weights: dict[str, Tensor], tmp_path: Path) -> None:
    inner = {re.sub(r"^(layer\d)\.", r"\1._orig_mod.", name): t for name, t in weights.items()}
    assert inner.keys() != weights.keys()
    assert same(load_model(saved(inner, tmp_path), arch=ARCH).module, weights)
    (tmp_path / "wrapped.py").write_text(
        "import timm, torch\n"
        "class Wrapped(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.inner = timm.create_model('test_resnet')\n"
        "    def forward(self, x):\n"
        "        return self.inner(x)\n"
    )
    loaded = load_model(saved(weights, tmp_path), arch=f"{tmp_path}/wrapped.py:Wrapped")
    assert same(loaded.module.inner, weights)


def test_weights_that_do_not_fit_are_still_named(weights: dict[str, Tensor], tmp_path: Path) -> None:
    some = dict(list(prefixed(weights, "model.").items())[:-1])
    with pytest.raises(FxlrpError, match=r"do not fit --arch timm:test_resnet: .* missing"):
        load_model(saved(some, tmp_path), arch=ARCH)


@pytest.mark.parametrize("average", ["model_ema", "ema", "state_dict_ema"])
def test_moving_averages(average: str, weights: dict[str, Tensor], tmp_path: Path) -> None:
    file = saved({"model": weights, average: {"module": half(weights)}, "epoch": 3}, tmp_path)
    loaded = load_model(file, arch=ARCH)
    assert same(loaded.module, weights)
    assert loaded.notes == [f"the file also holds {average}: --weights {average} explains these"]
    assert same(load_model(file, arch=ARCH, weights=average).module, half(weights))
    with pytest.raises(FxlrpError, match=f"no weights under 'nothing'; it has model, {average}"):
        load_model(file, arch=ARCH, weights="nothing")
    alone = load_model(saved({average: half(weights)}, tmp_path), arch=ARCH)
    assert same(alone.module, half(weights))
    assert alone.notes == [f"the weights are those under {average!r}"]


def test_several_that_nobody_knows(weights: dict[str, Tensor], tmp_path: Path) -> None:
    file = saved({"generator": weights, "critic": half(weights)}, tmp_path)
    with pytest.raises(FxlrpError, match="weights under generator, critic; say which ones with --weights"):
        load_model(file, arch=ARCH)
    assert same(load_model(file, arch=ARCH, weights="critic").module, half(weights))


def test_a_checkpoint_of_lightning(weights: dict[str, Tensor], tmp_path: Path) -> None:
    attributes = types.ModuleType("pytorch_lightning.utilities.parsing")
    exec("class AttributeDict(dict): pass", attributes.__dict__)
    attributes.AttributeDict.__module__ = attributes.__name__
    packages = {name: types.ModuleType(name) for name in ("pytorch_lightning", "pytorch_lightning.utilities")}
    with pytest.MonkeyPatch.context() as patch:
        for name, module in {**packages, attributes.__name__: attributes}.items():
            patch.setitem(sys.modules, name, module)
        content = {
            "epoch": 3,
            "pytorch-lightning_version": "2.4.0",
            "state_dict": prefixed(weights, "model."),
            "loops": {"fit_loop": {"state_dict": {}}},
            "callbacks": {"ModelCheckpoint": {"best_k_models": {}, "dirpath": pathlib.PurePosixPath("x")}},
            "optimizer_states": [{"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1}]}],
            "hyper_parameters": attributes.AttributeDict(lr=0.1, layers=[1, 2]),
        }
        torch.save(content, tmp_path / "last.ckpt")
    assert same(load_model(str(tmp_path / "last.ckpt"), arch=ARCH).module, weights)


def test_settings_beside_the_weights(weights: dict[str, Tensor], tmp_path: Path) -> None:
    settings = argparse.Namespace(lr=0.1, out=pathlib.PosixPath("runs"), sizes=[1, (2, 3)])
    more = types.SimpleNamespace(when=datetime.datetime(2026, 1, 2), took=datetime.timedelta(3))
    file = saved({"model": weights, "args": settings, "more": more}, tmp_path)
    assert same(load_model(file, arch=ARCH).module, weights)


class Evil:
    def __reduce__(self) -> tuple:
        return exec, ("import pathlib; pathlib.Path('ran').touch()",)


@pytest.mark.parametrize("inside", ["namespace", "path", "dict"])
def test_settings_run_nothing(inside: str, weights: dict[str, Tensor], tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    settings = {
        "namespace": argparse.Namespace(x=Evil()),
        "path": [Evil()],
        "dict": {"x": Evil()},
    }
    file = saved({"model": weights, "args": settings[inside]}, tmp_path)
    with pytest.raises(FxlrpError, match="pickle that"):
        load_model(file, arch=ARCH)
    assert not Path("ran").exists()


@pytest.fixture
def shards(weights: dict[str, Tensor], tmp_path: Path) -> Path:
    names = list(weights)
    files = {name: f"model-0000{1 + i % 3}-of-00003.safetensors" for i, name in enumerate(names)}
    for file in set(files.values()):
        save_file({n: weights[n].clone() for n in names if files[n] == file}, tmp_path / file)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return index


def test_shards(shards: Path, weights: dict[str, Tensor]) -> None:
    for file in (shards, shards.with_name("model-00002-of-00003.safetensors")):
        assert same(load_model(str(file), arch=ARCH).module, weights)
    save_file({n: t.clone() for n, t in half(weights).items()}, shards.with_name("other.safetensors"))
    assert same(load_model(str(shards.with_name("other.safetensors")), arch=ARCH).module, half(weights))
    shards.with_name("model-00003-of-00003.safetensors").unlink()
    with pytest.raises(FxlrpError, match=r"names model-00003-of-00003\.safetensors, which is not beside it"):
        load_model(str(shards), arch=ARCH)


@pytest.mark.parametrize(
    ("content", "said"),
    [({"weight_map": {"a": "../x.safetensors"}}, "outside of its folder"), ({"weight_map": [1]}, "is no index"),
     ([], "is no index"), ({"weight_map": {"a": 3}}, "is no index")],
)  # fmt: skip
def test_an_index_that_is_none(content: Any, said: str, shards: Path) -> None:
    shards.write_text(json.dumps(content))
    with pytest.raises(FxlrpError, match=said):
        load_model(str(shards), arch=ARCH)


def test_options_of_an_architecture(tmp_path: Path) -> None:
    net = timm.create_model("test_resnet", num_classes=7, act_layer="silu")
    loaded = load_model(saved(net.state_dict(), tmp_path), arch="timm:test_resnet,num_classes=7,act_layer=silu")
    x = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(loaded.module(x), net.eval()(x))
    with pytest.raises(FxlrpError, match="'seven' behind a model's name is no option"):
        load_model("timm:test_resnet,seven", pretrained=False)


def test_a_bare_name_is_asked_back() -> None:
    with pytest.raises(FxlrpError, match=r"did you mean timm:resnet18 or torchvision:resnet18\?"):
        load_model("resnet18")


def test_the_command_line_says_what_was_chosen(weights: dict[str, Tensor], tmp_path: Path) -> None:
    picture = Path(__file__).parents[2] / "examples" / "pictures" / "ring_star.png"
    file = saved({"model": weights, "ema": half(weights)}, tmp_path)
    args = ["explain", file, str(picture), "--arch", ARCH, "--size", "64", "-o", str(tmp_path / "a.png")]
    result = CliRunner().invoke(app, args)
    assert result.exit_code == 0, result.output
    assert "note: the file also holds ema: --weights ema explains these" in result.stderr
    assert re.search(r"pictures: 64x64, 0.95 of the shorter side, bilinear, mean 0.5,0.5,0.5 std 0.5", result.stderr)
    other = CliRunner().invoke(app, [*args[:-1], str(tmp_path / "b.png"), "--weights", "ema"])
    assert other.exit_code == 0
    assert (tmp_path / "a.png").read_bytes() != (tmp_path / "b.png").read_bytes()
