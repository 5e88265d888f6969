"""Running a pickle on stand-ins, to see whether it does more than a saved model does.

Nothing is imported, called or allocated here: a class is its name, an object what it was made of, a tensor its sizes.
"""

from __future__ import annotations

import math
import pickletools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO, Any

import torch
from torch import nn
from torch._utils import IMPORT_MAPPING, NAME_MAPPING

from fxlrp.inputs.allowlist import CALLS, FUNCTIONS, STAND_INS, is_enum
from fxlrp.inputs.limits import last_number

LONGEST = 2**24
"""Bytes of a pickle, without the tensors, which lie beside it; that of a thousand layers takes half a million."""
MOST = 2_000_000
"""Steps of a pickle."""
DEEPEST = 1000
"""Containers in each other."""
REPEATED = 2**24
"""Numbers of a tensor that repeats its own, as an expanded mask does."""
MODULES = 100_000
"""Modules of a network, counted wherever they are used."""


class Refused(ValueError):
    """The pickle does something that no saved model does; the message says what."""


class Global(str):
    """The name of a class or function."""


class Made:
    """An object made by REDUCE or NEWOBJ of the global of that name."""

    def __init__(self, of: str, args: Any) -> None:
        self.of, self.args, self.state = of, args, None


class Storage:
    """Numbers beside the pickle."""

    def __init__(self, count: int, kind: str) -> None:
        self.count, self.kind = count, kind


class Tuple(tuple):
    """A tuple that knows how many things are in it at last, wherever they are used, and how deep."""

    leaves: int
    depth: int


def _tuple(items: Sequence[Any]) -> Tuple:
    found = Tuple(items)
    inner = [t for t in items if isinstance(t, Tuple)]
    found.leaves = len(items) - len(inner) + sum(t.leaves for t in inner)
    found.depth = 1 + max((t.depth for t in inner), default=0)
    if found.leaves > 100_000 or found.depth > 20:
        raise Refused("nests tuples in tuples")
    return found


_TENSORS = ("torch.Tensor", "torch.nn.parameter.Parameter")
_OF_TYPE = "torch._tensor._rebuild_from_type_v2"
_CONTAINERS = ("collections.OrderedDict", "collections.Counter")
_BUILDABLE = ("torch.nn.modules.", "torchvision.ops.", "numpy.ndarray")
_PUSH = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_PUSH_ARG = frozenset(("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING"))
_TAKE = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "APPEND": 1, "SETITEM": 2}
_STORAGES = re.compile(
    r"torch\.(storage\.)?(Untyped|Double|Float|Half|Long|Int|Short|Char|Byte|Bool|BFloat16|Complex\w+)Storage"
)


def full_name(arg: str) -> Global:
    """'module name' as Python 2 or 3 wrote it → module.name, the way torch's unpickler reads it."""
    module, _, name = arg.partition(" ")
    if (module, name) in NAME_MAPPING:
        module, name = NAME_MAPPING[module, name]
    found = f"{IMPORT_MAPPING.get(module, module)}.{name}"
    if not re.fullmatch(r"[A-Za-z0-9_.]+", found):
        raise Refused("names what is no name")
    return Global(found)


def opcodes(program: bytes | IO[bytes]) -> Iterator[tuple[str, Any]]:
    """The steps of a pickle.  Raises Refused if there are too many."""
    for count, (op, arg, _) in enumerate(pickletools.genops(program)):
        if count >= MOST:
            raise Refused(f"takes more than {MOST} steps")
        yield op.name, arg


def globals_of(program: bytes) -> set[Global]:
    """The classes and functions that a pickle names."""
    return {full_name(arg) for name, arg in opcodes(program) if name == "GLOBAL"}


def is_plain(name: str) -> bool:
    """Whether a global is data, or rebuilds it: a type of numbers, a container, a tensor."""
    known = name in CALLS or name in _TENSORS or name in _REBUILD or name == _OF_TYPE
    return known or _is_dtype(name) or bool(_STORAGES.fullmatch(name))


