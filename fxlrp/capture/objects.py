"""Opens objects that hold tensors and are unknown to pytree (a graph library's batch, a dataclass, a cache) into nodes
that pytree knows.

Their tensors are found by walking their attributes.  Closing makes a new object of the same class with the same
attributes and new tensors.  No code of an object is run except `__new__`.
"""

from __future__ import annotations

import copy
import types
import weakref
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

PLAIN = (int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.memory_format, Enum)
UNOPENED = (*PLAIN, Tensor, np.ndarray, nn.Module, type, types.ModuleType, types.FunctionType, types.MethodType)
"""The types whose instances are not opened."""


class _Place:
    """A placeholder in a copy of an object for a value that is filled in when the object is closed."""


@dataclass(frozen=True)
class _Kind:
    """An object with `places` instead of its tensors, and the `names` of its tensors and plain values."""

    thing: Any
    names: tuple[str, ...]
    places: tuple[_Place, ...]

    def __repr__(self) -> str:
        return f"{type(self.thing).__module__}.{type(self.thing).__qualname__}{self.names}"


@dataclass
class _Opened:
    """An object split into its kind and its tensors and plain values."""

    kind: _Kind
    values: list[Any]


pytree.register_pytree_node(
    _Opened,
    lambda o: (o.values, o.kind),
    lambda values, kind: _Opened(kind, list(values)),
    flatten_with_keys_fn=lambda o: (
        [(pytree.GetAttrKey(name), v) for name, v in zip(o.kind.names, o.values, strict=True)],
        o.kind,
    ),
    serialized_type_name="fxlrp.capture.objects.Opened",
)


def open_objects(tree: Any) -> Any:
    """Replaces every object that holds tensors by a node that pytree knows."""
    return pytree.tree_map(lambda leaf: leaf if isinstance(leaf, UNOPENED) else _open(leaf), tree)


def close_objects(tree: Any) -> Any:
    """The inverse of `open_objects`: makes new objects with the tensors that the nodes hold now."""
    return pytree.tree_map(_close, tree, is_leaf=lambda t: isinstance(t, _Opened))


def _open(thing: Any) -> Any:
    leaves = list(_walk(thing, (), set()))
    if not any(isinstance(v, Tensor) for _, v in leaves):
        return thing
    listed = [(path, v) for path, v in leaves if isinstance(v, UNOPENED) or not _private(path)]
    places = tuple(_Place() for _ in listed)
    try:  # plain values stay where they are, and are listed since the graph depends on them
        memo = {id(v): p for p, (_, v) in zip(places, listed, strict=True) if isinstance(v, Tensor)}
        empty = _copy(thing, memo)
    except Exception:
        return thing
    return _Opened(_Kind(empty, tuple(_names([path for path, _ in listed])), places), [v for _, v in listed])


def _close(thing: Any) -> Any:
    if not isinstance(thing, _Opened):
        return thing
    new = zip(thing.kind.places, thing.values, strict=True)
    memo: dict[int, Any] = {id(place): v for place, v in new if isinstance(v, Tensor)}
    return _copy(thing.kind.thing, memo)


def _walk(thing: Any, path: tuple[str, ...], seen: set[int]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The leaves of an object, each after the attributes, keys and indices that lead to it."""
    if isinstance(thing, PLAIN):
        yield path, thing
        return
    if id(thing) in seen or isinstance(thing, weakref.ref):
        return
    seen.add(id(thing))
    if isinstance(thing, UNOPENED):
        yield path, thing
        return
    steps = [*_items(thing), *_attributes(thing)]
    if not steps:
        yield path, thing
    hidden = "_" if isinstance(thing, Mapping) and not isinstance(thing, dict) else ""  # its items are private
    for name, value in steps:
        yield from _walk(value, (*path, hidden + str(name)), seen)


def _copy(thing: Any, made: dict[int, Any]) -> Any:
    """Copies containers and objects; `made` maps the ids of things to what replaces them in the copy."""
    if id(thing) in made:
        return made[id(thing)]
    if isinstance(thing, weakref.ref):
        referent = thing()
        return weakref.ref(made[id(referent)]) if id(referent) in made else thing
    items, attributes = _items(thing), _attributes(thing)
    if isinstance(thing, UNOPENED) or not (items or attributes):
        return thing
    kind: Any = type(thing)
    if isinstance(thing, tuple | set | frozenset):
        values = [_copy(v, made) for _, v in items]
        new = tuple.__new__(kind, values) if isinstance(thing, tuple) else kind(values)
    else:
        new = copy.copy(thing) if kind in (defaultdict, deque) else kind.__new__(kind)
    made[id(thing)] = new
    for key, value in items:
        if isinstance(thing, OrderedDict):
            OrderedDict.__setitem__(new, key, _copy(value, made))
        elif isinstance(thing, dict):
            dict.__setitem__(new, key, _copy(value, made))
        elif isinstance(thing, list):
            list.append(new, _copy(value, made))
        elif isinstance(thing, deque):
            new[key] = _copy(value, made)
    for name, value in attributes:
        if name in getattr(thing, "__dict__", ()):
            new.__dict__[name] = _copy(value, made)
        else:
            object.__setattr__(new, name, _copy(value, made))
    return new


def _items(thing: Any) -> list[tuple[Any, Any]]:
    if isinstance(thing, dict):
        return list(dict.items(thing))
    return list(enumerate(thing)) if isinstance(thing, list | tuple | set | frozenset | deque) else []


def _attributes(thing: Any) -> list[tuple[str, Any]]:
    slots = [c.__dict__.get("__slots__", ()) for c in type(thing).__mro__]
    names = [s for declared in slots for s in ((declared,) if isinstance(declared, str) else declared)]
    state = getattr(thing, "__dict__", {})
    return [*state.items(), *((s, getattr(thing, s)) for s in names if not s.startswith("__") and hasattr(thing, s))]


def _private(path: tuple[str, ...]) -> bool:
    return any(step.startswith("_") for step in path)


def _names(paths: list[tuple[str, ...]]) -> Iterator[str]:
    """A name for each path: its public steps, or all of its steps where another path has these public steps."""
    taken: set[str] = set()
    for path in paths:
        name = ".".join(step for step in path if not step.startswith("_"))
        name = name if name and name not in taken else ".".join(path)
        taken.add(name)
        yield name
