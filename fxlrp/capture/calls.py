"""Calls: the tensors in a call of a model, what they are called, and what calls have in common that share a graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxlrp.capture.axes import Axes
from fxlrp.capture.objects import PLAIN, close_objects
from fxlrp.capture.precision import autocast_types

aten = torch.ops.aten


@dataclass(frozen=True)
class Signature:
    """What calls have in common that can share a graph: structure, constants, dtypes, autocast, devices and `shapes`
    but for the batch; or, for graphs of any length, `like` alone, which leaves out the lengths of sequences.  What only
    the `kind` of is the same, with as many axes, have their samples at the same axes as a rule."""

    shapes: tuple
    like: tuple
    kind: tuple


def call(model: nn.Module, args: tuple, kwargs: dict) -> Any:
    """What the model returns for arguments that `open_objects` may have opened."""
    args, kwargs = close_objects((args, kwargs))
    return model(*args, **kwargs)


def answer(model: nn.Module, args: tuple, kwargs: dict) -> Any:
    """What the model returns, without gradients unless it takes some itself and leaves it to its caller to allow it."""
    try:
        with torch.no_grad():
            return call(model, args, kwargs)
    except RuntimeError as error:
        if "does not require grad" not in str(error):
            raise
    with torch.enable_grad():
        return call(model, args, kwargs)


def split_tensors(args: tuple, kwargs: dict) -> tuple[list[Tensor], Callable[[Any], tuple[tuple, dict]]]:
    """The tensors in a call, and a function that rebuilds (args, kwargs) from others like them."""
    leaves, spec = pytree.tree_flatten((args, kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]

    def rebuild(new: Any) -> tuple[tuple, dict]:
        it = iter(new)
        return pytree.tree_unflatten([next(it) if isinstance(leaf, Tensor) else leaf for leaf in leaves], spec)

    return tensors, rebuild


def names_of(args: tuple, kwargs: dict) -> list[str]:
    """Where each tensor stands in a call."""
    paths = pytree.tree_leaves_with_path((args, kwargs))
    return [pytree.keystr(path) for path, leaf in paths if isinstance(leaf, Tensor)]


def signature(args: tuple, kwargs: dict, axes: Axes) -> Signature:
    """The signature of a call whose samples are at these axes."""
    leaves, spec = pytree.tree_flatten((args, kwargs))
    places = iter(axes.inputs)

    def describe(leaf: Any, axis: int | None, length: Any = None) -> Any:
        if not isinstance(leaf, Tensor):
            if isinstance(leaf, np.ndarray):
                return leaf.dtype, leaf.shape, leaf.tobytes()
            return (type(leaf), leaf) if isinstance(leaf, PLAIN) else Same(leaf)
        lengths = lengths_of(leaf, axis) if length else ()
        shape = ["batch" if i == axis else length if i in lengths else n for i, n in enumerate(leaf.shape)]
        return tuple(shape), leaf.dtype, leaf.layout, leaf.device, finite(leaf)

    at = [next(places) if isinstance(leaf, Tensor) else None for leaf in leaves]
    common = (str(spec), autocast_types([leaf for leaf in leaves if isinstance(leaf, Tensor)]))
    like = (*common, *(describe(leaf, axis, "length") for leaf, axis in zip(leaves, at, strict=True)))
    kind = (str(spec), *(leaf.ndim if isinstance(leaf, Tensor) else None for leaf in leaves))
    return Signature((*common, *map(describe, leaves, at)), like, kind)


class Same:
    """An object as a key: equal to itself alone, and kept alive, so that its identity is not given to another."""

    def __init__(self, thing: Any) -> None:
        self.thing = thing

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and other.thing is self.thing

    def __hash__(self) -> int:
        return id(self.thing)


def finite(t: Tensor) -> bool:
    """Whether there is no infinity in a tensor, as there is in masks: rules look out for it."""
    dense = t.is_floating_point() and t.layout is torch.strided
    return not dense or not bool(t.isinf().any())


def equal(a: Tensor, b: Tensor) -> bool:
    """torch.equal, of sparse tensors too."""
    return torch.equal(*(t if t.layout is torch.strided else t.to_dense() for t in (a, b)))


SHORTEST = 2


def lengths_of(t: Tensor, axis: int | None) -> tuple[int, ...]:
    """The axes that may be lengths of a sequence: of token ids, their mask or kinds [B, T], of vectors [B, T, F], of a
    mask [T, T] that samples share.  Export fixes lengths of 0 and 1, and can't tell one of 2 from the batch."""
    axes: tuple[int, ...]
    if axis is None:
        axes = (0, 1) if t.ndim == 2 and t.shape[0] == t.shape[1] else ()
    else:
        vectors = t.ndim == 3 and axis < 2
        tokens = t.ndim == 2 and not t.is_floating_point() and not t.is_complex()
        axes = (1 - axis,) if vectors or tokens else ()
    return tuple(a for a in axes if t.shape[a] > SHORTEST)
