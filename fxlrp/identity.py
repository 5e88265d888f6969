"""Digests of what a score depends on, weights and code alike, or of what a model is traced by, weights' shapes alone.

No two things of one name are mixed up.  What comes with an installed package is known by its name and the package's
version, everything else by its content: a tensor by its bytes, a function by its code and by what it refers to, an
object by its class and its state.
"""

from __future__ import annotations

import functools
import hashlib
import platform
import sys
import sysconfig
import types
import weakref
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import fxlrp
from fxlrp.errors import FxlrpError

_OURS = str(Path(fxlrp.__file__).parent)
_INSTALLED = (_OURS, *(sysconfig.get_path(kind) for kind in ("purelib", "platlib", "stdlib", "platstdlib")))
_PLAIN = frozenset(vars(nn.Module())) - {"training"}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class Unsteady(Exception):
    """A value that no digest tells from others in another process; the message is its place."""


def fingerprint(*things: Any) -> str:
    """Return a digest of models and other values as they would be traced, by this torch, Python and fxlrp.

    Models of one fingerprint are traced to the same graph in whatever process: of weights only the shapes count, and
    which of them are one.

    Raises Unsteady, with its place in the model, for a value whose state can't be seen, such as an open file.
    """
    versions = (str(torch.__version__), platform.python_version(), fxlrp.__version__, sys.platform)
    return _TracedWalk().of([versions, *things]).hex()


def digest(thing: Any) -> str:
    """Return a digest that is the same in every process for the same thing, and for no other.

    Raises FxlrpError for what is nested too deeply.
    """
    try:
        return _Walk().of(thing).hex()
    except RecursionError as error:
        raise FxlrpError(
            f"A {type(thing).__name__} is nested too deeply to be told from another; give out=None, or a plainer one."
        ) from error


@functools.cache
def sources() -> str:
    """Return a digest of fxlrp's own code."""
    files = sorted(Path(_OURS).rglob("*.py"))
    return hashlib.sha256(b"".join(hashlib.sha256(file.read_bytes()).digest() for file in files)).hexdigest()


