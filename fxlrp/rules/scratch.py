"""Scratch memory: what is made of a layer's weights for a moment is made in one place, layer after layer.

New memory for each costs a CPU several times what computing them does.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

LARGE = 2**22
"""How many entries of a weight something is made of at once: more are taken in pieces of the outputs they belong to."""


def rows_at_once(w: Tensor) -> int:
    """How many rows of a weight [K, C] are one piece."""
    return max(LARGE // max(w.shape[1], 1), 1)


class _Places(threading.local):
    def __init__(self) -> None:
        self.memory: dict[str, Tensor] | None = None


_places = _Places()


@contextmanager
def scratch() -> Iterator[None]:
    """Within it, this thread's `borrow` has memory to lend."""
    before, _places.memory = _places.memory, {}
    try:
        yield
    finally:
        _places.memory = before


def borrow(name: str, like: Tensor) -> Tensor | None:
    """Memory shaped like a tensor on the CPU, for an op's `out`: it is the caller's until the same name is borrowed
    again.  None, for which `out` takes new memory, where there is none to lend."""
    memory = _places.memory
    dense = like.device.type == "cpu" and like.layout is torch.strided
    if memory is None or not dense or not like.is_contiguous():
        return None
    if name not in memory or memory[name].dtype != like.dtype or memory[name].numel() < like.numel():
        memory.pop(name, None)  # before there is more
        memory[name] = like.new_empty(like.numel())
    return memory[name][: like.numel()].view(like.shape)
