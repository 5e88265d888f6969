"""Load models by name: from files, timm, torchvision, Hugging Face, and Python files."""

from __future__ import annotations

import ast
import contextlib
import difflib
import importlib
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fxlrp.errors import FxlrpError
from fxlrp.export.artifact import ExportedExplainer
from fxlrp.inputs.checkpoints import INDEX, by_the_names_of, find_weights, shards_of
from fxlrp.inputs.exported import check_inputs, input_shape, load_exported
from fxlrp.inputs.hubs import first_line, loading
from fxlrp.inputs.huggingface import load_module
from fxlrp.inputs.labels import class_names, imagenet_labels
from fxlrp.inputs.limits import read_json
from fxlrp.inputs.pickles import is_torchscript, load_pickle
from fxlrp.inputs.pictures import Preprocess, described, from_processor, from_torchvision

ARCH = "timm:NAME, torchvision:NAME, hf:DIR or path/to/file.py:factory"


@dataclass
class LoadedModel:
    """A model with what is known of its inputs and outputs.

    module: in eval mode, on the CPU.  preprocess: how it takes pictures.
    labels: the name of each class, if the model came with them.
    notes: what was chosen on the way that a user should know of.
    checked: the shapes of inputs that the module was seen to take.
    """

    module: nn.Module
    name: str
    preprocess: Preprocess
    labels: list[str] | None = None
    notes: list[str] = field(default_factory=list)
    checked: set[tuple[int, ...]] = field(default_factory=set)

    def label(self, index: int) -> str:
        """Return the name of a class, or `class 7`."""
        return self.labels[index] if self.labels and index < len(self.labels) else f"class {index}"

    @property
    def reads_text(self) -> bool:
        """Tell whether the model takes token ids, by transformers' convention."""
        return getattr(self.module, "main_input_name", None) == "input_ids"

    def like(self, x: Tensor) -> Tensor:
        """Return x on the device and in the dtype of the model's weights.

        Raises FxlrpError if a network from a .pt2 would make tensors out of all proportion of it.
        """
        weights = (p for p in self.module.parameters() if p.is_floating_point())
        weight = next(weights, x)
        x = x.to(weight.device, weight.dtype)
        if (shape := tuple(x.shape)) not in self.checked:
            check_inputs(self.module, x)
            self.checked.add(shape)
        return x


def load_model(
    spec: str,
    *,
    arch: str | None = None,
    trust: bool = False,
    pretrained: bool = True,
    weights: str | None = None,
) -> LoadedModel:
    """Load the model that `spec` names.

    spec: a .pt or .pth with a module or, with `arch`, a state dict; a .safetensors with `arch`; a .pt2; a folder of
      Hugging Face's; or one of those that can be an `arch`.
    arch: timm:NAME, torchvision:NAME, hf:DIR or path/to/file.py:factory, with what else they are made with behind, as
      in timm:mobilenetv2_100,pad_type=same.
    weights: of a checkpoint with several state dicts, the key of the one that is meant, as model_ema.
    trust: unpickle whatever the file asks for, which may be any code.
    pretrained: False gives names random weights, the same each time.

    Raises FxlrpError: no such file or name, no network, weights that do not fit, a pickle that wants too much.
    """
    path = Path(spec)
    for code in (spec, arch):
        if code is not None and code.endswith(".py"):
            raise _without_function(code)
    if spec.endswith((".pt2", ".pt", ".pth", ".bin", ".ckpt", ".safetensors")) or path.is_file():
        loaded = _from_file(path, arch, trust, weights)
    elif weights is not None:
        raise FxlrpError(f"There is no file {spec}: --weights goes with a checkpoint.")
    elif arch is not None:
        raise FxlrpError(f"There is no file {spec}: --arch goes with a file of weights.")
    elif path.is_dir():
        loaded = _huggingface(spec, pretrained)
    else:
        loaded = _build(spec, pretrained)
    loaded.module.eval()
    return loaded


def _build(spec: str, pretrained: bool, **options: Any) -> LoadedModel:
    """Build a model by name, with weights of its makers' or random ones.  Raises FxlrpError if there is none such."""
    spec, *more = spec.split(",")
    options = {**dict(map(_option, more)), **options}
    kind, _, name = spec.partition(":")
    file, _, factory = spec.rpartition(":")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if file.endswith(".py"):
            return _from_python(Path(file), factory, options)
        if kind in _MAKERS and name:
            return _MAKERS[kind](name, pretrained, **options)
    if kinds := _kinds_of(spec):
        raise FxlrpError(f"There is no file or folder {spec}; did you mean {' or '.join(kinds)}?")
    raise FxlrpError(f"There is no file or folder {spec}; a model is a file, a folder, {ARCH}.")


