"""Load the .pt2 of torch.export without letting it run code.

Such an archive is a program in JSON, raw numbers, and some pickles.  torch.export.load evaluates expressions in the
JSON as Python, looks any function up by its name in it, and unpickles freely.  So it is never given the archive: what a
network of operators consists of is read from it here, strictly (`program`, `checks`, `operators`, `expressions`), a
clean archive is made of that, and torch loads the clean one.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fxlrp.errors import FxlrpError
from fxlrp.export.artifact import RECORD, ExportedExplainer
from fxlrp.inputs.archive import Archive
from fxlrp.inputs.exported.bounds import check_bounds
from fxlrp.inputs.exported.checks import check_within
from fxlrp.inputs.exported.kernels import replacements
from fxlrp.inputs.exported.program import LONGEST_JSON, read_payload, read_program
from fxlrp.inputs.limits import parse_json
from fxlrp.inputs.pickled_program import LONGEST, check_program

EXTRA = f"extra/{RECORD}"
PROGRAM = "models/model.json"
SAMPLE = "data/sample_inputs/model.pt"
_FILES = re.compile(
    rf"{PROGRAM}|{SAMPLE}|{EXTRA}|data/(weights/(model_weights_config\.json|weight_\d+)"
    r"|constants/(model_constants_config\.json|tensor_\d+))"
    r"|archive_format|archive_version|byteorder|version|\.data/\w+|\.format_version"
)


def load_exported(path: Path, *, trust: bool = False) -> nn.Module:
    """Load the module in a .pt2 that torch.export.save wrote, or the explainer that `fxlrp export` wrote.

    Raises FxlrpError, without having run anything of the file's, if it holds more than a network of aten operators.
    """
    if trust:
        return _in_eval(_loaded_by_torch(path, path))
    try:
        with Archive(path) as archive:
            about = _about(parse_json(archive.read(EXTRA), EXTRA)) if EXTRA in archive.names else None
            clean = _clean_copy(archive)
    except Exception as error:
        why = (str(error).split("\n")[0] or type(error).__name__)[:200]
        raise FxlrpError(
            f"{path} holds more than a network of aten operators, or was not written by torch.export.save ({why}): "
            "export it again with this version of torch, or pass --trust if you trust whoever made it."
        ) from error
    module = _in_eval(_loaded_by_torch(clean, path))
    _replace_trusting(module)
    check_bounds(module, _example(module))
    return module if about is None else ExportedExplainer(module, about).eval()


def _loaded_by_torch(file: Path | io.BytesIO, path: Path) -> nn.Module:
    """Let torch load an archive.  Raises FxlrpError, naming `path`, if it can't."""
    from torch.export.pt2_archive._package import load_pt2

    try:
        program = load_pt2(file if isinstance(file, io.BytesIO) else str(file)).exported_programs["model"]
        return program.module(check_guards=False)  # guards are Python code
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1][:300]
        raise FxlrpError(
            f"{path} cannot be loaded by torch {torch.__version__}; export it again with this version ({reason})."
        ) from error


def _clean_copy(archive: Archive) -> io.BytesIO:
    """Make an archive of the network alone, of what could be understood of this one.  Raises ValueError for more."""
    if archive.read("archive_format", 16) != b"pt2":
        raise ValueError("another kind of archive")
    version = archive.read("archive_version", 16)
    if archive.read("byteorder", 16) != b"little":
        raise ValueError("numbers in another order of bytes")
    for name in archive.names:
        if not _FILES.fullmatch(name):
            raise ValueError(f"a record {name[:80]!r}")
    _check_sample(archive)
    copy = io.BytesIO()
    with zipfile.ZipFile(copy, "w", zipfile.ZIP_STORED) as new:

        def write(name: str, data: bytes | str) -> None:
            new.writestr(f"model/{name}", data)

        write("archive_format", "pt2")
        write("archive_version", version)
        write("byteorder", "little")
        write(".data/version", "6\n")
        write(PROGRAM, json.dumps(read_program(archive.read(PROGRAM, LONGEST_JSON))))
        write(SAMPLE, b"")  # nobody needs it
        for kind in ("weights", "constants"):
            config = f"data/{kind}/model_{kind}_config.json"
            payload = read_payload(archive.read(config, LONGEST_JSON))
            for name in dict.fromkeys(meta["path_name"] for meta in payload.values()):
                data = archive.read(f"data/{kind}/{name}")
                for meta in payload.values():
                    if meta["path_name"] == name:
                        check_within(meta["tensor_meta"], len(data))
                write(f"data/{kind}/{name}", data)
            write(config, json.dumps({"config": payload}))
    copy.seek(0)
    return copy


