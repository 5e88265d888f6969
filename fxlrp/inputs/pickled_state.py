"""What a pickle may leave behind: modules with the whole of their state, no hooks, nothing nested without end."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import nn

from fxlrp.inputs.allowlist import NEVER_CALLED, STAND_INS
from fxlrp.inputs.pickled_calls import REBUILD, REBUILD_FROM_TYPE
from fxlrp.inputs.pickled_values import Made, Refused, idle, items_of

DEEPEST = 1000
"""The most containers in each other."""
MODULES = 100_000
"""The most modules of a network, each counted wherever it is used."""

_SCALARS = (bool, int, float, str, type(None))
_HOOKED = re.compile(r"_\w*hooks?(_\w+)?|_compiled_call_impl")


def may_build(made: Made, state: Any, layers: set[str]) -> bool:
    """Tell whether BUILD may give an object this state."""
    if made.of in layers or made.of == "collections.OrderedDict":
        return isinstance(state, dict) and all(type(key) is str for key in state)
    return made.of in STAND_INS and (made.of in NEVER_CALLED or idle(state))


def check_state(root: Any, layers: set[str], admitted: Mapping[str, Any]) -> None:
    """Raise Refused if a module lacks its state, hooks are stored, or containers are nested without end.

    layers: the names of classes that are layers or configs.  admitted: every class, by its name.
    """
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
    """Return what a value consists of, one level down."""
    if isinstance(thing, Made):
        return [thing.args, thing.state]
    if isinstance(thing, dict):
        return [*thing.keys(), *thing.values()]
    return list(thing) if isinstance(thing, list | tuple) else []


def _check_module(module: Made, cls: type) -> None:
    """Raise Refused unless a module has the state that every module has, and nothing in the place of its methods."""
    state, kind = module.state, module.of
    if not isinstance(state, dict) or type(state.get("training")) is not bool:
        raise Refused(f"makes a {kind} without its state")
    for key, value in state.items():
        if _HOOKED.fullmatch(key) and value is not None and items_of(value) != {}:
            raise Refused(f"stores hooks ({key}) of a {kind}")
        if callable(getattr(cls, key, None)) and (hasattr(nn.Module, key) or type(value) not in _SCALARS):
            raise Refused(f"puts something in the place of {kind}.{key}")
    for name, tensors_only in (("_parameters", True), ("_buffers", True), ("_modules", False)):
        inside = items_of(state.get(name))
        if inside is None or not all(type(key) is str for key in inside):
            raise Refused(f"makes a {kind} without its {name}")
        for value in inside.values():
            if value is not None and not (isinstance(value, Made) and (not tensors_only or _is_tensor(value))):
                raise Refused(f"makes a {kind} whose {name} are something else")


def _is_tensor(value: Made) -> bool:
    return value.of in REBUILD or value.of == REBUILD_FROM_TYPE


def _count_modules(thing: Any, counts: dict[int, int], above: set[int]) -> int:
    """Return the number of modules in a module, each counted wherever it is used, as often as torch visits it.

    counts: those counted so far, by id.  above: the ids of modules that this one lies in.
    """
    if isinstance(thing, dict) or (isinstance(thing, Made) and thing.of == "collections.OrderedDict"):
        inside = list((items_of(thing) or {}).values())
        if not any(isinstance(t, Made) and isinstance(t.state, dict) and "_modules" in t.state for t in inside):
            return 0
    elif isinstance(thing, Made) and isinstance(thing.state, dict) and "_modules" in thing.state:
        inside = list((items_of(thing.state["_modules"]) or {}).values())
    else:
        return 0
    if id(thing) in above:
        raise Refused("puts a module inside itself")
    if id(thing) not in counts:
        above.add(id(thing))
        counts[id(thing)] = 1 + sum(_count_modules(t, counts, above) for t in inside)
        above.discard(id(thing))
    if counts[id(thing)] > MODULES:
        raise Refused(f"has more than {MODULES} modules")
    return counts[id(thing)]