class _Walk:
    """Digests of objects by id, each taken once; one that holds itself is known by where it stands."""

    def __init__(self) -> None:
        self.taken: dict[int, tuple[Any, bytes]] = {}  # with the object, whose id would be given away otherwise

    def of(self, thing: Any) -> bytes:
        """Return the digest of a thing."""
        if thing is None or isinstance(thing, str | int | float | complex | bytes):
            return _sum(type(thing).__name__, repr(thing).encode())
        if id(thing) not in self.taken:
            self.taken[id(thing)] = thing, b"itself"
            self.taken[id(thing)] = thing, _sum(*self._parts(thing))
        return self.taken[id(thing)][1]

    def weight(self, x: Tensor | None) -> bytes:
        """Return the digest of a module's parameter or buffer."""
        return self.of(x)

    def inside(self, name: str, value: Any) -> bytes:
        """Return the digest of a module's child or attribute."""
        return self.of(value)

    def all(self, things: Iterable[Any]) -> Iterator[bytes]:
        """Yield the digests of things."""
        yield from map(self.of, things)

    def _parts(self, thing: Any) -> Iterator[Any]:
        """Yield what a thing consists of: first its kind, then text, or bytes of a fixed meaning."""
        yield type(thing).__qualname__
        match thing:
            case Tensor():
                yield from _numbers(thing)
            case np.ndarray() if not thing.dtype.hasobject:
                yield f"{thing.dtype} {thing.shape}"
                yield np.ascontiguousarray(thing).tobytes()
            case tuple() | list():
                yield from self.all(thing)
            case set() | frozenset():
                yield from sorted(self.all(thing))
            case Mapping():
                yield from self.all(pair for item in thing.items() for pair in item)
            case torch.dtype() | torch.device() | torch.layout() | torch.memory_format():
                yield str(thing)
            case torch._ops.OpOverload() | torch._ops.OpOverloadPacket():
                yield str(thing)
            case types.CodeType():
                yield thing.co_code
                yield from self.all((thing.co_consts, thing.co_names, thing.co_varnames, thing.co_flags))
            case types.FunctionType():
                yield from self._function(thing)
            case types.MethodType():
                yield from self.all((thing.__func__, thing.__self__))
            case types.BuiltinFunctionType() | types.MethodDescriptorType() | types.WrapperDescriptorType():
                yield f"{thing.__module__ if hasattr(thing, '__module__') else ''} {thing.__qualname__}"
            case types.ModuleType():
                yield _installed(thing.__name__) or _content(thing)
            case property():
                yield from self.all((thing.fget, thing.fset))
            case staticmethod() | classmethod():
                yield self.of(thing.__func__)
            case weakref.ref():
                yield self.of(thing())
            case type():
                yield from self._class(thing)
            case nn.Module():
                yield from self._module(thing)
            case _:
                yield from self._object(thing)

    def _function(self, function: types.FunctionType) -> Iterator[Any]:
        """Yield a function's defaults, what it encloses, and its package's version or its code with what that names."""
        yield from self.all((function.__defaults__, function.__kwdefaults__))
        for cell in function.__closure__ or ():
            try:
                yield self.of(cell.cell_contents)
            except ValueError:  # not set yet
                yield "empty"
        if _is_installed(function.__code__.co_filename):
            yield f"{function.__module__}.{function.__qualname__} {_version(function.__module__)}"
            return
        yield self.of(function.__code__)
        for name in sorted(_names(function.__code__) & function.__globals__.keys()):
            yield name
            yield self.of(function.__globals__[name])

    def _class(self, cls: type) -> Iterator[Any]:
        """Yield a class's name, and its package's version or its bases and attributes."""
        yield f"{cls.__module__}.{cls.__qualname__}"
        if (package := _installed(cls.__module__)) and not _written_here(cls):
            yield package
            return
        yield from self.all(cls.__bases__)
        for name, value in vars(cls).items():
            if not (name.startswith("__") and name.endswith("__")) or isinstance(value, types.FunctionType):
                yield name
                yield self.of(value)

    def _module(self, module: nn.Module) -> Iterator[Any]:
        """Yield a module's code, tensors, children, hooks and other attributes."""
        if isinstance(module, torch._dynamo.OptimizedModule):
            yield self.inside("_orig_mod", module._orig_mod)
            return
        if isinstance(module, torch.jit.ScriptModule):  # constants of its code are not seen
            self.unseen(module)
        traced = isinstance(module, torch.fx.GraphModule | torch.jit.ScriptModule)
        yield module.code if traced else self.of(type(module))
        for name, x in (*module._parameters.items(), *module._buffers.items()):
            yield name
            yield self.weight(x)
        yield from self.all(hook for name in _HOOKS for hook in vars(module).get(name, {}).values())
        rest = {name: value for name, value in vars(module).items() if name not in _PLAIN}
        if traced:  # of the rest only constants are used, most is how the code was made
            rest = {name: value for name, value in rest.items() if isinstance(value, Tensor)}
        for name, value in (*module._modules.items(), *rest.items()):
            yield name
            yield self.inside(name, value)

    def _object(self, thing: Any) -> Iterator[Any]:
        """Yield the class of any other object, and its state as pickle would take it."""
        yield self.of(type(thing))
        if type(thing).__module__.startswith(("torch._dynamo", "torch._inductor", "torch._functorch")):
            return  # how a thing is compiled, not what it computes
        try:
            made = thing.__reduce_ex__(4)
        except Exception:  # a lock, a file and the like
            self.unseen(thing)
            return
        if isinstance(made, str):
            yield made
            return
        state = made[2] if len(made) > 2 else None
        yield from self.all((*made[:2], _without_own_hash(thing, state)))
        yield from (self.of(list(more)) for more in made[3:5] if more is not None)

    def unseen(self, thing: Any) -> None:
        """Note a thing without a state that could be seen: no score depends on it."""