def _option(text: str) -> tuple[str, Any]:
    """Return the name and value of an option behind a name, as num_classes=10 or pad_type=same."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise FxlrpError(f"{text!r} behind a model's name is no option; write timm:NAME,option=value.")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def _kinds_of(name: str) -> list[str]:
    """Return the specs of the models of that name in timm and torchvision, where these are installed."""
    specs = []
    for kind, place in (("timm", "timm"), ("torchvision", "torchvision.models")):
        with contextlib.suppress(ImportError):
            specs += [f"{kind}:{name}"] if name in importlib.import_module(place).list_models() else []
    return specs


def _timm(name: str, pretrained: bool, **options: Any) -> LoadedModel:
    import timm

    if timm.models.split_model_name_tag(name)[0] not in timm.list_models():
        raise _unknown(f"timm:{name}", timm.list_models())
    with loading(f"the weights of timm:{name}", pretrained):
        module = timm.create_model(name, pretrained=pretrained, **options)
    return loaded_from(module, name)


def _torchvision(name: str, pretrained: bool, **options: Any) -> LoadedModel:
    import torchvision.models as zoo

    if name not in zoo.list_models():
        raise _unknown(f"torchvision:{name}", zoo.list_models())
    weights = zoo.get_model_weights(name).DEFAULT
    if not pretrained and "weights_backbone" in zoo.get_model_builder(name).__annotations__:
        options["weights_backbone"] = None
    with loading(f"the weights of torchvision:{name}", pretrained):
        module = zoo.get_model(name, weights=weights if pretrained else None, **options)
    return loaded_from(module, name, from_torchvision(weights), weights.meta.get("categories"))


def _huggingface(name: str, pretrained: bool) -> LoadedModel:
    module, config = load_module(name, pretrained)
    named = getattr(config, "id2label", None)
    labels = class_names(named, f"The id2label of {name}") if named else []
    if all(label == f"LABEL_{i}" for i, label in enumerate(labels)):
        labels = []
    processor = Path(name) / "preprocessor_config.json"
    seen = getattr(module, "main_input_name", None) != "input_ids" and processor.is_file()
    preprocess = from_processor(read_json(processor)) if seen else None
    if preprocess is None and isinstance(size := getattr(config, "image_size", None), int):
        preprocess = Preprocess((size, size), guessed=True)
    return loaded_from(module, Path(name).name, preprocess, labels)


_MAKERS: dict[str, Callable[..., LoadedModel]] = {"timm": _timm, "torchvision": _torchvision, "hf": _huggingface}


def _from_python(file: Path, factory: str, options: dict[str, Any]) -> LoadedModel:
    """Return the model that a function in a Python file returns; its code is run, as its owner asked.

    Raises FxlrpError for a file that does not run, or a function that is not there, raises or returns no module.
    """
    if not file.is_file():
        raise FxlrpError(f"There is no file {file}.")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    code = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = sys.modules.get(file.stem, code)  # dataclasses and pickle look themselves up
    sys.path.insert(0, str(file.parent))
    try:
        spec.loader.exec_module(code)
    except Exception as error:
        raise FxlrpError(f"{file} does not run here ({first_line(error)}); mend it, or run from its folder.") from error
    finally:
        sys.path.remove(str(file.parent))
    if not callable(make := getattr(code, factory, None)):
        names = [n for n, f in vars(code).items() if callable(f) and getattr(f, "__module__", "") == file.stem]
        raise FxlrpError(f"{file} has no function {factory}; it has {', '.join(names) or 'none'}.")
    try:
        module = make(**options)
    except Exception as error:
        raise FxlrpError(
            f"{file}:{factory} raised {first_line(error)}; it should return a torch.nn.Module, called with nothing."
        ) from error
    if not isinstance(module, nn.Module):
        raise FxlrpError(f"{file}:{factory} returns a {type(module).__name__}; it should return a torch.nn.Module.")
    return loaded_from(module, factory)


def _without_function(file: str) -> FxlrpError:
    """Return the error for a Python file without the function that makes the model, with those that it has."""
    try:
        tree = ast.parse(Path(file).read_text("utf-8"))
    except (OSError, ValueError, SyntaxError):
        return FxlrpError(f"{file} can't be read as Python; give path/to/file.py:factory.")
    names = [n.name for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)]
    which = " or ".join(f"{file}:{name}" for name in names[:5]) or f"{file}:NAME"
    return FxlrpError(f"{file} is a Python file: say which function or class in it makes the model, {which}.")


def _from_file(path: Path, arch: str | None, trust: bool, key: str | None) -> LoadedModel:
    """Load a model from a file.  Raises FxlrpError for a file that holds none, and for weights that fit no `arch`."""
    if not path.is_file():
        raise FxlrpError(f"There is no file {path}.")
    if path.suffix == ".pt2":
        module = load_exported(path, trust=trust)
        if isinstance(module, ExportedExplainer):
            return _exported_explainer(module, path)
        return loaded_from(module, path.stem)
    content, notes = find_weights(_saved(path, trust), str(path), key)
    if isinstance(content, nn.DataParallel):
        content = content.module
    if isinstance(content, nn.Module):
        try:
            return replace(loaded_from(content.eval().to("cpu"), path.stem), notes=notes)
        except FxlrpError:
            raise
        except Exception as error:  # a layer of which a part was not saved
            raise FxlrpError(
                f"{path} holds a module that is not whole ({first_line(error)}): save it again with torch.save."
            ) from error
    if arch is None:
        raise FxlrpError(f"{path} is a state dict, weights without a network: say which one with --arch {ARCH}.")
    loaded = _fit(content, arch, str(path))
    return replace(loaded, notes=[*notes, *loaded.notes])


def _saved(path: Path, trust: bool) -> Any:
    """Return what a .safetensors holds, or any other file that torch.save wrote.  Raises FxlrpError for other files."""
    if path.name.endswith((".safetensors", INDEX)):
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return {name: t for part in shards_of(path) for name, t in load_file(part).items()}
        except (SafetensorError, ValueError, RuntimeError, MemoryError) as error:
            raise FxlrpError(f"{path} is not a safetensors file, or it is damaged ({first_line(error)}).") from error
    if is_torchscript(path):
        raise FxlrpError(
            f"{path} is TorchScript, which hides the network's operators: where it was made, save the model itself "
            "with torch.save(model, 'model.pt'), or torch.export.save(torch.export.export(model, inputs), 'm.pt2')."
        )
    return load_pickle(path, trust=trust)


def _exported_explainer(module: ExportedExplainer, path: Path) -> LoadedModel:
    """Return an explainer with the preprocessing and class names it was exported with."""
    record = module.about.get("preprocess") or {}
    if not isinstance(record, dict):
        raise FxlrpError(f"{path} says of its pictures what can't be understood; export it again.")
    values: dict[str, Any] = {f.name: record[f.name] for f in fields(Preprocess) if f.name in record}
    for name, value in values.items():
        values[name] = tuple(value) if isinstance(value, list) else value
    preprocess = replace(Preprocess(), **values)
    labels = module.about.get("labels")
    return LoadedModel(module, path.stem, preprocess, class_names(labels, str(path)) if labels else None)


def _fit(weights: dict[str, Tensor], arch: str, source: str) -> LoadedModel:
    """Build an architecture with these weights; with as many classes as they have, if that is all that differs.

    Raises FxlrpError, naming `source`, for weights that do not fit.
    """
    loaded = _build(arch, pretrained=False)
    wanted = loaded.module.state_dict()
    weights, notes = by_the_names_of(wanted.keys(), weights)
    loaded.notes += notes
    wrong = [key for key in weights if key in wanted and weights[key].shape != wanted[key].shape]
    if wrong and weights.keys() == wanted.keys() and not arch.startswith("hf:") and ".py:" not in arch:
        # the head: only first axes differ, all by the same sizes
        heads = {(wanted[k].shape[:1], weights[k].shape[:1]) for k in wrong}
        if len(heads) == 1 and all(wanted[k].shape[1:] == weights[k].shape[1:] and weights[k].dim() for k in wrong):
            loaded = _build(arch, pretrained=False, num_classes=heads.pop()[1][0])
            loaded.labels = None
            wanted = loaded.module.state_dict()
            wrong = [key for key in weights if weights[key].shape != wanted[key].shape]
    problems = {
        "missing": sorted(wanted.keys() - weights.keys()),
        "unexpected": sorted(weights.keys() - wanted.keys()),
        "of another shape": [f"{k} {list(weights[k].shape)}, not {list(wanted[k].shape)}" for k in wrong],
    }
    if any(problems.values()):
        listed = "; ".join(f"{len(v)} {what} ({_first(v)})" for what, v in problems.items() if v)
        raise FxlrpError(f"The weights in {source} do not fit --arch {arch}: {listed}.")
    loaded.module.load_state_dict(weights)
    floats = {w.dtype for w in weights.values() if w.is_floating_point()}
    if len(floats) == 1:
        loaded.module.to(floats.pop())
    return loaded


def loaded_from(
    module: nn.Module, name: str = "the model", preprocess: Preprocess | None = None, labels: list[str] | None = None
) -> LoadedModel:
    """Add preprocessing and labels from where they are known best: the module itself, its hub, or a guess."""
    carried, names = described(module)
    preprocess = carried or preprocess or Preprocess(guessed=True)
    if preprocess.guessed and (shape := input_shape(module)) and len(shape) == 4 and any(shape[2:]):
        preprocess = Preprocess((shape[2] or shape[3], shape[3] or shape[2]), guessed=True)
    if not (names or labels) and [w.shape[:1] for w in list(module.state_dict().values())[-1:]] == [(1000,)]:
        labels = imagenet_labels()
    return LoadedModel(module, name, preprocess, names or labels or None)


def _unknown(name: str, names: list[str]) -> FxlrpError:
    """Return the error for a model that is not among these names, with the closest of them."""
    kind, _, wanted = name.partition(":")
    similar = difflib.get_close_matches(wanted, names, 3) or [n for n in names if wanted in n][:3]
    close = " or ".join(f"{kind}:{n}" for n in similar)
    lists = f"in Python, {'timm' if kind == 'timm' else 'torchvision.models'}.list_models() lists what there is."
    return FxlrpError(f"There is no model {name}; " + (f"did you mean {close}?" if close else lists))


def _first(names: list[str], n: int = 3) -> str:
    return ", ".join(names[:n]) + (", …" if len(names) > n else "")
