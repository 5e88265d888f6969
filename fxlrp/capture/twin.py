"""Twin: a model's modules once more, over the same tensors, for tracing to write into.

torch.export puts fake tensors in the place of the weights of the very module it traces, and forward may set attributes:
another thread that runs the model meanwhile would see both, and an exception could leave them there.
"""

from __future__ import annotations

import functools
import types
import weakref
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

CONTAINERS = (dict, OrderedDict, defaultdict, list, set, deque)
ATOMS = (type(None), bool, int, float, complex, str, bytes)
OWN_WAYS = ("__reduce__", "__reduce_ex__", "__getstate__", "__setstate__", "__copy__", "__deepcopy__", "__del__")
"""The methods by which a class says that a copy of its objects is more than a copy of their attributes."""


def twin(model: nn.Module) -> nn.Module:
    """A model of the same classes with the same attributes over the same tensors, in modules of its own.

    Copied are the modules, the lists, dicts and sets they hold, and what refers to one of these: bound methods,
    functions with closures, partials, caches of functions, helper objects.  All else is shared with the model.
    """
    copied = _to_copy(model)
    made: dict[int, Any] = {}

    def other(thing: Any) -> Any:
        """What stands in the twin for a thing in the model."""
        if id(thing) not in copied:
            return thing
        if id(thing) not in made:
            new = begin(thing)
            made.setdefault(id(thing), new)  # unless what it holds refers back to it, and has made it
        return made[id(thing)]

    def begin(thing: Any) -> Any:
        kind: Any = type(thing)
        new: Any
        if kind is tuple or kind is frozenset:
            return kind(map(other, thing))
        if isinstance(thing, types.MethodType):
            return types.MethodType(other(thing.__func__), other(thing.__self__))
        if kind is functools.partial:
            return kind(other(thing.func), *map(other, thing.args), **{k: other(v) for k, v in thing.keywords.items()})
        if kind is CACHED:
            return functools.lru_cache(**thing.cache_parameters())(other(thing.__wrapped__))
        if kind is weakref.ref:
            return weakref.ref(other(thing()))
        if kind is types.FunctionType:
            cells = [types.CellType() for _ in thing.__closure__ or ()]
            new = types.FunctionType(
                thing.__code__, thing.__globals__, thing.__name__, thing.__defaults__, tuple(cells) or None
            )
            made[id(thing)] = new
            new.__kwdefaults__ = thing.__kwdefaults__
            new.__qualname__, new.__module__ = thing.__qualname__, thing.__module__
            new.__dict__.update({k: other(v) for k, v in vars(thing).items()})
            for cell, old in zip(cells, thing.__closure__ or (), strict=True):
                for value in content(old):
                    cell.cell_contents = other(value)
            return new
        if kind in CONTAINERS:
            empty = {defaultdict: lambda: kind(thing.default_factory), deque: lambda: kind(maxlen=thing.maxlen)}
            new = made[id(thing)] = empty.get(kind, kind)()
            if isinstance(thing, dict):
                new.update({other(k): other(v) for k, v in thing.items()})
            else:
                add = new.add if kind is set else new.append
                for item in thing:
                    add(other(item))
            return new
        new = made[id(thing)] = object.__new__(kind)
        new.__dict__.update({k: other(v) for k, v in vars(thing).items()})
        return new

    return other(model)


CACHED = type(functools.lru_cache(lambda: None))


def _to_copy(model: nn.Module) -> set[int]:
    """The ids of the modules and containers in a model, and of all that refers to one of them."""
    things: dict[int, Any] = {id(model): model}
    holders: dict[int, list[int]] = {id(model): []}
    new = [model]
    while new:
        thing = new.pop()
        for part in _parts(thing):
            if type(part) in ATOMS or isinstance(part, Tensor):
                continue
            if id(part) not in things:
                things[id(part)] = part
                holders[id(part)] = []
                new.append(part)
            holders[id(part)].append(id(thing))
    edge = [i for i, thing in things.items() if _is_module(thing) or type(thing) in CONTAINERS]
    found = set(edge)
    while edge:
        for holder in holders[edge.pop()]:
            if holder not in found:
                found.add(holder)
                edge.append(holder)
    return found


def _parts(thing: Any) -> Iterable[Any]:
    """What a thing consists of, as far as a copy of it would be made of copies of that."""
    kind = type(thing)
    if kind in CONTAINERS or kind in (tuple, frozenset):
        return [*thing.keys(), *thing.values()] if isinstance(thing, dict) else thing
    if kind is types.MethodType:
        return thing.__func__, thing.__self__
    if kind is functools.partial:
        return thing.func, *thing.args, *thing.keywords.values()
    if kind is CACHED:
        return (thing.__wrapped__,)
    if kind is weakref.ref:
        return (target,) if _is_module(target := thing()) else ()
    if kind is types.FunctionType:
        return *(v for cell in thing.__closure__ or () for v in content(cell)), *vars(thing).values()
    return vars(thing).values() if _is_module(thing) or _is_plain(kind) else ()


def content(cell: types.CellType) -> tuple:
    """What a variable of a closure holds, if it has been set."""
    try:
        return (cell.cell_contents,)
    except ValueError:
        return ()


def _is_module(thing: Any) -> bool:
    """Whether it is a module of Python's: a scripted one is one of C++, and shared."""
    return isinstance(thing, nn.Module) and not isinstance(thing, torch.jit.ScriptModule)


def _is_plain(kind: type) -> bool:
    """Whether the objects of a class are their attributes and nothing else."""
    if kind.__new__ is not object.__new__ or not kind.__dictoffset__ or issubclass(kind, type | types.ModuleType):
        return False
    return all(getattr(kind, way, None) is getattr(object, way, None) for way in OWN_WAYS)
