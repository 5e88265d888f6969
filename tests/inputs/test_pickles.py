"""Pickles: real models load, nothing a file asks for is run, and files that ask for it are refused."""

import builtins
import codecs
import contextlib
import functools
import os
import pickle
import resource
import time
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
import transformers
from timm.layers import Format
from torch import nn

from fxlrp import FxlrpError, convert
from fxlrp.inputs import load_model
from fxlrp.inputs.allowlist import admit
from fxlrp.inputs.pickles import load_pickle

MODELS = {
    "torchvision resnet": lambda: torchvision.models.resnet18(num_classes=5),
    "torchvision densenet": lambda: torchvision.models.DenseNet(8, (2, 2), 16),
    "torchvision mobilenet v2": lambda: torchvision.models.mobilenet_v2(num_classes=5),
    "torchvision mobilenet v3": lambda: torchvision.models.mobilenet_v3_small(num_classes=5),
    "torchvision efficientnet": lambda: torchvision.models.efficientnet_b0(num_classes=5),
    "torchvision vit": lambda: torchvision.models.VisionTransformer(64, 16, 1, 2, 16, 32, num_classes=5),
    "torchvision swin": lambda: torchvision.models.SwinTransformer([4, 4], 8, [1, 1], [1, 2], [4, 4], num_classes=5),
    "timm resnet": lambda: timm.create_model("resnet10t", num_classes=5),
    "timm vit": lambda: timm.create_model("vit_tiny_patch16_224", img_size=64, embed_dim=24, depth=1, num_classes=5),
    "timm convnext": lambda: timm.create_model("convnext_atto", depths=(1, 1, 1, 1), num_classes=5),
    "timm efficientnet": lambda: timm.create_model("efficientnet_b0", num_classes=5),
    "timm swin": lambda: timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=64, window_size=4, depths=(2, 1), num_heads=(1, 2), embed_dim=8
    ),
    "transformers vit": lambda: transformers.AutoModelForImageClassification.from_config(
        transformers.AutoConfig.for_model(
            "vit", hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=64
        )
    ),
    "parallel": lambda: nn.DataParallel(nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU())),
}


