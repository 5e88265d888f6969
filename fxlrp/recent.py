"""What was used last: a dictionary that keeps only the most recently used entries, and a value for each thread."""

from __future__ import annotations

import threading
from collections.abc import Hashable
from itertools import count
from operator import itemgetter
from typing import Generic, TypeVar

V = TypeVar("V")


class Recent(Generic[V]):
    """A dictionary of the `size` entries that were read or set last; a copy of one is empty.

    Threads may share it, and a fork may happen at any time: it has no lock, because each step is one operation of a
    plain dictionary.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._values: dict[Hashable, V] = {}
        self._used: dict[Hashable, int] = {}
        self._clock = count()

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: Hashable) -> V | None:
        """The value of a key, or None."""
        value = self._values.get(key)
        if value is not None:
            self._used[key] = next(self._clock)
        return value

    def set(self, key: Hashable, value: V) -> V:
        """Stores a value and returns it; drops the least recently used entry if there are too many."""
        self._used[key] = next(self._clock)
        self._values[key] = value
        while len(self._used) > self.size:
            oldest, _ = min(list(self._used.items()), key=itemgetter(1))
            self._values.pop(oldest, None)
            self._used.pop(oldest, None)
        return value

    def drop(self, key: Hashable) -> None:
        """Removes a key, if it is there."""
        self._values.pop(key, None)
        self._used.pop(key, None)

    def clear(self) -> None:
        """Removes all entries."""
        for key in list(self._used):
            self.drop(key)

    def __reduce__(self) -> tuple:
        return Recent, (self.size,)


class Latest(Generic[V]):
    """The value that this thread set last, or, if it set none, the one that any thread did; a copy has none."""

    def __init__(self) -> None:
        self._of_any: V | None = None
        self._here = threading.local()

    def get(self) -> V | None:
        """The value, or None if none was set."""
        return getattr(self._here, "value", self._of_any)

    def set(self, value: V) -> V:
        """Stores a value and returns it."""
        self._of_any = self._here.value = value
        return value

    def __reduce__(self) -> tuple:
        return Latest, ()
