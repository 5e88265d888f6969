"""Unpickling a whole module without letting its file run code.

A pickle is a program for a small stack machine: GLOBAL names any importable object, REDUCE calls it, BUILD sets its
state.  Before torch's weights-only unpickler runs that program, three things are checked:

1. every global is a layer, a model's config, an activation function, or plain data (`allowlist`);
2. layers and configs are made empty and given their state, never constructed; the only callables called are those
   that rebuild tensors, containers and enums; no class but torch.nn's own is left lying in the state, where a
   `forward` might find and construct it (`_check_program`);
3. what comes out is run by the libraries' own `forward`, and an attribute it calls is a layer or an activation.
"""

from __future__ import annotations

import pickletools
import sys
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch._utils import IMPORT_MAPPING, NAME_MAPPING

from fxlrp.errors import FxlrpError
from fxlrp.inputs.allowlist import CALLS, FUNCTIONS, STAND_INS, Array, Dtype, Inert, admit, is_enum


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
        return not isinstance(item, _Global) or item in FUNCTIONS or _is_dtype(item) or item.startswith(_BUILDABLE)

    def callable_with(func: Any, args: Any) -> bool:
        if func == "torch._tensor._rebuild_from_type_v2" and isinstance(args, tuple) and len(args) == 4:
            return callable_with(args[0], args[2]) and args[1] in _TENSORS and idle(args[3])  # it calls args[0]
        known = isinstance(func, _Global) and (func in CALLS or func in enums)
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
            plain = isinstance(made, _Made) and ((by_dict and state is _DICT) or made in STAND_INS)
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
            if "" not in sys.path:
                sys.path.append("")  # classes are looked for in the current folder too, as python itself does
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
        if path.read_bytes()[:2] == b"\x80\x02":  # a bare pickle
            raise FxlrpError(
                f"{path} is a pickle in an old format that cannot be checked: save it again with torch.save, "
                "or pass --trust if you trust whoever made it (it may run any code)."
            ) from error
        raise FxlrpError(
            f"{path} is not a model file fxlrp can read, or it is damaged; give a .pt or .pth that torch.save wrote, "
            "a .safetensors, a .pt2 or a folder of Hugging Face's."
        ) from error


def _load_checked(path: Path) -> Any:
    wanted = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(str(path)))
    admitted = {name: admit(name) for name in wanted}
    refused = [name for name in wanted if admitted[name] is None]
    if refused:
        raise FxlrpError(
            f"{path} is a pickle that wants more than layers and tensors: {', '.join(refused)}. "
            "Save its state dict and pass --arch, or pass --trust if you trust whoever made it (it may run any code)."
        )
    enums = {name for name, found in admitted.items() if is_enum(found)}
    layers = {name for name, found in admitted.items() if isinstance(found, type)} - enums - STAND_INS.keys()
    if wanted and (odd := _check_program(torch._C.PyTorchFileReader(str(path)).get_record("data.pkl"), layers, enums)):
        raise FxlrpError(
            f"{path} is a pickle that {odd}, as no saved model does. "
            "Save its state dict and pass --arch, or pass --trust if you trust whoever made it (it may run any code)."
        )
    allowed: list[Any] = [(found, name) for name, found in admitted.items()]
    # The unpickler looks instances up by their type; a name with a newline cannot be written in a pickle.
    allowed += [(Inert, "\nInert"), (Dtype, "\nDtype"), (Array, "\nArray")]
    with torch.serialization.safe_globals(allowed):
        return torch.load(path, map_location="cpu", weights_only=True)