def check_program(program: bytes | IO[bytes], admitted: Mapping[str, Any], fits: Callable[[str, int], bool]) -> Any:
    """Run a pickle on stand-ins, and return what it makes.

    admitted: what it may name beside plain data, by its name.
    fits(key, count): whether so many bytes lie beside the pickle under a key.

    Raises Refused, saying what, if it does anything that a saved model does not.
    """
    enums = {name for name, found in admitted.items() if is_enum(found)}
    layers = {name for name, found in admitted.items() if isinstance(found, type)} - enums - STAND_INS.keys()
    root = _run(program, layers, enums, fits)
    _check_whole(root, layers, admitted)
    return root


def _run(program: bytes | IO[bytes], layers: set[str], enums: set[str], fits: Callable[[str, int], bool]) -> Any:
    stack: list[Any] = []
    below: list[list[Any]] = []
    memo: dict[int, Any] = {}
    for name, arg in opcodes(program):
        if name == "GLOBAL":
            stack.append(full_name(arg))
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[arg] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[arg])
        elif name == "MARK":
            below.append(stack)
            stack = []
        elif name in _PUSH:
            stack.append(_PUSH[name])
        elif name in _PUSH_ARG:
            stack.append(arg)
        elif name in ("EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE"):
            stack.append({} if name == "EMPTY_DICT" else [] if name == "EMPTY_LIST" else _tuple(()))
        elif name in ("TUPLE", "APPENDS", "SETITEMS") or name in _TAKE:
            if name in _TAKE:
                items = stack[-_TAKE[name] :]
                del stack[-_TAKE[name] :]
            else:
                items, stack = stack, below.pop()
            if name.startswith("TUPLE"):
                stack.append(_tuple(items))
            else:
                _keep(stack[-1], items, name)
        elif name == "BINPERSID":
            stack[-1] = _storage(stack[-1], fits)
        elif name == "REDUCE":
            args, func = stack.pop(), stack.pop()
            _check_arguments(func, args, enums)
            stack.append(Made(func, args))
        elif name == "NEWOBJ":
            args, cls = stack.pop(), stack.pop()
            if not isinstance(cls, Global) or cls not in layers or args != ():
                raise Refused(f"makes a {_named(cls)} with arguments of its own")
            stack.append(Made(cls, args))
        elif name == "BUILD":
            state, made = stack.pop(), stack[-1]
            if not isinstance(made, Made) or made.state is not None or not _may_build(made, state, layers):
                raise Refused(f"sets the state of {_named(made)} in a way of its own")
            made.state = state
        elif name == "STOP":
            return stack.pop()
        elif name != "PROTO":
            raise Refused(f"uses the opcode {name}")
    raise Refused("does not end")


def _keep(container: Any, items: list[Any], step: str) -> None:
    """Put items into a container, as APPEND and SETITEM do."""
    if not all(map(_idle, items)):
        raise Refused(f"keeps {_first_global(items)}")
    if step.startswith("APPEND"):
        if not isinstance(container, list):
            raise Refused("appends to what is no list")
        container.extend(items)
        return
    if len(items) % 2:
        raise Refused("sets half an item")
    pairs = list(zip(items[::2], items[1::2], strict=True))
    if not all(_is_key(key) for key, _ in pairs):
        raise Refused("has keys that are no names or numbers")
    if isinstance(container, Made) and container.of in _CONTAINERS:
        container.args = {**(container.args if isinstance(container.args, dict) else {}), **dict(pairs)}
    elif isinstance(container, dict):
        container.update(pairs)
    else:
        raise Refused("sets an item of what is no dict")


def _is_key(key: Any) -> bool:
    """Whether a dict or set may have this key: hashing tuples in tuples can take forever."""
    if isinstance(key, Tuple):
        return key.depth <= 3 and key.leaves <= 1000
    return key is None or isinstance(key, str | int | float | bytes | Made)


def _idle(item: Any) -> bool:
    """Whether an item may lie in a container: of globals only activations, dtypes, harmless classes."""
    if isinstance(item, Tuple):  # what is in a list or dict was looked at when it was put there
        return all(map(_idle, item))
    return not isinstance(item, Global) or item in FUNCTIONS or _is_dtype(item) or item.startswith(_BUILDABLE)