@pytest.mark.parametrize("name", MODELS)
def test_real_models_load(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    torch.save(model, tmp_path / "m.pt")
    again = load_pickle(tmp_path / "m.pt")
    x = torch.rand(2, 3, 64, 64)
    a, b = model(x), again(x)
    assert torch.equal(*(y if isinstance(y, torch.Tensor) else y.logits for y in (a, b)))


def test_text_models_load(tmp_path: Path) -> None:
    config = transformers.AutoConfig.for_model(
        "distilbert", dim=16, n_heads=2, n_layers=1, hidden_dim=16, vocab_size=50, num_labels=3
    )
    model = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    torch.save(model, tmp_path / "m.pt")
    ids = torch.arange(8)[None]
    assert torch.equal(load_pickle(tmp_path / "m.pt")(ids).logits, model(ids).logits)


def test_checkpoints_with_numpy_numbers_load(tmp_path: Path) -> None:
    saved = {"state_dict": {"w": torch.ones(2)}, "best": np.float64(0.5), "per_class": np.arange(6.0).reshape(2, 3)}
    torch.save(saved, tmp_path / "m.pt")
    found = load_pickle(tmp_path / "m.pt")
    assert found["best"] == 0.5
    assert np.array_equal(found["per_class"], saved["per_class"])


class Call:
    """Pickles as a call: whoever unpickles it runs function(*args)."""

    def __init__(self, function: object, *args: object) -> None:
        self.reduced = (function, args)

    def __reduce__(self) -> tuple:
        return self.reduced


def layer(**attributes: object) -> nn.Module:
    """A linear layer with attributes that no layer has."""
    module = nn.Linear(2, 2)
    vars(module).update(attributes)
    return module


class Theirs(nn.Module):
    """A module of nobody's package that runs code when it gets its state."""

    def __setstate__(self, state: dict) -> None:
        exec(state["code"])


def theirs(code: str) -> nn.Module:
    module = Theirs()
    module.code = code
    return module


RUN = {  # what runs the code in a string, in files that would make a marker file
    "eval": lambda code: Call(builtins.eval, code),
    "exec": lambda code: {"state_dict": {}, "extra": Call(builtins.exec, code)},
    "hidden in a layer": lambda code: layer(note=Call(builtins.exec, code)),
    "shell": lambda code: Call(os.system, f'python3 -c "{code}"'),
    "partial": lambda code: Call(functools.partial(exec, code)),
    "rebuild": lambda code: Call(torch._tensor._rebuild_from_type_v2, exec, torch.Tensor, (code,), {}),
    "graph module": lambda code: graph_module(code),
    "their class": theirs,
    "compile": lambda code: Call(torch.fx.graph_module._forward_from_src, f"{code}\ndef forward(): pass", {}, {}),
}


def graph_module(code: str) -> nn.Module:
    """A traced module whose source, which unpickling compiles, was replaced."""
    traced = torch.fx.symbolic_trace(nn.Sequential(nn.ReLU()))
    traced._code = f"{code}\n{traced._code}"
    return traced


@pytest.mark.parametrize("how", RUN)
def test_code_is_not_run(how: str, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    torch.save(RUN[how](f"open('{marker}', 'w').close()"), tmp_path / "m.pt")
    with pytest.raises(FxlrpError, match="--trust"):
        load_pickle(tmp_path / "m.pt")
    assert not marker.exists()
    if how not in ("graph module", "rebuild"):  # torch itself stops these two in this form
        with contextlib.suppress(FxlrpError):
            load_pickle(tmp_path / "m.pt", trust=True)
        assert marker.exists(), "the attack does nothing, so the test says nothing"


KEPT = {  # attributes that library code could call, with what the file would choose
    "loader": torch.load,
    "hub": torch.hub.load,
    "shell": os.system,
    "function at large": nn.functional.boolean_dispatch,
    "class that loads": transformers.PreTrainedModel,
    "class with a constructor": timm.models.resnet.ResNet,
    "script class": torch.jit.ScriptModule,
    "import": __import__,
}


@pytest.mark.parametrize("what", KEPT)
@pytest.mark.parametrize("where", ["forward", "_forward_hooks", "nested"])
def test_callables_are_not_kept(what: str, where: str, tmp_path: Path) -> None:
    value = {"forward": KEPT[what], "_forward_hooks": OrderedDict({0: KEPT[what]}), "nested": [({"a": KEPT[what]},)]}
    torch.save(layer(**{where: value[where]}), tmp_path / "m.pt")
    with pytest.raises(FxlrpError, match="--trust"):
        load_pickle(tmp_path / "m.pt")


def test_partials_are_inert(tmp_path: Path) -> None:
    torch.save(layer(norm=functools.partial(nn.LayerNorm, eps=1e-6)), tmp_path / "m.pt")
    assert not callable(load_pickle(tmp_path / "m.pt").norm)


def program(path: Path, *opcodes: bytes) -> Path:
    """A file as torch.save writes it, with a pickle put together by hand."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m/data.pkl", b"\x80\x02" + b"".join(opcodes) + b".")
        archive.writestr("m/version", "3\n")
        archive.writestr("m/byteorder", "little")
    return path


def name(of: object) -> bytes:
    return f"c{of.__module__}\n{of.__qualname__}\n".encode()


def text(value: str) -> bytes:
    return pickle.BINUNICODE + len(value.encode()).to_bytes(4, "little") + value.encode()


NET = name(timm.models.resnet.ResNet)
CONFIG = name(transformers.models.bert.configuration_bert.BertConfig)
MADE = NET + pickle.EMPTY_TUPLE + pickle.NEWOBJ
PROGRAMS = {
    "constructs a layer": [name(nn.Linear), b"K\x02K\x02", pickle.TUPLE2, pickle.REDUCE],
    "constructs a config": [CONFIG, pickle.EMPTY_TUPLE, pickle.REDUCE],
    "calls what it made": [MADE, pickle.EMPTY_TUPLE, pickle.REDUCE],
    "calls a function it may keep": [name(nn.functional.softmax), pickle.EMPTY_TUPLE, pickle.REDUCE],
    "makes with arguments": [NET, b"K\x02", pickle.TUPLE1, pickle.NEWOBJ],
    "state of slots": [CONFIG, pickle.EMPTY_TUPLE, pickle.NEWOBJ, b"N", b"}", pickle.TUPLE2, pickle.BUILD],
    "state of an enum": [
        *(name(Format), text("NCHW"), pickle.TUPLE1, pickle.REDUCE),
        *(b"}", text("_value_"), text("NLC"), pickle.SETITEM, pickle.BUILD, MADE, pickle.TUPLE2),
    ],
    "rebuilds by a class": [
        *(b"ctorch._tensor\n_rebuild_from_type_v2\n", pickle.MARK, NET, b"ctorch\nTensor\n)}", pickle.TUPLE),
        *(pickle.REDUCE, MADE, pickle.TUPLE2),
    ],
    "class from the memo": [NET, b"q\x00", b")\x81}", text("a"), b"h\x00", pickle.SETITEM, pickle.BUILD],
    "getattr chain": [
        *(b"c__builtin__\ngetattr\n", NET, text("__init__"), pickle.TUPLE2, pickle.REDUCE, b")", pickle.REDUCE),
    ],
    "array of objects": [
        *(b"cnumpy\ndtype\n", text("O8"), pickle.NEWFALSE, pickle.NEWTRUE, pickle.TUPLE3, pickle.REDUCE),
    ],
    "extension": [MADE, b"\x82\x01"],
    "old instance": [b"(itimm.models.resnet\nResNet\n"],
    "stack global": [text("os"), text("system"), b"\x93"],
}


@pytest.mark.parametrize("how", PROGRAMS)
def test_programs_no_model_needs_are_refused(how: str, tmp_path: Path) -> None:
    with pytest.raises(FxlrpError, match=r"--trust|not a model file fxlrp can read"):
        load_pickle(program(tmp_path / "m.pt", *PROGRAMS[how]))
    assert Format.NCHW.value == "NCHW"


HOOKS = sorted(key for key in vars(nn.Linear(1, 1)) if "hook" in key)


@pytest.mark.parametrize("kind", HOOKS)
def test_stored_hooks_are_refused(kind: str, tmp_path: Path) -> None:
    """Also hooks of functions that may be kept as attributes: torch would call them."""
    torch.save(nn.Sequential(layer(**{kind: OrderedDict({0: nn.functional.relu})})), tmp_path / "m.pt")
    with pytest.raises(FxlrpError, match="stores hooks"):
        load_pickle(tmp_path / "m.pt")


def test_hooks_of_tensors_are_refused(tmp_path: Path) -> None:
    hooks = OrderedDict({0: nn.functional.relu})
    torch.save({"w": Call(torch._utils._rebuild_parameter, torch.ones(2), True, hooks)}, tmp_path / "m.pt")
    with pytest.raises(FxlrpError, match="hooks of a tensor"):
        load_pickle(tmp_path / "m.pt")


def without(key: str) -> nn.Module:
    module = nn.Linear(2, 2)
    del vars(module)[key]
    return module


def inside_itself() -> nn.Module:
    module = nn.Sequential(nn.Linear(2, 2))
    module._modules["again"] = module
    return module


def doubled(times: int) -> nn.Module:
    """A module that holds itself twice, again and again: small in a file, endless to walk through."""
    module: nn.Module = nn.Linear(2, 2)
    for _ in range(times):
        module = nn.Sequential(module, module)
    return module


NOT_WHOLE = {
    **{f"without {key}": lambda key=key: without(key) for key in ("training", "_parameters", "_buffers", "_modules")},
    "inside itself": inside_itself,
    "twice and twice again": lambda: doubled(40),
    "a method replaced": lambda: layer(forward=nn.functional.relu),
    "a method that is a number": lambda: layer(eval=3),
    "a number for a weight": lambda: layer(_parameters={"weight": 3}),
    "attributes of a weight": lambda: layer(_parameters={"weight": attributed(detach=3)}),
}


def attributed(**attributes: object) -> nn.Parameter:
    weight = nn.Parameter(torch.ones(2, 2))
    vars(weight).update(attributes)
    return weight


@pytest.mark.parametrize("how", NOT_WHOLE)
def test_modules_that_are_not_whole_are_refused(how: str, tmp_path: Path) -> None:
    torch.save(NOT_WHOLE[how](), tmp_path / "m.pt")
    with pytest.raises(FxlrpError, match="as no saved model does"):
        load_pickle(tmp_path / "m.pt")


def test_attributes_of_weights_load(tmp_path: Path) -> None:
    torch.save(layer(_parameters={"weight": attributed(_no_weight_decay=True)}), tmp_path / "m.pt")
    assert load_pickle(tmp_path / "m.pt").weight._no_weight_decay is True


def test_a_module_that_lacks_an_attribute_is_one_sentence(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3))
    del vars(module[0])["stride"]
    torch.save(module, tmp_path / "m.pt")
    with pytest.raises(FxlrpError, match="stride"):
        convert(load_model(str(tmp_path / "m.pt")).module)(torch.rand(1, 3, 8, 8))


def edited(path: Path, change: Callable[[bytes], bytes]) -> Path:
    """The file with its pickle changed."""
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for record, data in records.items():
            archive.writestr(record, change(data) if record.endswith("data.pkl") else data)
    return path


def test_tensors_lie_within_their_numbers(tmp_path: Path) -> None:
    """torch would read on behind the numbers in the file."""
    torch.save({"w": torch.ones(1000)}, tmp_path / "m.pt")
    count = b"M\xe8\x03"
    for old, new in ((count, b"M\xff\xff"), (count + b"\x85", b"M\xe9\x03\x85"), (b"K\x01\x85", b"K\x02\x85")):
        torch.save({"w": torch.ones(1000)}, tmp_path / "m.pt")
        with pytest.raises(FxlrpError, match="numbers"):
            load_pickle(edited(tmp_path / "m.pt", lambda data, old=old, new=new: data.replace(old, new)))


NESTED = b"".join(b"q" + bytes([i]) + b"h" + bytes([i]) + pickle.TUPLE2 for i in range(60))
BOMBS = {
    "tuples of tuples as a key": [b"}N", NESTED, b"Ns"],
    "tuples of tuples in a set": [b"cbuiltins\nset\n]N", NESTED, b"a", pickle.TUPLE1, pickle.REDUCE],
    "zeros by the number": [b"cbuiltins\nbytearray\nJ\x00\x00\x00\x7f", pickle.TUPLE1, pickle.REDUCE],
    "a slow codec": [name(codecs.encode), text("x"), text("idna"), pickle.TUPLE2, pickle.REDUCE],
    "lists in lists": [b"]" * 3000 + b"a" * 2999],
    "no end of steps": [b"N0" * 1_100_000, b"N"],
}


@pytest.mark.parametrize("how", BOMBS)
def test_bombs_are_refused_at_once(how: str, tmp_path: Path) -> None:
    begun = time.process_time()
    with pytest.raises(FxlrpError, match="as no saved model does"):
        load_pickle(program(tmp_path / "m.pt", *BOMBS[how]))
    assert time.process_time() - begun < 5


def test_compressed_files_are_refused_unread(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("m/data.pkl", b"\0" * 2**28)
        archive.writestr("m/version", "3\n")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(FxlrpError, match="not a model file fxlrp can read"):
        load_pickle(tmp_path / "m.pt")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**16


def test_python_2_names_are_followed(tmp_path: Path) -> None:
    with pytest.raises(FxlrpError, match=r"builtins\.eval"):
        load_pickle(program(tmp_path / "m.pt", b"c__builtin__\neval\n", text("1"), pickle.TUPLE1, pickle.REDUCE))


def test_old_format(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2)}, tmp_path / "sd.pt", _use_new_zipfile_serialization=False)
    assert torch.equal(load_pickle(tmp_path / "sd.pt")["w"], torch.ones(2))
    torch.save(nn.Linear(2, 2), tmp_path / "m.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(FxlrpError, match="old format"):
        load_pickle(tmp_path / "m.pt")


def test_refusal_lists_what_was_wanted(tmp_path: Path) -> None:
    torch.save(layer(a=os.system, b=torch.load), tmp_path / "m.pt")
    with pytest.raises(FxlrpError, match=r"posix\.system.*torch\.serialization\.load"):
        load_pickle(tmp_path / "m.pt")


def test_trust_without_the_code_says_so(tmp_path: Path) -> None:
    program(tmp_path / "m.pt", b"cno_such_package\nNet\n)\x81}b")
    with pytest.raises(FxlrpError, match="run from the folder that holds it"):
        load_pickle(tmp_path / "m.pt", trust=True)


def test_damaged_file(tmp_path: Path) -> None:
    (tmp_path / "m.pt").write_bytes(b"not a model")
    with pytest.raises(FxlrpError, match="not a model file fxlrp can read, or it is damaged; give a"):
        load_pickle(tmp_path / "m.pt")


def test_layers_are_admitted_after_something_was_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nn.Module, "__setstate__", lambda self, state: None)  # as torch._dynamo puts its own there
    assert admit("torch.nn.modules.activation.ReLU") is nn.ReLU
