"""Keeps captured graphs in a folder, so that another process need not trace the model again.

A file holds the graph's ops as JSON and its constants as raw numbers; the weights stay in the model.  It is named by a
digest of the model's code, attributes and weights' shapes, of the call and of the versions (`fingerprint`).  Reading it
runs nothing of what it says: it may call the ops that exported networks may call, and shapes are traced anew.
"""

from __future__ import annotations

import functools
import json
import math
import operator
import warnings
from collections.abc import Callable, Hashable, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save as as_bytes
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

from fxlrp.capture.axes import Axes
from fxlrp.capture.calls import Call
from fxlrp.capture.derivatives import as_symbols
from fxlrp.capture.flat import returned_as
from fxlrp.capture.model import Capture, CaptureMode, example_inputs, forward_names, length_axes
from fxlrp.capture.symbols import hint
from fxlrp.emit import KEPT, traced_value
from fxlrp.errors import FxlrpError, first_line
from fxlrp.identity import Unsteady, fingerprint
from fxlrp.inputs.exported.bounds import FACTOR, LEAST
from fxlrp.inputs.exported.operators import PYTHON, operators
from fxlrp.whole_files import written_whole

FORMAT = 1


class GraphStore:
    """The graphs in a folder, which is made if there is none.

    Raises FxlrpError if it can't be written to.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FxlrpError(f"cache={str(folder)!r} is no folder that can be made: {error.strerror}.") from error

    def paths(self, model: nn.Module, *keys: Hashable) -> list[Path]:
        """The files of a model's graphs for some calls; none, with a warning, for a model that can't be told from
        others."""
        try:
            of_model = fingerprint(model)
            return [self.folder / f"{fingerprint(of_model, key)}.safetensors" for key in keys]
        except Unsteady as error:
            self._warn(f"the model has {error}, which can't be compared in another process")
            return []

    def load(self, path: Path, model: nn.Module, call: Call, run: Callable[[Call], Any]) -> Capture | None:
        """The graph in a file; None if there is none, and with a warning if it holds another thing.

        run: runs the model itself, for the structure of its output."""
        if not path.exists():
            return None
        try:
            return _read(path, model, call, run)
        except Exception as error:
            why = first_line(error)[:200]
            self._warn(f"{path.name} is no graph of this model that fxlrp wrote ({why}); it is written anew")
            return None

    def save(self, path: Path, model: nn.Module, captured: Capture) -> None:
        """Writes a graph into a file, whole or not at all; warns if it can't be written."""
        try:
            data = _written(model, captured, path.stem)
        except Exception as error:
            why = first_line(error)[:200]
            self._warn(f"this model's graph can't be written ({why}); it is captured in each process")
            return
        try:
            with written_whole(path) as file:
                file.write(data)
        except OSError as error:
            self._warn(f"{path.name} can't be written: {error.strerror}")

    def _warn(self, what: str) -> None:
        warnings.warn(f"cache={str(self.folder)!r}: {what}.", stacklevel=2)


def _written(model: nn.Module, captured: Capture, key: str) -> bytes:
    """A captured graph as a .safetensors: its constants, and its nodes as JSON in the metadata.

    Raises ValueError for a graph that is more than ops on weights and inputs."""
    if captured.answers_apart or captured.mode is CaptureMode.THIS_INPUT:
        raise ValueError("it holds for one call, or is in float32 for a model that is not")
    weights = {id(t): name for name, t in _weights(model).items()}
    constants: dict[str, Tensor] = {}
    traces: dict[str, int] = {}
    nodes = []
    for node in captured.graph.graph.nodes:
        kept = json.dumps({name: node.meta[name] for name in KEPT if name in node.meta}, default=str)
        about = {"name": node.name, "like": traces.setdefault(kept, len(traces))}
        if node.op == "placeholder":
            about["shape"] = [str(n) if isinstance(n, torch.SymInt) else n for n in node.meta["val"].shape]
        elif node.op == "get_attr":
            about["at"] = target = str(node.target)
            tensor = attrgetter(target)(captured.graph)
            about["weight"] = weights.get(id(tensor))
            if about["weight"] is None:
                constants[target], about["device"] = tensor.detach().cpu().contiguous(), str(tensor.device)
        elif node.op == "call_function":
            about["call"] = _names()[node.target]
            about["args"], about["kwargs"] = _as_json(node.args), _as_json(node.kwargs)
        else:
            about["args"] = _as_json(node.args)
        nodes.append(about)
    graph = {
        "format": FORMAT,
        "key": key,
        "mode": captured.mode.name,
        "axes": [list(captured.axes.inputs), captured.axes.output],
        "branches": captured.branches,
        "likes": [json.loads(kept) for kept in traces],
        "nodes": nodes,
    }
    return as_bytes(constants, metadata={"graph": json.dumps(graph)})


def _read(path: Path, model: nn.Module, call: Call, run: Callable[[Call], Any]) -> Capture:
    """The capture in a file.  Raises ValueError, KeyError or others of their kind for what is no such file."""
    with safe_open(path, framework="pt") as file:
        about = json.loads(file.metadata()["graph"])
        constants = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 it is no dict
    if about["format"] != FORMAT or about["key"] != path.stem:
        raise ValueError("it was written under another name")
    mode, axes = CaptureMode[about["mode"]], Axes(tuple(about["axes"][0]), about["axes"][1])
    inputs = example_inputs(call.tensors, axes, mode)
    gm = _graph(about, inputs, _weights(model), constants)
    _, returned = returned_as(run(call), [])
    names, called = call.names, forward_names(model, call.args, call.kwargs)
    lengths, branches = length_axes(call.tensors, axes), bool(about["branches"])
    return Capture(gm, inputs, names, called, mode, returned, axes, lengths, branches=branches, kept=path)


