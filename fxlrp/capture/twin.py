"""Copies a model's modules over the same tensors into a twin, which tracing may write to.

torch.export replaces the weights of the module it traces by fake tensors, and forward may set attributes: another
thread that runs the model meanwhile would see both, and an exception could leave them there.
"""

from __future__ import annotations

import functools
import types
import weakref
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

CONTAINERS = (dict, OrderedDict, defaultdict, list, set, deque)
ATOMS = (type(None), bool, int, float, complex, str, bytes)
OWN_WAYS = ("__reduce__", "__reduce_ex__", "__getstate__", "__setstate__", "__copy__", "__deepcopy__", "__del__")
"""The methods by which a class shows that copying its attributes is not enough to copy an object."""


def twin(model: nn.Module) -> nn.Module:
    """A model of the same classes with the same attributes over the same tensors, in modules of its own.

    Copies the modules, the lists, dicts and sets they hold, and whatever refers to one of these: bound methods,
    functions with closures, partials, cached functions, helper objects.  Shares all else with the model.
    """
    return _Twins(_to_copy(model)).of(model)


class _Twins:
    """The counterparts of what is copied, by the id of the thing in the model, each made once."""

    def __init__(self, copied: set[int]) -> None:
        self.copied, self.made = copied, dict[int, Any]()

    def of(self, thing: Any) -> Any:
        """The counterpart of a thing in the model: the thing itself if it is shared."""
        if id(thing) not in self.copied:
            return thing
        if id(thing) not in self.made:
            new = self._build(thing)
            self.made.setdefault(id(thing), new)  # it exists already if something it holds refers back to it
        return self.made[id(thing)]

    def _build(self, thing: Any) -> Any:
        kind: Any = type(thing)
        if kind is tuple or kind is frozenset:
            return kind(map(self.of, thing))
        if isinstance(thing, types.MethodType):
            return types.MethodType(self.of(thing.__func__), self.of(thing.__self__))
        if kind is functools.partial:
            return kind(self.of(thing.func), *map(self.of, thing.args), **self._values(thing.keywords))
        if kind is CACHED:
            return functools.lru_cache(**thing.cache_parameters())(self.of(thing.__wrapped__))
        if kind is weakref.ref:
            return weakref.ref(self.of(thing()))
        if kind is types.FunctionType:
            return self._function(thing)
        if kind in CONTAINERS:
            return self._container(thing)
        new = self.made[id(thing)] = object.__new__(kind)
        new.__dict__.update(self._values(vars(thing)))
        return new

    def _function(self, function: types.FunctionType) -> types.FunctionType:
        closure = function.__closure__ or ()
        cells = tuple(types.CellType() for _ in closure)
        about = function.__code__, function.__globals__, function.__name__, function.__defaults__
        new = self.made[id(function)] = types.FunctionType(*about, cells or None)
        new.__kwdefaults__ = function.__kwdefaults__
        new.__qualname__, new.__module__ = function.__qualname__, function.__module__
        new.__dict__.update(self._values(vars(function)))
        for cell, old in zip(cells, closure, strict=True):
            for value in content(old):
                cell.cell_contents = self.of(value)
        return new

    def _container(self, thing: Any) -> Any:
        kind: Any = type(thing)
        empty = {defaultdict: lambda: kind(thing.default_factory), deque: lambda: kind(maxlen=thing.maxlen)}
        new = self.made[id(thing)] = empty.get(kind, kind)()
        if isinstance(thing, dict):
            new.update({self.of(k): self.of(v) for k, v in thing.items()})
        else:
            add = new.add if kind is set else new.append
            for item in thing:
                add(self.of(item))
        return new

    def _values(self, named: Mapping[str, Any]) -> dict[str, Any]:
        return {name: self.of(value) for name, value in named.items()}


CACHED = type(functools.lru_cache(lambda: None))


def _to_copy(model: nn.Module) -> set[int]:
    """The ids of the modules and containers in a model, and of everything that refers to one of them."""
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
    copied = set(edge)
    while edge:
        for holder in holders[edge.pop()]:
            if holder not in copied:
                copied.add(holder)
                edge.append(holder)
    return copied


def _parts(thing: Any) -> Iterable[Any]:
    """The parts of a thing that a copy of it would need copies of."""
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
    """The value in a closure's cell, or nothing if it has not been set."""
    try:
        return (cell.cell_contents,)
    except ValueError:
        return ()


def _is_module(thing: object) -> bool:
    """Whether it is a Python module; a scripted one lives in C++ and is shared."""
    return isinstance(thing, nn.Module) and not isinstance(thing, torch.jit.ScriptModule)


def _is_plain(kind: type) -> bool:
    """Whether the objects of a class consist of their attributes only."""
    if kind.__new__ is not object.__new__ or not kind.__dictoffset__ or issubclass(kind, type | types.ModuleType):
        return False
    return all(getattr(kind, way, None) is getattr(object, way, None) for way in OWN_WAYS)
