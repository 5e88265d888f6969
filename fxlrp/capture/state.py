"""Records the state that a model computes with beside its inputs, to notice changes and to undo those of a run."""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from operator import is_
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fxlrp.capture.twin import ATOMS

CONTAINERS = (dict, OrderedDict, list, set, tuple)


class Attribute(NamedTuple):
    """An attribute of a model's n-th module."""

    module: int
    name: str


class _Part:
    """A snapshot of a module."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.forward = getattr(type(module), "forward", None)
        self.attributes = dict(vars(module))
        self.holders = [(name, v, _inside(v)) for name, v in self.attributes.items() if v.__class__ in CONTAINERS]
        self.values = tuple(self.attributes.values())
        self.keys = {name: tuple(v) for name, v, _ in self.holders if isinstance(v, dict)}

    def is_still(self) -> bool:
        """Whether the module is unchanged."""
        current = vars(self.module)
        if getattr(type(self.module), "forward", None) is not self.forward or len(current) != len(self.values):
            return False
        if not all(map(is_, current.values(), self.values)):
            return False
        return all(len(v) == len(held) and (not held or all(map(is_, _inside(v), held))) for _, v, held in self.holders)

    def changed(self) -> set[str]:
        """The attributes that have changed."""
        current = _Part(self.module)
        changed = set() if current.forward is self.forward else {"forward"}
        for old, new in (
            (self.attributes, current.attributes),
            ({n: held for n, _, held in self.holders}, {n: held for n, _, held in current.holders}),
        ):
            changed |= {n for n in {*old, *new} if n not in old or n not in new or not _same(old[n], new[n])}
        return changed

    def put_back(self, name: str) -> None:
        """Restores an attribute's value, and the contents of a list, dict or set."""
        if name not in self.attributes:
            vars(self.module).pop(name, None)
            return
        vars(self.module)[name] = self.attributes[name]
        for other, holder, held in self.holders:
            if other != name or isinstance(holder, tuple) or tuple(map(id, _inside(holder))) == tuple(map(id, held)):
                continue
            holder.clear()
            if isinstance(holder, dict):
                holder.update(zip(self.keys[name], held, strict=True))
            else:
                (holder.update if isinstance(holder, set) else holder.extend)(held)


def _inside(holder: Any) -> tuple:
    return tuple(holder.values()) if isinstance(holder, dict) else tuple(holder)


class State:
    """A snapshot of a model's modules with their attributes, hooks and weights: by identity, numbers by value."""

    def __init__(self, model: nn.Module) -> None:
        self.parts = [_Part(module) for module in model.modules()]

    def changed(self) -> set[Attribute]:
        """The attributes that have changed, including the dicts of submodules and weights."""
        changes = ((i, part.changed()) for i, part in enumerate(self.parts) if not part.is_still())
        return {Attribute(i, name) for i, names in changes for name in names}


def _same(a: Any, b: Any) -> bool:
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    if type(a) is tuple:
        return len(a) == len(b) and (all(map(is_, a, b)) or all(map(_same, a, b)))
    return type(a) in ATOMS and a == b


@contextmanager
def undisturbed(model: nn.Module, seed: int) -> Iterator[set[Attribute]]:
    """Restores a model's buffers and attributes, and torch's random state, after a run with random numbers by `seed`.
    Yields a set that is filled with the attributes that the run changed."""
    before = State(model)
    buffers = [(b, b._version, b.clone()) for b in model.buffers() if not b.is_inference()]
    places: set[Attribute] = set()
    with drawing(seed, list(model.parameters())), gradients_kept(model):
        try:
            yield places
        finally:
            places |= before.changed()
            for place in places:
                before.parts[place.module].put_back(place.name)
            with torch.no_grad():
                for buffer, version, value in buffers:
                    dense = buffer.layout is torch.strided and not buffer.is_meta
                    if buffer._version != version or (dense and not torch.equal(buffer, value)):
                        buffer.copy_(value)  # observers write without changing the version


@contextmanager
def gradients_kept(model: nn.Module) -> Iterator[None]:
    """Keeps the gradients of a model's weights, though its forward may call backward."""
    before = [(p, p.grad) for p in model.parameters()]
    try:
        for p, grad in before:
            if grad is not None:  # backward would add to it
                p.grad = None
        yield
    finally:
        for p, grad in before:
            if p.grad is not grad:
                p.grad = grad


@contextmanager
def drawing(seed: int, tensors: Sequence[Tensor]) -> Iterator[None]:
    """Draws random numbers by a seed, torch's, Python's and NumPy's, and restores their states afterwards."""
    devices = sorted({t.device.index or 0 for t in tensors if t.device.type == "cuda"})
    with torch.random.fork_rng(devices), draws_kept():
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        yield


@contextmanager
def draws_kept() -> Iterator[None]:
    """Restores the state of Python's and NumPy's random numbers, so that what runs next draws the same again."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
