"""What a pickle may call: what rebuilds tensors, containers and enums, by arguments as torch.save writes them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from fxlrp.inputs.allowlist import CALLS, NEVER_CALLED
from fxlrp.inputs.limits import last_number
from fxlrp.inputs.pickled_values import Global, Made, Refused, Storage, Tuple, idle, is_dtype, is_key

REPEATED = 2**24
"""The most numbers in a tensor that repeats its own, as an expanded mask does."""

_TENSORS = ("torch.Tensor", "torch.nn.parameter.Parameter")
REBUILD_FROM_TYPE = "torch._tensor._rebuild_from_type_v2"
_STORAGES = re.compile(
    r"torch\.(storage\.)?(Untyped|Double|Float|Half|Long|Int|Short|Char|Byte|Bool|BFloat16|Complex\w+)Storage"
)


def is_plain(name: str) -> bool:
    """Tell whether a global is data, or rebuilds it: a type of numbers, a container, a tensor."""
    rebuilds = name in CALLS or name in _TENSORS or name in REBUILD or name == REBUILD_FROM_TYPE
    return rebuilds or is_dtype(name) or bool(_STORAGES.fullmatch(name))


def check_arguments(func: Any, args: Any, enums: set[str]) -> None:
    """Check that a call is one that torch.save writes; `enums` may be called too.  Raises Refused if it is not."""
    fine = isinstance(func, Global) and isinstance(args, Tuple)
    if fine and func in NEVER_CALLED:
        return  # see allowlist.Inert
    if fine and func == REBUILD_FROM_TYPE:
        if len(args) == 4 and args[0] in REBUILD and args[1] in _TENSORS and _plain_attributes(args[3]):
            return check_arguments(args[0], args[2], enums)
        fine = False
    if fine and func in REBUILD:
        return REBUILD[func](*args) if len(args) in (2, 3, 4, 6, 7) else _refuse(func)
    fine = fine and idle(args) and (func in enums or (func in _ARGUMENTS and _ARGUMENTS[func](args)))
    if not fine:
        _refuse(func)


def _refuse(func: Any) -> None:
    raise Refused(f"calls {func if isinstance(func, Global) else 'what it has made'} in a way of its own")


def _plain_attributes(state: Any) -> bool:
    """Tell whether attributes of a tensor are numbers and texts, and hide none of its methods."""
    if isinstance(state, Tuple) and len(state) == 2 and not state[1]:
        state = state[0]
    if state is None or state == ():
        return True
    return isinstance(state, dict) and all(
        isinstance(key, str)
        and not hasattr(nn.Parameter, key)
        and (value is None or isinstance(value, bool | int | float) or type(value) is str)
        for key, value in state.items()
    )


def _rebuild_tensor(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> None:
    """Check a call that rebuilds a tensor.  Raises Refused if it has hooks, or does not lie within its numbers.

    rest: requires_grad, hooks and, in version 2, metadata; in version 3, dtype and metadata.
    """
    for shape in (size, stride):
        if isinstance(shape, Made) and shape.of == "torch.Size":
            shape = shape.args[0]
        if not isinstance(shape, Tuple) or not all(type(n) is int and 0 <= n < 2**48 for n in shape):
            raise Refused("makes a tensor of odd sizes")
    size, stride = (s.args[0] if isinstance(s, Made) else s for s in (size, stride))
    if not isinstance(storage, Storage) or type(offset) is not int or offset < 0 or len(size) != len(stride):
        raise Refused("makes a tensor of odd sizes")
    if len(rest) > 1 and not _is_empty(rest[1]):
        raise Refused("stores the hooks of a tensor")
    dtype = next((str(t) for t in rest[2:] if isinstance(t, Global)), storage.kind)
    count = storage.count // itemsize(dtype)
    if last_number(size, stride, offset) >= count:
        raise Refused("makes a tensor that is larger than its numbers")
    if math.prod(size) > max(count, REPEATED):
        raise Refused("makes a tensor that repeats its numbers without end")


def _rebuild_parameter(data: Any, requires_grad: Any, hooks: Any, state: Any = None) -> None:
    """Check a call that rebuilds a parameter.  Raises Refused if it is no tensor, or has hooks or odd attributes."""
    if not isinstance(data, Made) or data.of not in REBUILD or type(requires_grad) is not bool:
        raise Refused("makes a parameter of what is no tensor")
    if not _is_empty(hooks):
        raise Refused("stores the hooks of a tensor")
    if not _plain_attributes(state):
        raise Refused("gives a parameter attributes that are no numbers")


def _is_empty(hooks: Any) -> bool:
    return hooks is None or (isinstance(hooks, Made) and hooks.of == "collections.OrderedDict" and not hooks.args)


REBUILD: dict[str, Callable[..., None]] = {
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v3": _rebuild_tensor,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": _rebuild_parameter,
}


def _of_items(args: Tuple) -> bool:
    """Tell whether a container is made empty, or of a list (of pairs) or dict of what may be its keys."""
    if not args:
        return True
    (items,) = args if len(args) == 1 else (None,)
    if isinstance(items, dict):
        return all(type(v) is int for v in items.values())
    return isinstance(items, list) and all(map(is_key, items))


def _text(args: Tuple, most: int) -> bool:
    return 0 < len(args) <= most and all(isinstance(a, str | int | bytes) for a in args)


_ARGUMENTS: dict[str, Callable[[Tuple], bool]] = {
    "collections.OrderedDict": _of_items,
    "collections.Counter": _of_items,
    "builtins.set": _of_items,
    "builtins.complex": lambda args: len(args) == 2 and all(type(a) is float for a in args),
    "builtins.bytearray": lambda args: len(args) == 0 or not isinstance(args[0], int),
    "_codecs.encode": lambda args: len(args) == 2 and type(args[0]) is str and args[1] in ("latin1", "latin-1"),
    "torch.Size": lambda args: len(args) == 1 and isinstance(args[0], Tuple) and args[0].depth == 1,
    "torch.device": lambda args: _text(args, 2),
    "torch.serialization._get_layout": lambda args: _text(args, 1),
    "numpy.dtype": lambda args: _text(args, 3),
    **{
        f"numpy.{core}.multiarray.{what}": lambda args: len(args) in (2, 3)
        for core in ("core", "_core")
        for what in ("scalar", "_reconstruct")
    },
}


def itemsize(kind: str) -> int:
    """Return the bytes of a number in a storage or of a dtype of that name; 1 for untyped ones."""
    name = kind.rpartition(".")[2].removesuffix("Storage")
    names = {"Untyped": "uint8", "Byte": "uint8", "Char": "int8", "ComplexDouble": "complex128"}
    names["ComplexFloat"] = "complex64"
    dtype = getattr(torch, names.get(name, name.lower()), None)
    if not isinstance(dtype, torch.dtype):
        raise Refused(f"has numbers of the unknown type {name}")
    return dtype.itemsize


def storage_of(pid: Any, fits: Callable[[str, int], bool]) -> Storage:
    """Return the numbers that a persistent id names: ("storage", type, key, location, count), once a view behind it.

    fits(key, count): whether so many bytes lie beside the pickle under a key.  Raises Refused if they do not.
    """
    match pid:
        case ("storage", Global() as kind, str() as key, str(), int() as count, *view) if _STORAGES.fullmatch(kind):
            if not all(v is None for v in view):
                raise Refused("has numbers that are a part of others")
            if count < 0 or not fits(key, count * itemsize(kind)):
                raise Refused("has more or fewer numbers than its file says")
            return Storage(count * itemsize(kind), kind)
    raise Refused("asks for something else than numbers")