def _is_dtype(name: str) -> bool:
    return isinstance(getattr(torch, name.removeprefix("torch."), None), torch.dtype)


def _first_global(items: Any) -> str:
    if isinstance(items, tuple | list):
        return next(filter(None, map(_first_global, items)), "")
    return str(items) if isinstance(items, Global) else ""


def _named(thing: Any) -> str:
    return str(thing) if isinstance(thing, Global) else thing.of if isinstance(thing, Made) else "something"


# --------------------------------------------------------------------------------------------------- what is called


def _check_arguments(func: Any, args: Any, enums: set[str]) -> None:
    """Raise Refused unless a call is one that torch.save writes."""
    fine = isinstance(func, Global) and isinstance(args, Tuple)
    if fine and func == "functools.partial":
        return  # never called: see allowlist.Inert
    if fine and func == _OF_TYPE:
        if len(args) == 4 and args[0] in _REBUILD and args[1] in _TENSORS and _plain_attributes(args[3]):
            return _check_arguments(args[0], args[2], enums)
        fine = False
    if fine and func in _REBUILD:
        return _REBUILD[func](*args) if len(args) in (2, 3, 4, 6, 7) else _refuse(func)
    fine = fine and _idle(args) and (func in enums or (func in _ARGUMENTS and _ARGUMENTS[func](args)))
    if not fine:
        _refuse(func)


def _refuse(func: Any) -> None:
    raise Refused(f"calls {func if isinstance(func, Global) else 'what it has made'} in a way of its own")


def _plain_attributes(state: Any) -> bool:
    """Whether attributes of a tensor are numbers, texts and such, and hide none of its methods."""
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
    """_rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks, metadata), _v3 (…, dtype, metadata)."""
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
    if not isinstance(data, Made) or data.of not in _REBUILD or type(requires_grad) is not bool:
        raise Refused("makes a parameter of what is no tensor")
    if not _is_empty(hooks):
        raise Refused("stores the hooks of a tensor")
    if not _plain_attributes(state):
        raise Refused("gives a parameter attributes that are no numbers")


def _is_empty(hooks: Any) -> bool:
    return hooks is None or (isinstance(hooks, Made) and hooks.of == "collections.OrderedDict" and not hooks.args)


_REBUILD: dict[str, Callable[..., None]] = {
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v3": _rebuild_tensor,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": _rebuild_parameter,
}


def _of_items(args: Tuple) -> bool:
    """A container made empty, or of a list (of pairs) or dict of what may be its keys."""
    if not args:
        return True
    (items,) = args if len(args) == 1 else (None,)
    if isinstance(items, dict):
        return all(type(v) is int for v in items.values())
    return isinstance(items, list) and all(map(_is_key, items))


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
    """Bytes of a number, of a storage or dtype of that name; 1 for untyped ones."""
    name = kind.rpartition(".")[2].removesuffix("Storage")
    names = {"Untyped": "uint8", "Byte": "uint8", "Char": "int8", "ComplexDouble": "complex128"}
    names["ComplexFloat"] = "complex64"
    dtype = getattr(torch, names.get(name, name.lower()), None)
    if not isinstance(dtype, torch.dtype):
        raise Refused(f"has numbers of the unknown type {name}")
    return dtype.itemsize


def _storage(pid: Any, fits: Callable[[str, int], bool]) -> Storage:
    """The numbers that a persistent id names: ("storage", type, key, location, count), view beside it long ago."""
    match pid:
        case ("storage", Global() as kind, str() as key, str(), int() as count, *view) if _STORAGES.fullmatch(kind):
            if not all(v is None for v in view):
                raise Refused("has numbers that are a part of others")
            if count < 0 or not fits(key, count * itemsize(kind)):
                raise Refused("has more or fewer numbers than its file says")
            return Storage(count * itemsize(kind), kind)
    raise Refused("asks for something else than numbers")


# ------------------------------------------------------------------------------------------------ what is kept at last