class _TracedWalk(_Walk):
    """Digests of what a model is traced by."""

    def __init__(self) -> None:
        super().__init__()
        self.where: list[str] = ["model"]
        self.weights: dict[int, int] = {}

    def weight(self, x: Tensor | None) -> bytes:
        """Return the digest of the shape of a parameter or buffer, and of whether it was met before."""
        if x is None:
            return self.of(None)
        number = self.weights.setdefault(id(x), len(self.weights))
        kind = type(x)
        about = (tuple(x.shape), x.dtype, x.device, x.layout)
        return _sum(f"{kind.__module__}.{kind.__qualname__} {about} {number}")

    def inside(self, name: str, value: Any) -> bytes:
        """Return the digest of a module's child or attribute, whose name is said if it can't be seen."""
        self.where.append(name)
        found = self.of(value)
        self.where.pop()
        return found

    def unseen(self, thing: Any) -> None:
        """Raise Unsteady: how a thing is traced may depend on it."""
        kind = type(thing)
        raise Unsteady(f"{'.'.join(self.where)}, a {kind.__module__}.{kind.__qualname__}")


def _sum(*parts: Any) -> bytes:
    """Return a digest of texts and bytes, which tells where each ends."""
    total = hashlib.sha256()
    for part in parts:
        content = part.encode() if isinstance(part, str) else part
        total.update(len(content).to_bytes(8, "big"))
        total.update(content)
    return total.digest()


def _numbers(x: Tensor) -> Iterator[Any]:
    """Yield what a tensor is, and its bytes."""
    yield f"{x.dtype} {list(x.shape)} {x.layout}"
    if x.is_meta:
        return
    x = x.detach()
    if x.is_quantized:
        yield f"{x.qscheme()} {x.dequantize().flatten()[:1].tolist()}"
        x = x.dequantize()
    x = (x if x.layout == torch.strided else x.to_dense()).cpu().resolve_conj().resolve_neg()
    yield x.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def _without_own_hash(thing: Any, state: Any) -> Any:
    """Return an object's state without its own hash, where it keeps that: a text's is another in every process."""
    if not isinstance(state, dict):
        return state
    large = [name for name, value in state.items() if type(value) is int and abs(value) >= 2**32]
    try:
        return {name: v for name, v in state.items() if name not in large or v != hash(thing)} if large else state
    except Exception:  # it has none, or not yet
        return state


def _names(code: types.CodeType) -> set[str]:
    """Return the names a function looks up, those of the functions inside it too."""
    inner = [c for c in code.co_consts if isinstance(c, types.CodeType)]
    return set(code.co_names).union(*map(_names, inner))


def _is_installed(file: str) -> bool:
    return file.startswith(_INSTALLED) or file.startswith("<frozen")


def _written_here(cls: type) -> bool:
    """Tell whether a method of a class is in no installed file: another module may have the same name."""
    files = [f.__code__.co_filename for f in vars(cls).values() if isinstance(f, types.FunctionType)]
    return any(not _is_installed(file) and not file.startswith("<") for file in files)


def _installed(module: str) -> str | None:
    """Return a module's name and version if it was installed or comes with Python, else None."""
    imported = sys.modules.get(module)
    file = getattr(imported, "__file__", None)
    if imported is None or not (module in sys.builtin_module_names if file is None else _is_installed(file)):
        return None
    return f"{module} {_version(module)}"


def _version(module: str | None) -> str:
    return str(getattr(sys.modules.get((module or "").partition(".")[0]), "__version__", ""))


def _content(module: types.ModuleType) -> bytes:
    """Return the bytes of a module's file, or its name if it has none."""
    file = getattr(module, "__file__", None)
    return Path(file).read_bytes() if file and Path(file).is_file() else module.__name__.encode()