def _replace_trusting(module: nn.Module) -> None:
    """Put ops that look at their arguments in the place of those whose kernels trust them."""
    for graph in (m for m in module.modules() if isinstance(m, torch.fx.GraphModule)):
        for node in graph.graph.nodes:
            node.target = replacements().get(node.target, node.target)
        graph.recompile()


def _check_sample(archive: Archive) -> None:
    """Raise ValueError if the inputs in the archive, which torch.export.load would unpickle, are more than tensors."""
    data = archive.read(SAMPLE) if SAMPLE in archive.names else b""
    if data:
        with Archive(data) as sample:
            check_program(sample.read("data.pkl", LONGEST), {}, sample.has_storage)


def _about(record: Any) -> dict[str, Any]:
    """Return what an exported explainer says about itself.  Raises ValueError if it is not of the kind it should be."""
    names, places = record["inputs"], record["explained"]
    if not all(isinstance(n, str) for n in names) or not all(type(i) is int and 0 <= i < len(names) for i in places):
        raise ValueError(f"a record {EXTRA!r} that names no inputs")
    if not isinstance(record["contrast"], str | int | None) or not isinstance(record["rulebook"], str):
        raise ValueError(f"a record {EXTRA!r} that names no rulebook")
    axes = record.setdefault("axes", [0] * len(names))
    if len(axes) != len(names) or not all(a is None or (type(a) is int and 0 <= a < 64) for a in axes):
        raise ValueError(f"a record {EXTRA!r} that names no axes")
    return record


def _in_eval(module: nn.Module) -> nn.Module:
    """Set a module to eval mode for those who ask: its operators stay in the mode they were exported in.

    The eval() that torch gives an exported module raises, and is taken away.
    """
    for name in ("train", "eval"):
        vars(module).pop(name, None)
    return module.eval()


def _example(module: nn.Module) -> list[Tensor]:
    """Return the inputs that the network was exported with, as far as they are tensors, without their numbers."""
    assert isinstance(module, torch.fx.GraphModule)
    values = [n.meta.get("val") for n in module.graph.find_nodes(op="placeholder")]
    return [v for v in values if isinstance(v, Tensor)]


def check_inputs(module: nn.Module, *inputs: Tensor) -> None:
    """Check that a network loaded from a .pt2 makes nothing out of proportion of these inputs.

    Raises FxlrpError if it does; any other module is left alone.
    """
    if isinstance(module, ExportedExplainer):
        target = torch.zeros(module.count(inputs), dtype=torch.int64)
        return check_inputs(module.module, *inputs, target)
    if isinstance(module, torch.fx.GraphModule):
        check_bounds(module, inputs)


def input_shape(module: nn.Module) -> list[int] | None:
    """Return the shape of an exported module's first input, 0 where any size will do; None for any other module."""
    module = module.module if isinstance(module, ExportedExplainer) else module
    if isinstance(module, torch.fx.GraphModule):
        for node in module.graph.nodes:
            if node.op == "placeholder" and isinstance(node.meta.get("val"), torch.Tensor):
                return [int(n) if isinstance(n, int) else 0 for n in node.meta["val"].shape]
    return None