def _may_build(made: Made, state: Any, layers: set[str]) -> bool:
    """Whether BUILD may give an object this state."""
    if made.of in layers or made.of == "collections.OrderedDict":
        return isinstance(state, dict) and all(type(key) is str for key in state)
    return made.of in STAND_INS and (made.of == "functools.partial" or _idle(state))


def _check_whole(root: Any, layers: set[str], admitted: Mapping[str, Any]) -> None:
    """Raise Refused if a module lacks its state, hooks are stored, or containers are nested without end."""
    level, seen, depth = [root], {id(root)}, 0
    while level:
        if depth > DEEPEST:
            raise Refused("nests containers in containers")
        inner = []
        for thing in level:
            if isinstance(thing, Made) and thing.of in layers and issubclass(admitted[thing.of], nn.Module):
                _check_module(thing, admitted[thing.of])
            inner += [t for t in _inside(thing) if not isinstance(t, str | int | float | None) and id(t) not in seen]
            seen.update(map(id, inner))
        level, depth = inner, depth + 1
    _count_modules(root, {}, set())


def _inside(thing: Any) -> list[Any]:
    if isinstance(thing, Made):
        return [thing.args, thing.state]
    if isinstance(thing, dict):
        return [*thing.keys(), *thing.values()]
    return list(thing) if isinstance(thing, list | tuple) else []


_SCALARS = (bool, int, float, str, type(None))
_HOOKED = re.compile(r"_\w*hooks?(_\w+)?|_compiled_call_impl")


def _items(thing: Any) -> dict[Any, Any] | None:
    """What is in a dict or an OrderedDict."""
    if isinstance(thing, Made) and thing.of == "collections.OrderedDict":
        if isinstance(thing.args, Tuple):
            return {} if not thing.args else None
        thing = thing.args
    return thing if isinstance(thing, dict) else None


def _check_module(module: Made, cls: type) -> None:
    """Raise Refused unless a module has the state that every module has, and nothing in the place of its methods."""
    state, kind = module.state, module.of
    if not isinstance(state, dict) or type(state.get("training")) is not bool:
        raise Refused(f"makes a {kind} without its state")
    for key, value in state.items():
        if _HOOKED.fullmatch(key) and value is not None and _items(value) != {}:
            raise Refused(f"stores hooks ({key}) of a {kind}")
        if callable(getattr(cls, key, None)) and (hasattr(nn.Module, key) or type(value) not in _SCALARS):
            raise Refused(f"puts something in the place of {kind}.{key}")
    for name, of in (("_parameters", _REBUILD), ("_buffers", _REBUILD), ("_modules", None)):
        inside = _items(state.get(name))
        if inside is None or not all(type(key) is str for key in inside):
            raise Refused(f"makes a {kind} without its {name}")
        for value in inside.values():
            if value is not None and not (isinstance(value, Made) and (of is None or _is_tensor(value))):
                raise Refused(f"makes a {kind} whose {name} are something else")


def _is_tensor(value: Made) -> bool:
    return value.of in _REBUILD or value.of == _OF_TYPE


def _count_modules(thing: Any, known: dict[int, int], above: set[int]) -> int:
    """Modules below a module, each counted wherever it is used, which is how often torch visits it."""
    if isinstance(thing, dict) or (isinstance(thing, Made) and thing.of == "collections.OrderedDict"):
        inside = list((_items(thing) or {}).values())
        if not any(isinstance(t, Made) and isinstance(t.state, dict) and "_modules" in t.state for t in inside):
            return 0
    elif isinstance(thing, Made) and isinstance(thing.state, dict) and "_modules" in thing.state:
        inside = list((_items(thing.state["_modules"]) or {}).values())
    else:
        return 0
    if id(thing) in above:
        raise Refused("puts a module inside itself")
    if id(thing) not in known:
        above.add(id(thing))
        known[id(thing)] = 1 + sum(_count_modules(t, known, above) for t in inside)
        above.discard(id(thing))
    if known[id(thing)] > MODULES:
        raise Refused(f"has more than {MODULES} modules")
    return known[id(thing)]
