"""Unpickling a whole module without letting its file run code.

A pickle is a program for a small stack machine: GLOBAL names any importable object, REDUCE calls it, BUILD sets its
state.  Before torch's weights-only unpickler runs that program, three things are checked:

1. every global is a layer, a model's config, an activation function, or plain data (`_admit`);
2. layers and configs are made empty and given their state, never constructed; the only callables called are those
   that rebuild tensors, containers and enums; no class but torch.nn's own is left lying in the state, where a
   `forward` might find and construct it (`_check_program`);
3. what comes out is run by the libraries' own `forward`, and an attribute it calls is a layer or an activation.

Objects we only need to get past (partials) or that could do harm if misused (numpy's) are stand-ins of ours.
"""

from __future__ import annotations

import enum
import pickletools
import re
import sys
import zipfile
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch._utils import IMPORT_MAPPING, NAME_MAPPING

from fxlrp.errors import FxlrpError

# Where layers live.  Not here, because making or running theirs can run code: torch.jit, torch.fx, torch.package,
# torch.distributed, torch.ao, torch.hub, transformers' generation, pipelines, integrations and remote code.
_HOMES = re.compile(
    r"torch\.nn\.modules(\.\w+)+"
    r"|torch\.nn\.parallel\.data_parallel\.DataParallel"
    r"|torchvision\.(models|ops)(\.\w+)+"
    r"|timm\.(models|layers)(\.\w+)+"
    r"|transformers\.(activations|pytorch_utils|modeling_layers)\.\w+"
    r"|transformers\.models\.\w+\.(modeling|configuration)_\w+\.\w+"
    r"|transformers\.generation\.configuration_utils\.\w+"
)
_SPECIAL = ("__new__", "__reduce__", "__reduce_ex__", "__getattribute__", "__del__")

# Activations that models keep as attributes.  Not torch.nn.functional at large: some of its names call other names.
_FUNCTIONS = frozenset(
    f"{home}.{name}"
    for home in ("torch.nn.functional", "torch._C._nn")
    for name in (
        *("relu", "relu6", "relu_", "leaky_relu", "elu", "elu_", "selu", "celu", "gelu", "silu", "mish", "softplus"),
        *("sigmoid", "logsigmoid", "log_sigmoid", "hardsigmoid", "hardswish", "hardtanh", "tanh", "tanhshrink"),
        *("softsign", "softshrink", "hardshrink", "softmax", "log_softmax", "softmin", "glu", "prelu", "normalize"),
    )
)

