"""What stands in for the values of a pickle that is run without being trusted, and where such a value may lie."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from fxlrp.inputs.allowlist import FUNCTIONS

_BUILDABLE = ("torch.nn.modules.", "torchvision.ops.", "numpy.ndarray")


class Refused(ValueError):
    """Raised when a pickle does something that no saved model does; the message says what."""


class Global(str):
    """Stands in for a class or function: its name."""


class Made:
    """Stands in for an object that REDUCE or NEWOBJ makes of the global named `of`."""

    def __init__(self, of: str, args: Any) -> None:
        self.of, self.args = of, args
        self.state: Any = None


class Storage:
    """Stands in for the numbers of tensors, `count` bytes beside the pickle."""

    def __init__(self, count: int, kind: str) -> None:
        self.count, self.kind = count, kind


class Tuple(tuple):
    """A tuple that knows how many leaves are in it, each counted wherever it is used, and how deep they lie."""

    leaves: int
    depth: int


def as_tuple(items: Sequence[Any]) -> Tuple:
    """Make a tuple.  Raises Refused if it is nested so that walking through it takes forever."""
    made = Tuple(items)
    inner = [t for t in items if isinstance(t, Tuple)]
    made.leaves = len(items) - len(inner) + sum(t.leaves for t in inner)
    made.depth = 1 + max((t.depth for t in inner), default=0)
    if made.leaves > 100_000 or made.depth > 20:
        raise Refused("nests tuples in tuples")
    return made


def is_key(key: Any) -> bool:
    """Tell whether a dict or set may have this key: hashing tuples in tuples can take forever."""
    if isinstance(key, Tuple):
        return key.depth <= 3 and key.leaves <= 1000
    return key is None or isinstance(key, str | int | float | bytes | Made)


def idle(item: Any) -> bool:
    """Tell whether an item may lie in a container: of globals only activations, dtypes and harmless classes may."""
    if isinstance(item, Tuple):  # what is in a list or dict was looked at when it was put there
        return all(map(idle, item))
    return not isinstance(item, Global) or item in FUNCTIONS or is_dtype(item) or item.startswith(_BUILDABLE)


def is_dtype(name: str) -> bool:
    """Tell whether a global is one of torch's types of numbers."""
    return isinstance(getattr(torch, name.removeprefix("torch."), None), torch.dtype)


def first_global(items: Any) -> str:
    """Return the first global among nested items, for a message; "" if there is none."""
    if isinstance(items, tuple | list):
        return next(filter(None, map(first_global, items)), "")
    return str(items) if isinstance(items, Global) else ""


def name_of(thing: Any) -> str:
    """Return how a message calls a value."""
    return str(thing) if isinstance(thing, Global) else thing.of if isinstance(thing, Made) else "something"


def items_of(thing: Any) -> dict[Any, Any] | None:
    """Return what is in a dict or an OrderedDict, None for anything else."""
    if isinstance(thing, Made) and thing.of == "collections.OrderedDict":
        if isinstance(thing.args, Tuple):
            return {} if not thing.args else None
        thing = thing.args
    return thing if isinstance(thing, dict) else None
