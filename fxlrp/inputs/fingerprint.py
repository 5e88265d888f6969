"""Digests of a model as it would be traced: of its classes' code, attributes and weights' shapes, not of its weights.

Two models of one digest are traced to the same graph, in whatever process they are made.
"""

from __future__ import annotations

import functools
import hashlib
import platform
import sys
import types
import weakref
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import fxlrp
from fxlrp.capture.twin import content

ATOMS = (int, float, complex, str, bytes, type(None), type(...), range, slice)
TORCH = (torch.dtype, torch.device, torch.layout, torch.memory_format)
FOREIGN = ("torch.", "builtins.", "collections.", "fxlrp.")
"""Modules whose code the versions in the digest stand for."""


class Unsteady(Exception):
    """A value that no digest tells from others in another process; the message is its place."""


def fingerprint(*things: Any) -> str:
    """A digest of models and other values, of this machine's torch, Python and fxlrp.

    Raises Unsteady, with its place in the model, for a value whose parts can't be seen, such as an open file.
    """
    digest = hashlib.sha256()
    versions = (str(torch.__version__), platform.python_version(), fxlrp.__version__, sys.platform)
    for part in _Reading().parts([*versions, *things], "model"):
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()


class _Reading:
    """One reading of a value; things that are met again are named by when they were first."""

    def __init__(self) -> None:
        self.met: dict[int, tuple[int, Any]] = {}

    def parts(self, thing: Any, where: str) -> Iterator[str]:
        """The strings that a value consists of, each with its kind and length where it has one."""
        kind = type(thing)
        if isinstance(thing, Enum):
            yield f"enum {_name(kind)}.{thing.name}"
        elif kind in ATOMS or isinstance(thing, TORCH) or kind is bool:
            yield f"{kind.__name__} {thing!r}"
        elif id(thing) in self.met:
            yield f"again {self.met[id(thing)][0]}"
        else:
            self.met[id(thing)] = len(self.met), thing
            yield from self._of(thing, kind, where)

    def _of(self, thing: Any, kind: type, where: str) -> Iterator[str]:
        if isinstance(thing, nn.Module):
            yield from self._module(thing, where)
        elif isinstance(thing, Tensor):
            yield f"tensor {_name(kind)} {tuple(thing.shape)} {thing.dtype} {thing.device} {thing.layout}"
        elif isinstance(thing, np.ndarray):
            yield f"array {thing.shape} {thing.dtype} {hashlib.sha256(thing.tobytes()).hexdigest()}"
        elif kind in (dict, OrderedDict, defaultdict) or isinstance(thing, dict):
            yield f"dict {len(thing)}"
            for key, value in thing.items():
                yield from self.parts(key, where)
                yield from self.parts(value, f"{where}[{key!r}]")
        elif kind in (set, frozenset):
            yield f"set {len(thing)}"
            yield from sorted(str(list(self.parts(value, where))) for value in thing)
        elif isinstance(thing, list | tuple | deque):
            yield f"{_name(kind)} {len(thing)}"
            for value in thing:
                yield from self.parts(value, where)
        elif isinstance(thing, weakref.ref):
            yield from self.parts(thing(), where)
        elif isinstance(thing, functools.partial):
            yield from self.parts((thing.func, thing.args, thing.keywords), where)
        elif isinstance(thing, types.MethodType):
            yield from self.parts((thing.__func__, thing.__self__), where)
        elif isinstance(thing, types.FunctionType):
            yield from self._function(thing, where)
        elif isinstance(thing, type):
            yield from self._class(thing, where)
        elif kind is object:  # a sentinel
            yield "object"
        elif isinstance(thing, types.BuiltinFunctionType | types.ModuleType):
            yield f"named {getattr(thing, '__module__', '')}.{getattr(thing, '__qualname__', thing.__name__)}"
        elif hasattr(thing, "__dict__") and not hasattr(kind, "__slots__") and not _is_compiled(kind):
            yield from self.parts(kind, where)
            for name, value in vars(thing).items():
                yield f"attribute {name}"
                yield from self.parts(value, f"{where}.{name}")
        else:
            raise Unsteady(f"{where}, a {_name(kind)}")

    def _module(self, module: nn.Module, where: str) -> Iterator[str]:
        yield from self.parts(type(module), where)
        for name, value in vars(module).items():
            yield f"attribute {name}"
            inside = where if name in ("_modules", "_parameters", "_buffers") else f"{where}.{name}"
            if isinstance(value, Tensor):  # a constant of the graph, not a weight
                values = value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
                yield f"values {hashlib.sha256(values).hexdigest()}"
            numbered = "_hooks" in name and isinstance(value, dict)  # by how many hooks there were before
            yield from self.parts(list(value.values()) if numbered else value, inside)

    def _class(self, kind: type, where: str) -> Iterator[str]:
        """The code of a class and of those it is derived from, and the files and versions it comes from."""
        yield f"class {_name(kind)}"
        for base in kind.__mro__:
            if f"{base.__module__}.".startswith(FOREIGN):
                continue
            yield f"base {_name(base)}"
            yield from _origin(base.__module__)
            for name, value in vars(base).items():
                value = getattr(value, "__func__", value)  # of class methods and static methods
                if isinstance(value, types.FunctionType):
                    yield f"method {name}"
                    yield from self._function(value, f"{where}, in {name} of {base.__name__}", of_class=True)

    def _function(self, function: types.FunctionType, where: str, of_class: bool = False) -> Iterator[str]:
        """A function's code, defaults and closure.

        of_class: whether only functions and plain values of its closure count: decorators of methods put others there.
        """
        yield f"function {function.__module__}.{function.__qualname__}"
        if f"{function.__module__}.".startswith(FOREIGN) or (of_class and id(function) in self.met):
            return
        self.met.setdefault(id(function), (len(self.met), function))
        yield from _origin(function.__module__)
        yield from self._code(function.__code__)
        yield from self.parts((function.__defaults__, function.__kwdefaults__), where)
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
            for value in content(cell):
                yield f"closure {name} {_name(type(value))}"
                if not of_class or type(value) in ATOMS:
                    yield from self.parts(value, f"{where}: {name}")
                elif isinstance(value, types.FunctionType):
                    yield from self._function(value, where, of_class=True)

    def _code(self, code: types.CodeType) -> Iterator[str]:
        """What a function's code does, without the lines that it stands on."""
        yield f"code {code.co_code.hex()} {code.co_names} {code.co_varnames} {code.co_flags}"
        for constant in code.co_consts:
            yield from self._code(constant) if isinstance(constant, types.CodeType) else _Reading().parts(constant, "")


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _is_compiled(kind: type) -> bool:
    """Whether a class is of a compiled module, so that its attributes may not be all it has."""
    module = sys.modules.get(kind.__module__)
    file = getattr(module, "__file__", None) or ""
    return module is not None and not file.endswith(".py") and kind.__module__ != "__main__"


@functools.cache
def _origin(module: str) -> tuple[str, ...]:
    """The file that a module was loaded from, by its content, and the version of its package."""
    top, here = sys.modules.get(module.partition(".")[0]), sys.modules.get(module)
    file = Path(getattr(here, "__file__", None) or "")
    content = hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else ""
    return (f"from {module} {getattr(top, '__version__', '')} {content}",)
