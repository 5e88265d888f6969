"""Models by name: every kind of MODEL loads and computes what was saved; what cannot is said in one sentence."""

import functools
import json
import os
import shutil
import socket
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
import transformers
from safetensors.torch import save_file
from torch import Tensor, nn

from fxlrp import FxlrpError
from fxlrp.inputs import load_model
from fxlrp.inputs.huggingface import check_tokenizer

X = torch.rand(2, 3, 64, 64)


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("resnet10t", num_classes=5).eval()


def answer(module: nn.Module) -> Tensor:
    with torch.no_grad():
        out = module(X)
    return out if isinstance(out, Tensor) else out.logits


def test_whole_module(net: nn.Module, tmp_path: Path) -> None:
    torch.save(net.train(), tmp_path / "mine.pt")
    loaded = load_model(str(tmp_path / "mine.pt"))
    assert loaded.name == "mine"
    assert not loaded.module.training
    assert torch.equal(answer(loaded.module), answer(net.eval()))
    assert loaded.preprocess.size == net.pretrained_cfg["input_size"][1:]


WRAPPED = {
    "plain": lambda weights: weights,
    "state_dict": lambda weights: {"epoch": 3, "state_dict": weights, "optimizer": {"state": {}}},
    "model": lambda weights: {"model": weights},
    "parallel": lambda weights: {"model_state_dict": {f"module.{k}": w for k, w in weights.items()}},
}


@pytest.mark.parametrize("how", WRAPPED)
def test_state_dict(how: str, net: nn.Module, tmp_path: Path) -> None:
    """With --arch, and the number of classes from the weights."""
    torch.save(WRAPPED[how](net.state_dict()), tmp_path / "w.pth")
    loaded = load_model(str(tmp_path / "w.pth"), arch="timm:resnet10t")
    assert torch.equal(answer(loaded.module), answer(net))
    assert loaded.labels is None


def test_safetensors(net: nn.Module, tmp_path: Path) -> None:
    save_file(net.state_dict(), tmp_path / "w.safetensors")
    assert torch.equal(answer(load_model(str(tmp_path / "w.safetensors"), arch="timm:resnet10t").module), answer(net))


def test_torchvision_arch(tmp_path: Path) -> None:
    net = torchvision.models.mobilenet_v3_small(num_classes=7).eval()
    torch.save(net.state_dict(), tmp_path / "w.pt")
    loaded = load_model(str(tmp_path / "w.pt"), arch="torchvision:mobilenet_v3_small")
    assert torch.equal(answer(loaded.module), answer(net))
    assert loaded.preprocess.crop_pct == 224 / 256


def test_half_precision_is_kept(net: nn.Module, tmp_path: Path) -> None:
    torch.save({k: w.half() if w.is_floating_point() else w for k, w in net.state_dict().items()}, tmp_path / "w.pt")
    loaded = load_model(str(tmp_path / "w.pt"), arch="timm:resnet10t")
    assert {p.dtype for p in loaded.module.parameters()} == {torch.float16}


