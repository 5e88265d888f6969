"""Loading the .pt2 of torch.export without letting it run code.

The archive is a program in JSON, raw tensors, and some pickles.  torch.export.load evaluates expressions in the JSON,
looks any function up by its name in it, and unpickles freely where the safe way fails.  So what an exported network
needs is spelled out here, and anything else is refused.
"""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fxlrp.artifact import RECORD, ExportedExplainer
from fxlrp.errors import FxlrpError

EXTRA = f"extra/{RECORD}"
_RECORDS = re.compile(
    r"models/model\.json|data/(weights|constants)/(model_\w+_config\.json|weight_\d+|tensor_\d+)"
    r"|data/sample_inputs/model\.pt|archive_format|archive_version|byteorder|version|\.data/\w+|\.format_version"
    rf"|{re.escape(EXTRA)}"
)
_NAME = re.compile(r"[\w.]*")
_TARGET = re.compile(
    r"torch\.ops\.aten\.(?!from_file|save|load|_print)\w+\.\w+"
    r"|torch\.ops\.higher_order\.wrap_with_(set_grad_enabled|autocast)"
    r"|_operator\.(getitem|add|sub|mul|truediv|floordiv|mod|pow|neg|eq|ne|lt|le|gt|ge|and_|or_|not_)"
    r"|torch\.sym_(int|float|max|min|not|sum|ite)|math\.(ceil|floor|trunc|sqrt)"
)
_SYMBOLIC = re.compile(  # sizes as sympy writes them; sympy evaluates them, so only these calls and no attributes
    r"((Symbol|Integer|Float|Rational|Add|Mul|Pow|Mod|PythonMod|FloorDiv|CleanDiv|CeilDiv|CeilToInt|FloorToInt"
    r"|IntTrueDiv|Max|Min|Eq|Ne|Lt|Le|Gt|Ge|Equality|Unequality|StrictLessThan|LessThan|StrictGreaterThan|GreaterThan"
    r"|And|Or|Not|Where)\(|'[a-z]+\d+'|(positive|integer|nonnegative|finite|real|zero|size)=(True|False)|[a-z]+\d+"
    r"|\d+(\.\d+)?|[(), +*/<>=!&|~-])*"
)
_SPEC = re.compile(r'[\w\s.",\[\]{}:\\]*')
_TREES = re.compile(r"builtins\.(list|tuple|dict)|collections\.OrderedDict|transformers\.[\w.]+")

_STRINGS = {  # the key a string stands under → what it may be; a name under any other key
    "target": _TARGET,
    "as_operator": _TARGET,
    "expr_str": _SYMBOLIC,
    "as_expr": _SYMBOLIC,
    "in_spec": _SPEC,
    "out_spec": _SPEC,
    "as_float": re.compile(r"-?Infinity|NaN"),
    "as_string": re.compile(r"[\w.,> -]*"),
    "torch_version": re.compile(r"[\w.+-]*"),
    # comments and records, kept as text
    **dict.fromkeys(("stack_trace", "nn_module_stack", "torch_fn"), re.compile(r"[^\r\x0b\x0c]*")),
    "guards_code": re.compile(r".*", re.DOTALL),  # Python code: not run, see below
}


def _check(value: Any, key: str = "") -> None:
    """Raise ValueError, saying what, if there is anything in the JSON that a network has no use for."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if not _NAME.fullmatch(name) or name in ("source_fn_stack", "from_node"):
                raise ValueError(f"a name {name[:80]!r}")
            _check(inner, name)
    elif isinstance(value, list):
        for inner in value:
            _check(inner, key)
    elif isinstance(value, str):
        if not _STRINGS.get(key, _NAME).fullmatch(value):
            raise ValueError(f"{key} {value[:80]!r}")
        if key in ("in_spec", "out_spec") and value:
            _check_tree(json.loads(value)[1])
    if value is True and key == "use_pickle":
        raise ValueError("a pickled tensor")


def _check_tree(spec: dict[str, Any]) -> None:
    """Inputs and outputs nested in plain containers, dicts by plain names."""
    if spec["type"] is not None and not _TREES.fullmatch(spec["type"]):
        raise ValueError(f"a container of type {spec['type']!r}")
    if not re.fullmatch(r'null|[\w", \[\].]*', spec["context"] or ""):
        raise ValueError(f"a container with {spec['context']!r}")
    for inner in spec["children_spec"]:
        _check_tree(inner)


def _about(said: Any) -> dict[str, Any]:
    """What an exported explainer says about itself, if it is of the kind it should be."""
    names, places = said["inputs"], said["explained"]
    if not all(isinstance(n, str) for n in names) or not all(
        isinstance(i, int) and 0 <= i < len(names) for i in places
    ):
        raise ValueError(f"a record {EXTRA!r} that names no inputs")
    if not isinstance(said["contrast"], str | int | None) or not isinstance(said["rulebook"], str):
        raise ValueError(f"a record {EXTRA!r} that names no rulebook")
    return said


def load_exported(path: Path, *, trust: bool = False) -> nn.Module:
    """The module in a .pt2 that torch.export.save wrote, or the explainer that `fxlrp export` did.

    Raises FxlrpError, without having run anything of the file's, if it holds more than a network of aten operators.
    """
    from torch.export.pt2_archive._package import PT2ArchiveReader, load_pt2

    about = None
    try:
        if trust:
            return _in_eval(torch.export.load(path).module())
        with PT2ArchiveReader(str(path)) as archive:
            for name in archive.get_file_names():
                if not _RECORDS.fullmatch(name):
                    raise ValueError(f"a record {name!r}")
                if name == EXTRA:
                    about = _about(json.loads(archive.read_bytes(name)))
                elif name.endswith(".json"):
                    _check(json.loads(archive.read_bytes(name)))
                elif name.endswith(".pt"):  # where this fails torch.export would unpickle without its allow-list
                    torch.load(io.BytesIO(archive.read_bytes(name)), weights_only=True)
    except Exception as error:
        why = str(error).split("\n")[0][:200]
        raise FxlrpError(
            f"{path} holds more than a network of aten operators, or was not written by torch.export.save ({why}): "
            "export it again with this version of torch, or pass --trust if you trust whoever made it."
        ) from error
    try:
        program = load_pt2(str(path)).exported_programs["model"]
        module = _in_eval(program.module(check_guards=False))  # guards are Python code from the file
        return module if about is None else ExportedExplainer(module, about).eval()
    except Exception as error:
        raise FxlrpError(f"{path} cannot be loaded by torch {torch.__version__}; export it again ({error}).") from error


def _in_eval(module: nn.Module) -> nn.Module:
    """In eval mode for those who ask; the mode it was exported in is in its operators, and its own eval() raises."""
    for name in ("train", "eval"):
        vars(module).pop(name, None)
    return module.eval()


def input_shape(module: nn.Module) -> list[int] | None:
    """The shape of an exported module's first input, 0 where any size will do; None if it is no exported module."""
    module = module.module if isinstance(module, ExportedExplainer) else module
    if isinstance(module, torch.fx.GraphModule):
        for node in module.graph.nodes:
            if node.op == "placeholder" and isinstance(node.meta.get("val"), torch.Tensor):
                return [int(n) if isinstance(n, int) else 0 for n in node.meta["val"].shape]
    return None