# What REDUCE may call, by its own name or by our stand-in's.
_CALLS = frozenset(
    {
        *("collections.OrderedDict", "builtins.set", "builtins.complex", "builtins.bytearray", "_codecs.encode"),
        *("torch.Size", "torch.device", "torch.serialization._get_layout", "functools.partial"),
        *(f"torch._utils._rebuild_{what}" for what in ("tensor", "tensor_v2", "tensor_v3")),
        *(f"torch._utils._rebuild_parameter{more}" for more in ("", "_with_state")),
        *("numpy.dtype", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"),
        *("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct"),
    }
)


class _Inert:
    """Stands in for a functools.partial: a model keeps some from its construction and never calls them again."""

    def __init__(self, *args: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


class _Dtype:
    """Stands in for numpy.dtype: numbers and booleans only, no object and no structured types."""

    def __init__(self, code: str, *flags: Any) -> None:
        if not isinstance(code, str) or not re.fullmatch(r"[biufc](1|2|4|8|16)", code):
            raise FxlrpError(f"The file holds a numpy array of dtype {code!r}; only numbers are read without --trust.")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class _Array(np.ndarray):
    """Stands in for numpy.ndarray: rebuilt from numbers only."""

    def __setstate__(self, state: Any) -> None:
        version, shape, dtype, fortran, data = state
        if not isinstance(dtype, _Dtype) or not isinstance(data, bytes):
            raise FxlrpError("The file holds a numpy array of something else than numbers; load it with --trust.")
        super().__setstate__((version, shape, dtype.dtype, fortran, data))


def _scalar(dtype: _Dtype, data: bytes) -> Any:
    return np.frombuffer(data, dtype.dtype)[0]


_STAND_INS: dict[str, Any] = {"functools.partial": _Inert, "numpy.dtype": _Dtype, "numpy.ndarray": _Array}
for _home in ("numpy.core.multiarray", "numpy._core.multiarray"):
    _STAND_INS[f"{_home}.scalar"] = _scalar
    _STAND_INS[f"{_home}._reconstruct"] = lambda *args: _Array((0,), np.uint8)


def _admit(name: str) -> Any:
    """The object to load for a global, or None if it is not on the allow-list."""
    if name in _STAND_INS:
        return _STAND_INS[name]
    home, _, last = name.rpartition(".")
    if name not in _FUNCTIONS and not _HOMES.fullmatch(name):
        return None
    try:
        found = getattr(import_module(home), last)  # imports library modules only: _HOMES and _FUNCTIONS name them
    except (ImportError, AttributeError):
        return None
    return found if name in _FUNCTIONS or _is_layer(found) or _is_config(found) or _is_enum(found) else None


def _is_layer(cls: Any) -> bool:
    """Whether cls is an nn.Module that is made and given its state by torch.nn's own code, and is not itself code."""
    if not isinstance(cls, type) or not issubclass(cls, nn.Module):
        return False
    if issubclass(cls, (torch.jit.ScriptModule, torch.fx.GraphModule)):
        return False
    setstate: Any = getattr(cls, "__setstate__")  # noqa: B009  mypy knows it is there, and calling it is not the point
    own = any(getattr(cls, name, None) is not getattr(nn.Module, name, None) for name in _SPECIAL)
    return not own and setstate.__module__.startswith("torch.nn.modules.")


def _is_config(cls: Any) -> bool:
    """Whether cls is a transformers configuration: attributes, and no state-setting of its own."""
    from transformers import GenerationConfig, PreTrainedConfig

    if not isinstance(cls, type) or not issubclass(cls, (PreTrainedConfig, GenerationConfig)):
        return False
    return not hasattr(cls, "__setstate__") and cls.__new__ is object.__new__ and cls.__reduce__ is object.__reduce__


def _is_enum(cls: Any) -> bool:
    """Whether cls names a few words or numbers; calling it looks one of them up."""
    return isinstance(cls, type) and issubclass(cls, enum.Enum) and issubclass(cls, (str, int))


class _Global(str):
    """A name pushed by GLOBAL."""


class _Made(str):
    """An object made by REDUCE or NEWOBJ of the global of that name."""


_DICT = object()
_TENSORS = ("torch.Tensor", "torch.nn.parameter.Parameter")
_BUILDABLE = ("torch.nn.modules.", "torchvision.ops.", "numpy.ndarray")
_PUSH = frozenset(
    (
        "NONE",
        "NEWTRUE",
        "NEWFALSE",
        "BININT",
        "BININT1",
        "BININT2",
        "LONG1",
        "BINFLOAT",
        "BINUNICODE",
        "SHORT_BINSTRING",
    )
)
_TAKE = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "APPEND": 1, "SETITEM": 2}


def _check_program(program: bytes, layers: set[str], enums: set[str]) -> str | None:
    """Run the pickle on names instead of objects; what it does that a saved model would not, or None."""
    stack: list[Any] = []
    below: list[list[Any]] = []
    memo: dict[int, Any] = {}

    def idle(item: Any) -> bool:
        """Whether an item may lie in a container: of globals only activations, dtypes, harmless classes."""
        if isinstance(item, tuple):
            return all(map(idle, item))
        return not isinstance(item, _Global) or item in _FUNCTIONS or _is_dtype(item) or item.startswith(_BUILDABLE)

    def callable_with(func: Any, args: Any) -> bool:
        if func == "torch._tensor._rebuild_from_type_v2" and isinstance(args, tuple) and len(args) == 4:
            return callable_with(args[0], args[2]) and args[1] in _TENSORS and idle(args[3])  # it calls args[0]
        known = isinstance(func, _Global) and (func in _CALLS or func in enums)
        return known and (func == "functools.partial" or idle(args))

    arg: Any
    for op, arg, _ in pickletools.genops(program):
        name = op.name
        if name == "GLOBAL":
            stack.append(_Global(_full_name(arg)))
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[arg] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[arg])
        elif name == "MARK":
            below.append(stack)
            stack = []
        elif name in _PUSH:
            stack.append(None)
        elif name in ("EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE"):
            stack.append(_DICT if name == "EMPTY_DICT" else () if name == "EMPTY_TUPLE" else None)
        elif name in ("TUPLE", "APPENDS", "SETITEMS") or name in _TAKE:
            if name in _TAKE:
                items = tuple(stack[-_TAKE[name] :])
                del stack[-_TAKE[name] :]
            else:
                items, stack = tuple(stack), below.pop()
            if name.startswith("TUPLE"):
                stack.append(items)
            elif not idle(items):
                return f"keeps {_first_global(items)}"
        elif name == "BINPERSID":
            stack[-1] = None  # a storage: torch checks the rest
        elif name == "REDUCE":
            args, func = stack.pop(), stack.pop()
            if not callable_with(func, args):
                return f"calls {func if isinstance(func, _Global) else 'what it has made'} in a way of its own"
            stack.append(_Made(func))
        elif name == "NEWOBJ":
            args, cls = stack.pop(), stack.pop()
            if not isinstance(cls, _Global) or cls not in layers or args != ():
                return f"makes a {cls} with arguments of its own"
            stack.append(_Made(cls))
        elif name == "BUILD":
            state, made = stack.pop(), stack[-1]
            by_dict = made in layers or made == "collections.OrderedDict"
            plain = isinstance(made, _Made) and ((by_dict and state is _DICT) or made in _STAND_INS)
            if not plain or (made != "functools.partial" and not idle(state)):
                return f"sets the state of {made if isinstance(made, str) else 'something'} in a way of its own"
        elif name not in ("PROTO", "STOP"):
            return f"uses the opcode {name}"
    return None


