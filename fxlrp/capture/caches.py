"""Removes the tensors of a trace from the caches that a model's forward keeps outside of the model."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor

from fxlrp.capture.twin import CACHED, content


@contextmanager
def caches_cleaned(model: nn.Module) -> Iterator[None]:
    """On exit, clears function caches that were filled within, and removes traced tensors from dicts and lists."""
    places = _namespaces(model)
    sizes = {id(f): f.cache_info().currsize for names in places for f in _functions(names)}
    try:
        yield
    finally:
        for names in places:
            for f in _functions(names):
                if f.cache_info().currsize != sizes.get(id(f), 0):
                    f.cache_clear()
            for name, held in list(names.items()):
                if not name.startswith("__"):
                    _clean(held)


def _namespaces(model: nn.Module) -> list[Mapping[str, Any]]:
    """The names in the files, the classes and the enclosing functions that define a model's modules, except torch's."""
    classes = {
        c
        for m in model.modules()
        for c in type(m).__mro__
        if not f"{c.__module__}.".startswith(("torch.", "builtins."))
    }
    files = {c.__module__ for c in classes}
    enclosing = [_closed_over(f) for c in classes for f in vars(c).values() if isinstance(f, types.FunctionType)]
    return [*(vars(sys.modules[f]) for f in files if f in sys.modules), *map(vars, classes), *enclosing]


def _closed_over(function: types.FunctionType) -> dict[str, Any]:
    """The variables that a function closes over."""
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    return {name: value for name, cell in cells for value in content(cell)}


def _functions(names: Mapping[str, Any]) -> list[Any]:
    unwrapped = (getattr(v, "__func__", v) for v in list(names.values()))
    return [f for f in unwrapped if type(f) is CACHED]


def _clean(held: object) -> None:
    if type(held) is dict:
        for key in [k for k, v in held.items() if _is_traced(v)]:
            held.pop(key, None)
    elif type(held) is list and any(map(_is_traced, held)):
        held[:] = [v for v in held if not _is_traced(v)]


def _is_traced(value: Any) -> bool:
    """Whether a value is a tensor that is valid only in a trace, or a small tuple, list or dict with one."""
    if type(value) in (tuple, list, dict) and len(value) <= 16:
        return any(map(_is_traced, value.values() if type(value) is dict else value))
    return isinstance(value, FakeTensor | FunctionalTensor)
