"""A dictionary that keeps only the most recently used entries."""

from __future__ import annotations

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
