"""The axis of each tensor in a call that counts the samples."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fxlrp.errors import FxlrpError


def joined_by_sparse(count: int, tensors: Sequence[Tensor]) -> bool:
    """Whether one of these tensors is sparse and has an axis of length `count`, which then counts a graph's nodes."""
    return any(t.layout is not torch.strided and count in t.shape for t in tensors)


Batch = None | int | Mapping[str, int | None] | Literal["auto"]
"""How a user states the sample axis: one for all tensors, None for a call that is one sample, or one per name."""


def argument(path: str) -> str:
    """A user's name for the input at a path: "input_ids" for "kwargs['input_ids']", "0" for the first positional."""
    return ".".join(re.findall(r"\w+", path)[1:])


@dataclass(frozen=True)
class Axes:
    """The sample axes of a call.

    inputs: the axis of each tensor of the call; None for a tensor that all samples share.
    output: the axis of the explained output; None if the whole output is about one sample.
    """

    inputs: tuple[int | None, ...]
    output: int | None = 0

    @staticmethod
    def first(tensors: Sequence[Tensor]) -> Axes:
        """The first axis of the first tensor that has axes, and of all tensors as long there; none if a sparse matrix
        connects the entries along it."""
        count = next((t.shape[0] for t in tensors if t.ndim), 1)
        joined = joined_by_sparse(count, tensors)
        return Axes(tuple(0 if t.ndim and t.shape[0] == count and not joined else None for t in tensors))

    @staticmethod
    def none(tensors: Sequence[Tensor], output: int | None = None) -> Axes:
        """Axes of a call that is one sample."""
        return Axes((None,) * len(tensors), output)

    @staticmethod
    def asked(batch: Batch, tensors: Sequence[Tensor], paths: Sequence[str], parameters: Sequence[str]) -> Axes:
        """The axes that a user names, by each tensor's place in the call or by forward's name for it.

        Raises FxlrpError for an axis or name that the call does not have, and for axes of different lengths.
        """
        if batch is None:
            return Axes.none(tensors)
        names = [argument(path) for path in paths]
        if isinstance(batch, Mapping):
            if unknown := [name for name in batch if name not in (*names, *parameters)]:
                available = ", ".join(parameters)
                raise FxlrpError(f"batch={dict(batch)} names {unknown[0]!r}; the call's tensors are {available}.")
            axes = [batch.get(called, batch.get(name)) for called, name in zip(parameters, names, strict=True)]
        elif isinstance(batch, int) and not isinstance(batch, bool):
            count = next((t.shape[batch] for t in tensors if -t.ndim <= batch < t.ndim), None)
            if count is None:
                raise FxlrpError(f"batch={batch}: no tensor of the call has an axis {batch}.")
            axes = [
                batch if -t.ndim <= batch < t.ndim and t.shape[batch] == count and t.layout is torch.strided else None
                for t in tensors
            ]
        else:
            raise FxlrpError(f"batch={batch!r} is not an axis, None, or a dict of the axis of each tensor by its name.")
        for name, t, axis in zip(names, tensors, axes, strict=True):
            if axis is not None and not -t.ndim <= axis < t.ndim:
                raise FxlrpError(f"batch={batch!r}: {name} has shape {tuple(t.shape)}, and no axis {axis}.")
        axes_of_call = Axes(tuple(a if a is None else a % t.ndim for a, t in zip(axes, tensors, strict=True)))
        if not axes_of_call.fit(tensors):
            raise FxlrpError(f"batch={batch!r}: the tensors have different lengths there.")
        return axes_of_call

    def fit(self, tensors: Sequence[Tensor]) -> bool:
        """Whether the tensors have these axes, all of one length."""
        pairs = [(t, a) for t, a in zip(tensors, self.inputs, strict=True) if a is not None]
        return all(a < t.ndim for t, a in pairs) and len({t.shape[a] for t, a in pairs}) <= 1

    @property
    def whole(self) -> bool:
        """Whether the call is one sample."""
        return all(axis is None for axis in self.inputs)

    def count(self, tensors: Sequence[Tensor]) -> int:
        """The number of samples in a call with these tensors."""
        return next((t.shape[a] for t, a in zip(tensors, self.inputs, strict=True) if a is not None), 1)

    def column(self, i: int | str) -> int:
        """The axis for the maps of several classes: after the sample axis of the i-th input, or of an inner tensor."""
        axis = 0 if isinstance(i, str) else self.inputs[i]
        return 0 if axis is None else axis + 1

    def rows(self, output: Tensor) -> Tensor:
        """The explained output with its samples on the first axis."""
        return output[None] if self.output is None else output.movedim(self.output, 0) if self.output else output

    def each(self, f: Callable[[Tensor, int], Tensor], args: Any) -> Any:
        """Replaces each tensor that has samples in a call's arguments by f(tensor, axis)."""
        axes = iter(self.inputs)

        def one(t: Tensor) -> Tensor:
            axis = next(axes)
            return t if axis is None else f(t, axis)

        return pytree.tree_map_only(Tensor, one, args)
