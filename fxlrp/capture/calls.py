"""The tensors in a call of a model, their names, and the signature that calls sharing a graph have in common."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxlrp.capture.axes import Axes
from fxlrp.capture.objects import PLAIN, close_objects
from fxlrp.capture.precision import autocast_types
from fxlrp.errors import InputsRefused, first_line

aten = torch.ops.aten


@dataclass(frozen=True, eq=False)
class Call:
    """The arguments of a call of a model, and the tensors among them."""

    args: tuple
    kwargs: dict[str, Any]
    tensors: list[Tensor]

    @classmethod
    def of(cls, args: tuple, kwargs: dict[str, Any]) -> Call:
        """The call with these arguments."""
        return cls(args, kwargs, split_tensors(args, kwargs)[0])

    @property
    def names(self) -> list[str]:
        """The path of each tensor."""
        return names_of(self.args, self.kwargs)

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Call:
        """The call with each tensor changed."""
        return Call.of(*pytree.tree_map_only(Tensor, change, (self.args, self.kwargs)))

    def signature(self, axes: Axes) -> Signature:
        """What it has in common with calls that can share a graph, with samples at these axes."""
        return Signature(self.args, self.kwargs, axes)


class Signature:
    """The properties shared by calls that can share a graph.

    axes: where the samples of the call are.
    shapes: structure, constants, dtypes, autocast, devices and shapes, except the batch size.
    """

    def __init__(self, args: tuple, kwargs: dict, axes: Axes) -> None:
        self._leaves, self._spec = pytree.tree_flatten((args, kwargs))
        places = iter(axes.inputs)
        self._axes = [next(places) if isinstance(leaf, Tensor) else None for leaf in self._leaves]
        self.shapes = self._of(None)
        self._like: tuple | None = None

    # no functools.cached_property: before Python 3.12 it has a lock, which a fork may find held by another thread
    @property
    def like(self) -> tuple:
        """The same without sequence lengths, for graphs that hold for any length."""
        self._like = self._like or self._of("length")
        return self._like

    @property
    def kind(self) -> tuple:
        """Structure and numbers of axes; calls of one kind usually have their samples at the same axes."""
        return str(self._spec), *(leaf.ndim if isinstance(leaf, Tensor) else None for leaf in self._leaves)

    def _of(self, length: str | None) -> tuple:
        def describe(leaf: object, axis: int | None) -> Hashable:
            if not isinstance(leaf, Tensor):
                if isinstance(leaf, np.ndarray):
                    return leaf.dtype, leaf.shape, leaf.tobytes()
                return (type(leaf), leaf) if isinstance(leaf, PLAIN) else Same(leaf)
            lengths = lengths_of(leaf, axis) if length else ()
            shape = ["batch" if i == axis else length if i in lengths else n for i, n in enumerate(leaf.shape)]
            return tuple(shape), leaf.dtype, leaf.layout, leaf.device, finite(leaf)

        autocast = autocast_types([leaf for leaf in self._leaves if isinstance(leaf, Tensor)])
        return str(self._spec), autocast, *map(describe, self._leaves, self._axes)


def call(model: nn.Module, args: tuple, kwargs: dict) -> Any:
    """Calls the model with arguments that `open_objects` may have opened."""
    args, kwargs = close_objects((args, kwargs))
    return model(*args, **kwargs)


def call_without_gradients(model: nn.Module, args: tuple, kwargs: dict) -> Any:
    """Calls the model without gradients, or with them if it takes derivatives and does not enable gradients itself."""
    try:
        with torch.no_grad():
            return call(model, args, kwargs)
    except RuntimeError as error:
        if "does not require grad" not in str(error):
            raise
    with torch.enable_grad():
        return call(model, args, kwargs)


def refused(error: Exception) -> InputsRefused:
    """The error that says that the model itself refuses a call, for the exception that it raised."""
    reason = first_line(error)
    return InputsRefused(
        f"The model itself refuses these inputs ({reason}); check their number, shape, type and values."
    )


def split_tensors(args: tuple, kwargs: dict) -> tuple[list[Tensor], Callable[[Any], tuple[tuple, dict]]]:
    """The tensors in a call, and a function that rebuilds (args, kwargs) from new tensors."""
    leaves, spec = pytree.tree_flatten((args, kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]

    def rebuild(new: Any) -> tuple[tuple, dict]:
        it = iter(new)
        return pytree.tree_unflatten([next(it) if isinstance(leaf, Tensor) else leaf for leaf in leaves], spec)

    return tensors, rebuild


def names_of(args: tuple, kwargs: dict) -> list[str]:
    """The path of each tensor in a call."""
    paths = pytree.tree_leaves_with_path((args, kwargs))
    return [pytree.keystr(path) for path, leaf in paths if isinstance(leaf, Tensor)]


class Same:
    """An object as a dict key that equals only itself; the key keeps it alive so that its id is not reused."""

    def __init__(self, thing: object) -> None:
        self.thing = thing

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and other.thing is self.thing

    def __hash__(self) -> int:
        return id(self.thing)


def finite(t: Tensor) -> bool:
    """Whether a tensor has no infinite entries; masks often have some, and rules treat them specially."""
    dense = t.is_floating_point() and t.layout is torch.strided and not t.is_meta
    return not dense or not bool(t.isinf().any())


def equal(a: Tensor, b: Tensor) -> bool:
    """torch.equal that also takes sparse tensors."""
    return torch.equal(*(t if t.layout is torch.strided else t.to_dense() for t in (a, b)))


SHORTEST = 2


def lengths_of(t: Tensor, axis: int | None) -> tuple[int, ...]:
    """The axes that may have any length: T of token ids, masks or token types [B, T], of vectors [B, T, F], and of a
    mask [T, T] that samples share; height and width of pictures [B, C, H, W].  Export fixes lengths of 0 and 1, and
    confuses 2 with the batch size."""
    axes: tuple[int, ...]
    if axis is None:
        axes = (0, 1) if t.ndim == 2 and t.shape[0] == t.shape[1] else ()
    else:
        vectors = t.ndim == 3 and axis < 2
        tokens = t.ndim == 2 and not t.is_floating_point() and not t.is_complex()
        pictures = t.ndim == 4 and axis == 0 and t.is_floating_point()
        axes = (1 - axis,) if vectors or tokens else (2, 3) if pictures else ()
    return tuple(a for a in axes if t.shape[a] > SHORTEST)