def test_factory(tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("WIDTH = 4\n")
    (tmp_path / "nets.py").write_text(
        "from torch import nn\nfrom beside import WIDTH\n"
        "def net(): return nn.Sequential(nn.Conv2d(3, WIDTH, 3), nn.Flatten(), nn.Linear(4 * 62 * 62, 2))\n"
        "def not_a_net(): return 3\n"
        "def wide(width): return net()\n"
        "def unlucky(): raise RuntimeError('no\\nluck')\n"
    )
    (tmp_path / "broken.py").write_text("import no_such_package\n")
    assert load_model(f"{tmp_path}/nets.py:net").module[0].out_channels == 4
    with pytest.raises(FxlrpError, match="no function nt; it has net, not_a_net, wide"):
        load_model(f"{tmp_path}/nets.py:nt")
    with pytest.raises(FxlrpError, match="returns a int"):
        load_model(f"{tmp_path}/nets.py:not_a_net")
    for factory, said in (("wide", "TypeError: wide.. missing 1 required"), ("unlucky", "RuntimeError: no; it should")):
        with pytest.raises(FxlrpError, match=f"nets.py:{factory} raised {said}"):
            load_model(f"{tmp_path}/nets.py:{factory}")
    with pytest.raises(FxlrpError, match=r"broken\.py does not run here \(ModuleNotFoundError: "):
        load_model(f"{tmp_path}/broken.py:net")


def test_random_weights_are_the_same_each_time() -> None:
    before = torch.get_rng_state()
    a, b = (load_model("torchvision:squeezenet1_1", pretrained=False) for _ in range(2))
    assert torch.equal(answer(a.module), answer(b.module))
    assert torch.equal(torch.get_rng_state(), before)
    assert a.labels is not None
    assert a.labels[1] == "goldfish"


def tiny(folder: Path) -> nn.Module:
    config = transformers.AutoConfig.for_model(
        "vit", hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=64
    )
    config.id2label, config.label2id = {0: "cat", 1: "dog", 2: "owl"}, {"cat": 0, "dog": 1, "owl": 2}
    torch.manual_seed(0)
    model = transformers.AutoModelForImageClassification.from_config(config).eval()
    model.save_pretrained(folder)
    return model


def test_huggingface_folder(tmp_path: Path) -> None:
    model = tiny(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(
        '{"size": {"height": 64, "width": 64}, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],'
        '"resample": 2}'
    )
    for spec in (str(tmp_path), f"hf:{tmp_path}"):
        loaded = load_model(spec)
        torch.testing.assert_close(answer(loaded.module), answer(model))
        assert loaded.labels == ["cat", "dog", "owl"]
        assert loaded.preprocess.size == (64, 64)
        assert loaded.preprocess.interpolation == "bilinear"
        assert loaded.preprocess.squash
    torch.save(model.state_dict(), tmp_path / "w.pt")
    torch.testing.assert_close(answer(load_model(str(tmp_path / "w.pt"), arch=f"hf:{tmp_path}").module), answer(model))


def test_huggingface_folder_with_code_of_its_own(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    (tmp_path / "code.py").write_text(f"open('{marker}', 'w')")
    (tmp_path / "config.json").write_text(
        '{"model_type": "theirs", "auto_map": {"AutoConfig": "code.Config"}, "architectures": ["Theirs"]}'
    )
    with pytest.raises(FxlrpError, match="Cannot load hf:"):
        load_model(str(tmp_path))
    assert not marker.exists()


def test_weights_that_do_not_fit(net: nn.Module, tmp_path: Path) -> None:
    weights = net.state_dict()
    weights["extra.weight"] = weights.pop("layer1.0.conv1.weight")
    weights["conv1.0.weight"] = torch.rand(9, 3, 3, 3)
    torch.save(weights, tmp_path / "w.pt")
    said = r"1 missing \(layer1.0.conv1.weight\); 1 unexpected \(extra.weight\); .*\[9, 3, 3, 3\], not \[24"
    with pytest.raises(FxlrpError, match=said):
        load_model(str(tmp_path / "w.pt"), arch="timm:resnet10t")


def script(path: Path) -> Path:
    torch.jit.script(nn.Conv2d(3, 4, 3)).save(path)
    return path


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_one_sentence_each(net: nn.Module, tmp_path: Path) -> None:
    weights = str(tmp_path / "w.pt")
    torch.save(net.state_dict(), weights)
    torch.save([1, 2], tmp_path / "list.pt")
    (tmp_path / "bad.safetensors").write_bytes(b"no")
    cases: list[tuple[str, str | None, str]] = [
        ("nothing.pt", None, r"There is no file nothing\.pt"),
        ("nothing", None, "There is no file or folder nothing; a model is"),
        (str(tmp_path), None, r"has no config\.json"),
        (weights, None, "say which one with --arch timm:NAME"),
        (weights, "timm:resnet10", "did you mean timm:resnet10t"),
        (weights, "torchvision:resnt18", "did you mean torchvision:resnet18"),
        (weights, "resnet18", "There is no file or folder resnet18"),
        ("timm:nope", None, r"There is no model timm:nope; in Python, timm\.list_models\(\) lists"),
        ("timm:resnet10t", "timm:resnet10t", "--arch goes with a file"),
        (str(tmp_path / "list.pt"), None, "holds a list, neither"),
        (str(tmp_path / "bad.safetensors"), "timm:resnet10t", "not a safetensors file"),
        (str(script(tmp_path / "script.pt")), None, r"TorchScript.*torch\.save\(model"),
    ]
    for spec, arch, said in cases:
        with pytest.raises(FxlrpError, match=said):
            load_model(spec, arch=arch)


@pytest.mark.parametrize("spec", ["timm:resnet10t", "torchvision:resnet18", "hf:someone/something"])
def test_no_network(spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: object, **kwargs: object) -> None:
        raise socket.gaierror("Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unreachable)
    monkeypatch.setattr("fxlrp.inputs.hubs.getproxies", dict)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    start = time.monotonic()
    with pytest.raises(FxlrpError, match="no network"):
        load_model(spec)
    assert time.monotonic() - start < 10


def folder(tmp_path: Path, **changes: Any) -> Path:
    """A small text model with something in its config changed."""
    source = Path(__file__).parents[2] / "examples" / "text"
    out = shutil.copytree(source, tmp_path / f"m{len(list(tmp_path.iterdir()))}")
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | changes))
    return out


EVIL = "open({!r}, 'w').close()\n"
CONFIGS: dict[str, dict[str, Any]] = {
    "a class of its own code": {
        "auto_map": {"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil"},
        "model_type": "evil",
    },
    "a class that asks": {"auto_map": {"AutoModel": "evil.Evil"}, "architectures": ["AutoModel"]},
    "a class that asks, of a task": {
        "auto_map": {"AutoModelForSequenceClassification": "evil.Evil"},
        "architectures": ["AutoModelForSequenceClassification"],
    },
    "a function": {"architectures": ["pipeline"]},
    "a class that is no model": {"architectures": ["Trainer"]},
    "a model of another kind": {"architectures": ["GPT2LMHeadModel"]},
    "no class": {"architectures": "x"},
    "a huge width": {"hidden_size": 10**9, "dim": 10**9, "intermediate_size": 10**9},
    "a large width": {"hidden_size": 10**5, "dim": 10**5, "intermediate_size": 10**6, "hidden_dim": 10**6},
    "many layers": {"num_hidden_layers": 10**7, "n_layers": 10**7},
    "long texts": {"max_position_embeddings": 3 * 10**7, "vocab_size": 3 * 10**7},
    "no width": {"hidden_size": 0, "num_attention_heads": 0},
    "labels in a list": {"id2label": ["a", "b"]},
    "labels without end": {"id2label": {"999999999": "x"}},
    "nested": {"x": functools.reduce(lambda inner, _: [inner], range(500), 1)},
    "a kind of numbers that is none": {"dtype": "float1000"},
    "a quantisation": {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}},
}


@pytest.mark.parametrize("how", CONFIGS)
def test_hostile_configs_are_one_sentence(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    request.addfinalizer(functools.partial(sys.setrecursionlimit, sys.getrecursionlimit()))
    sys.setrecursionlimit(1000)  # Inductor doubles it, and then nothing is nested too deeply
    marker = tmp_path / "marker"
    monkeypatch.setattr("builtins.input", lambda *asked: pytest.fail(f"asks {asked} on the terminal"))
    path = folder(tmp_path, **CONFIGS[how])
    (path / "evil.py").write_text(EVIL.format(str(marker)))
    begun = time.process_time()
    with pytest.raises(FxlrpError) as error:
        load_model(str(path))
    assert "\n" not in str(error.value)
    assert time.process_time() - begun < 5
    assert not marker.exists()


def test_weights_in_a_pickle_are_looked_at(tmp_path: Path) -> None:
    path = folder(tmp_path)
    model = load_model(str(path)).module
    (path / "model.safetensors").unlink()
    torch.save(model.state_dict(), path / "pytorch_model.bin")
    ids = torch.arange(5)[None]
    torch.testing.assert_close(load_model(str(path)).module(ids).logits, model(ids).logits)
    torch.save({"w": os.system}, path / "pytorch_model.bin")
    with pytest.raises(FxlrpError, match="more than layers and tensors"):
        load_model(str(path))


WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SAFE = [  # of GPT-2, Llama 3, Qwen 2, GPT-4o, DeepSeek and BLOOM
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    WORDS + r"|\p{N}{1,3}|" + REST,
    WORDS + r"|\p{N}|" + REST,
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re)?|\p{N}{1,3}|" + REST,
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*",
    r" ?[^(\s|[.,!?…。，、।۔،])]+",
    r"(?=(\d{3})+(?!\d))",
]
EXPLOSIVE = [r"(a+)+$", r"(\p{L}*)*x", r"((a|aa)+)+b", r"(.*,){20}x", r".*.*.*.*.*x", r"(?:\s*\w+\s*)+!", "(" * 3000]


@pytest.mark.parametrize("key", ["Regex", "pattern"])
def test_patterns_of_tokenizers(key: str, tmp_path: Path) -> None:
    path = folder(tmp_path)
    for patterns, fine in ((SAFE, True), (EXPLOSIVE, False)):
        for pattern in patterns:
            cuts = {"type": "Split", "pattern": {key: pattern}, "behavior": "Isolated", "invert": False}
            (path / "tokenizer.json").write_text(json.dumps({"pre_tokenizer": cuts}))
            with nullcontext() if fine else pytest.raises(FxlrpError, match="cuts text by the pattern"):
                check_tokenizer(path)