def _full_name(arg: str) -> str:
    """'module name' as Python 2 or 3 wrote it → module.name, the way torch's unpickler reads it."""
    module, _, name = arg.partition(" ")
    if (module, name) in NAME_MAPPING:
        module, name = NAME_MAPPING[module, name]
    return f"{IMPORT_MAPPING.get(module, module)}.{name}"


def _is_dtype(name: str) -> bool:
    return isinstance(getattr(torch, name.removeprefix("torch."), None), torch.dtype)


def _first_global(items: Any) -> str:
    if isinstance(items, tuple):
        return next(filter(None, map(_first_global, items)), "")
    return str(items) if isinstance(items, _Global) else ""


def load_pickle(path: Path, *, trust: bool = False) -> Any:
    """What torch.save wrote to a file: a module, a state dict, or a checkpoint around one; on the CPU.

    Raises FxlrpError, without having run anything of the file's, if it wants more than layers and tensors.
    """
    try:
        if trust:
            sys.path.append("")  # the user's classes are found from where they stand, as python would
            return torch.load(path, map_location="cpu", weights_only=False)
        if not zipfile.is_zipfile(path):  # as torch saved before 1.6: tensors only, torch's own list
            return torch.load(path, map_location="cpu", weights_only=True)
        return _load_checked(path)
    except FxlrpError:
        raise
    except (ImportError, AttributeError) as error:
        raise FxlrpError(
            f"{path} needs the code it was saved with, which Python does not find here ({error}): "
            "run from the folder that holds it, or save the state dict and pass --arch path/to/file.py:factory."
        ) from error
    except Exception as error:
        if not zipfile.is_zipfile(path) and "Unsupported" in str(error):
            raise FxlrpError(
                f"{path} is a pickle in an old format that cannot be checked: save it again with torch.save, "
                "or pass --trust if you trust whoever made it (it may run any code)."
            ) from error
        why = str(error).split("\n")[0][:200]
        raise FxlrpError(f"{path} is not a file that torch.save wrote, or it is damaged ({why}).") from error


def _load_checked(path: Path) -> Any:
    wanted = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(str(path)))
    admitted = {name: _admit(name) for name in wanted}
    refused = [name for name in wanted if admitted[name] is None]
    if refused:
        raise FxlrpError(
            f"{path} is a pickle that wants more than layers and tensors: {', '.join(refused)}. "
            "Save its state dict and pass --arch, or pass --trust if you trust whoever made it (it may run any code)."
        )
    enums = {name for name, found in admitted.items() if _is_enum(found)}
    layers = {name for name, found in admitted.items() if isinstance(found, type)} - enums - _STAND_INS.keys()
    if wanted and (odd := _check_program(torch._C.PyTorchFileReader(str(path)).get_record("data.pkl"), layers, enums)):
        raise FxlrpError(
            f"{path} is a pickle that {odd}, as no saved model does. "
            "Save its state dict and pass --arch, or pass --trust if you trust whoever made it (it may run any code)."
        )
    allowed: list[Any] = [(found, name) for name, found in admitted.items()]
    # The unpickler looks instances up by their type; a name with a newline cannot be written in a pickle.
    allowed += [(_Inert, "\n_Inert"), (_Dtype, "\n_Dtype"), (_Array, "\n_Array")]
    with torch.serialization.safe_globals(allowed):
        return torch.load(path, map_location="cpu", weights_only=True)