def _graph(
    about: dict[str, Any], inputs: list[Tensor], weights: dict[str, Tensor], constants: dict[str, Tensor]
) -> fx.GraphModule:
    """The graph that a file tells of, with the values that tracing gives its nodes."""
    fakes = _fake(inputs, [told["shape"] for told in about["nodes"] if "shape" in told])
    mode: FakeTensorMode = fakes[0].fake_mode  # type: ignore[attr-defined]
    root, graph = nn.Module(), fx.Graph()
    nodes: dict[str, fx.Node] = {}
    known: dict[Hashable, Any] = {}
    left = max(LEAST, FACTOR * sum(t.numel() for t in (*inputs, *weights.values(), *constants.values())))
    for told in about["nodes"]:
        name = told["name"]
        if "args" in told and "call" not in told:
            graph.output(*_from_json(told["args"], nodes))
            continue
        if "call" in told:
            given = _from_json(told["args"], nodes), _from_json(told["kwargs"], nodes)
            node = graph.create_node("call_function", _calls()[told["call"]], *given, name=name)
            value = traced_value(node, mode, known)
            left -= sum(
                math.prod(hint(n) or 1 for n in t.shape) for t in pytree.tree_leaves(value) if isinstance(t, Tensor)
            )
            if left < 0:
                raise ValueError(f"{name} makes tensors out of proportion to the model")
        elif "at" in told:
            tensor = weights[told["weight"]] if told["weight"] else constants[told["at"]].to(told["device"])
            _put(root, told["at"], tensor)
            node = graph.create_node("get_attr", told["at"], name=name)
            value = mode.from_tensor(tensor, static_shapes=True)
        else:
            node = graph.create_node("placeholder", name, name=name)
            value = fakes[len(graph.find_nodes(op="placeholder")) - 1]
        like = about["likes"][told["like"]]
        node.meta = {k: {n: tuple(e) for n, e in v.items()} if k == "nn_module_stack" else v for k, v in like.items()}
        node.meta["val"] = value
        nodes[name] = node
    return fx.GraphModule(root, graph)


def _fake(inputs: Sequence[Tensor], shapes: Sequence[Sequence[int | str]]) -> list[Tensor]:
    """Fake tensors like the inputs, whose sizes that have a name are symbols, one for each name."""
    lengths: dict[str, int] = {}
    for t, shape in zip(inputs, shapes, strict=True):
        for n, length in zip(shape, t.shape, strict=True):
            if isinstance(n, str):
                lengths[n] = length
            elif n != length:
                raise ValueError(f"an input of shape {list(shape)}, not {list(t.shape)}")
    lines = [torch.empty(length) for length in lengths.values()]
    made = as_symbols([*lines, torch.empty(1)], [*[(0,)] * len(lines), ()])
    symbols: dict[Any, Any] = {name: t.shape[0] for name, t in zip(lengths, made, strict=False)}
    with made[-1].fake_mode:  # type: ignore[attr-defined]
        return [
            torch.empty([symbols.get(n, n) for n in shape], dtype=t.dtype, device=t.device)
            for t, shape in zip(inputs, shapes, strict=True)
        ]


@functools.cache
def _calls() -> dict[str, Any]:
    """The functions that a file may call, by name: the ops of networks, and Python's on sizes."""
    owners = {"_operator": operator, "torch": torch, "math": math}
    sizes = {name: getattr(owners[name.partition(".")[0]], name.partition(".")[2]) for name in PYTHON}
    return {name: op for name, op in {**operators(), **sizes}.items() if not name.endswith("_operator.pow")}


@functools.cache
def _names() -> dict[Any, str]:
    return {op: name for name, op in _calls().items()}


def _as_json(value: Any) -> Any:
    """An argument as JSON.  Raises ValueError for what has no place in a file."""
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, tuple):
        return {"tuple": [_as_json(v) for v in value]}
    if isinstance(value, list):
        return [_as_json(v) for v in value]
    if isinstance(value, dict):
        return {"dict": {k: _as_json(v) for k, v in value.items()}}
    for kind in (torch.dtype, torch.layout, torch.memory_format):
        if isinstance(value, kind):
            return {"torch": str(value).removeprefix("torch.")}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    raise ValueError(f"an argument of type {type(value).__name__}")


def _from_json(value: Any, nodes: dict[str, fx.Node]) -> Any:
    """An argument from JSON."""
    if isinstance(value, list):
        return [_from_json(v, nodes) for v in value]
    if not isinstance(value, dict):
        return value
    ((kind, inside),) = value.items()
    if kind == "node":
        return nodes[inside]
    if kind == "tuple":
        return tuple(_from_json(v, nodes) for v in inside)
    if kind == "dict":
        return {k: _from_json(v, nodes) for k, v in inside.items()}
    if kind == "device":
        return torch.device(inside)
    constant = getattr(torch, inside)
    if kind != "torch" or not isinstance(constant, torch.dtype | torch.layout | torch.memory_format):
        raise ValueError(f"an argument {kind}")
    return constant


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """The parameters and buffers of a model by name."""
    parameters, buffers = model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False)
    return {**dict(parameters), **dict(buffers)}


def _put(root: nn.Module, target: str, tensor: Tensor) -> None:
    """Puts a tensor at a path below a module."""
    *path, name = target.split(".")
    for part in path:
        if part not in root._modules:
            root.add_module(part, nn.Module())
        root = root.get_submodule(part)
    if isinstance(tensor, nn.Parameter):
        root.register_parameter(name, tensor)
    else:
        root.register_buffer(name, tensor, persistent=False)
