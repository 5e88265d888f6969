"""Run a pickle on stand-ins, to see whether it does more than a saved model does.

Nothing is imported, called or allocated here: a class is its name, an object what it was made of, a tensor its sizes.
`pickled_values` are the stand-ins, `pickled_calls` says what may be called, `pickled_state` what may come out.
"""

from __future__ import annotations

import pickletools
import re
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any

from torch._utils import IMPORT_MAPPING, NAME_MAPPING

from fxlrp.inputs.allowlist import DICTS, RECORDS, STAND_INS, is_enum
from fxlrp.inputs.pickled_calls import check_arguments, storage_of
from fxlrp.inputs.pickled_state import check_state, may_build
from fxlrp.inputs.pickled_values import Global, Made, Refused, as_tuple, first_global, idle, is_key, name_of

LONGEST = 2**24
"""The most bytes of a pickle without its tensors, which lie beside it; a thousand layers take half a million."""
MOST = 2_000_000
"""The most steps of a pickle."""

_CONTAINERS = ("collections.OrderedDict", "collections.Counter", *DICTS)
_PUSH = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_PUSH_ARG = frozenset(("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING"))
_TAKE = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "APPEND": 1, "SETITEM": 2}


def full_name(arg: str) -> Global:
    """Return module.name for 'module name' as Python 2 or 3 wrote it, the way torch's unpickler reads it.

    Raises Refused if that is no name.
    """
    module, _, name = arg.partition(" ")
    if (module, name) in NAME_MAPPING:
        module, name = NAME_MAPPING[module, name]
    full = f"{IMPORT_MAPPING.get(module, module)}.{name}"
    if not re.fullmatch(r"[A-Za-z0-9_.]+", full):
        raise Refused("names what is no name")
    return Global(full)


def opcodes(program: bytes | IO[bytes]) -> Iterator[tuple[str, Any]]:
    """Yield the steps of a pickle, (opcode, argument).  Raises Refused if there are too many."""
    for count, (op, arg, _) in enumerate(pickletools.genops(program)):
        if count >= MOST:
            raise Refused(f"takes more than {MOST} steps")
        yield op.name, arg


def globals_of(program: bytes) -> set[Global]:
    """Return the classes and functions that a pickle names."""
    return {full_name(arg) for name, arg in opcodes(program) if name == "GLOBAL"}


def check_program(program: bytes | IO[bytes], admitted: Mapping[str, Any], fits: Callable[[str, int], bool]) -> Any:
    """Run a pickle on stand-ins, and return the stand-in for what it makes.

    admitted: the classes and functions that it may name beside plain data, by name.
    fits(key, count): whether so many bytes lie beside the pickle under a key.

    Raises Refused, saying what, if it does anything that a saved model does not.
    """
    enums = {name for name, value in admitted.items() if is_enum(value)}
    layers = {name for name, value in admitted.items() if isinstance(value, type)} - enums - STAND_INS.keys()
    root = _run(program, layers, enums, fits)
    check_state(root, layers, admitted)
    return root


def _run(program: bytes | IO[bytes], layers: set[str], enums: set[str], fits: Callable[[str, int], bool]) -> Any:
    """Run the steps of a pickle and return what is on the stack when it stops.  Raises Refused for an unknown step."""
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
            stack.append({} if name == "EMPTY_DICT" else [] if name == "EMPTY_LIST" else as_tuple(()))
        elif name in ("TUPLE", "APPENDS", "SETITEMS") or name in _TAKE:
            if name in _TAKE:
                items = stack[-_TAKE[name] :]
                del stack[-_TAKE[name] :]
            else:
                items, stack = stack, below.pop()
            if name.startswith("TUPLE"):
                stack.append(as_tuple(items))
            else:
                _keep(stack[-1], items, name)
        elif name == "BINPERSID":
            stack[-1] = storage_of(stack[-1], fits)
        elif name in ("REDUCE", "NEWOBJ", "BUILD"):
            _make(name, stack, layers, enums)
        elif name == "STOP":
            return stack.pop()
        elif name != "PROTO":
            raise Refused(f"uses the opcode {name}")
    raise Refused("does not end")


def _make(step: str, stack: list[Any], layers: set[str], enums: set[str]) -> None:
    """Do to the stack what REDUCE, NEWOBJ or BUILD does.  Raises Refused unless torch.save writes such a step."""
    if step == "REDUCE":
        args, func = stack.pop(), stack.pop()
        check_arguments(func, args, enums)
        stack.append(Made(func, args))
    elif step == "NEWOBJ":
        args, cls = stack.pop(), stack.pop()
        if not isinstance(cls, Global) or not (cls in RECORDS or (cls in (*layers, *DICTS) and args == ())):
            raise Refused(f"makes a {name_of(cls)} with arguments of its own")
        stack.append(Made(cls, args))
    else:
        state, made = stack.pop(), stack[-1]
        if not isinstance(made, Made) or made.state is not None or not may_build(made, state, layers):
            raise Refused(f"sets the state of {name_of(made)} in a way of its own")
        made.state = state


def _keep(container: Any, items: list[Any], step: str) -> None:
    """Put items into a container, as APPEND and SETITEM do.  Raises Refused for items that may not lie there."""
    if not all(map(idle, items)):
        raise Refused(f"keeps {first_global(items)}")
    if step.startswith("APPEND"):
        if not isinstance(container, list):
            raise Refused("appends to what is no list")
        container.extend(items)
        return
    if len(items) % 2:
        raise Refused("sets half an item")
    pairs = list(zip(items[::2], items[1::2], strict=True))
    if not all(is_key(key) for key, _ in pairs):
        raise Refused("has keys that are no names or numbers")
    if isinstance(container, Made) and container.of in _CONTAINERS:
        container.args = {**(container.args if isinstance(container.args, dict) else {}), **dict(pairs)}
    elif isinstance(container, dict):
        container.update(pairs)
    else:
        raise Refused("sets an item of what is no dict")
