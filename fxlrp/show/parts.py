"""The parts of an attribution: each explained input of one sample, as what it can be shown as."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fxlrp.capture.axes import argument
from fxlrp.errors import FxlrpError

if TYPE_CHECKING:
    from fxlrp.attribution import Attribution

Kind = Literal["picture", "curves", "features"]


class Part(NamedTuple):
    """An explained input of one sample.

    kind: a picture [H, W]; curves [C, T] over time; or features [F], each a number.
    name: where it stood in the call.
    values: what is shown beside the relevance: a picture [H', W', 3] in 0…1, curves [C, T], features [F].
    relevance: float64 [K, H, W], [K, C, T] or [K, F], a map for each class that was explained.
    labels: the features' names.
    """

    kind: Kind
    name: str
    values: np.ndarray
    relevance: np.ndarray
    labels: tuple[str, ...] = ()


def parts_of(a: Attribution, index: int = 0, picture: Any = None, features: Sequence[str] = ()) -> list[Part]:
    """The parts of sample `index`, those that are neither pictures nor curves as features.

    picture: the original [H', W', 3], uint8 or in 0…1.  features: the names of the features.

    Raises FxlrpError for an index or picture that can't be.
    """
    count = samples_of(a)
    if not -count <= index < count:
        raise FxlrpError(f"index={index} is out of range; give one of the {count} samples, 0 to {count - 1}.")
    index %= count
    several = a.several
    names = [argument(name) for name in a.names]
    parts: list[Part] = []
    for i, (x, r) in enumerate(zip(a.inputs, a.each, strict=True)):
        axis = _axis(x, count)
        if axis is not None:  # before anything is converted: a batch is shown sample by sample
            r, x = r.select(axis, index), x.select(axis, index)
        maps = _double(r) if several else _double(r)[None]
        name = names[i] if i < len(names) else str(i)
        seen = picture if picture is not None else a.pictures[index] if index < len(a.pictures) else None
        is_first_picture = not any(p.kind == "picture" for p in parts)
        parts.append(_part(name, x, maps, seen if is_first_picture else None, features))
    return parts


def samples_of(a: Attribution) -> int:
    """The number of samples of a call: the rows of what was explained."""
    first = a.inputs[0]
    if a.target is not None:
        return max(1, len(a.target)) if _axis(first, len(a.target)) is not None else 1
    return len(a.logits) if a.logits.ndim and _axis(first, len(a.logits)) is not None else 1


def _axis(x: Tensor, count: int) -> int | None:
    """The axis of an input's samples: the first of their number; None where one sample is the whole input."""
    sizes = list(x.shape)
    return sizes.index(count) if count in sizes[:2] and x.ndim > 1 else None


def _double(t: Tensor) -> Tensor:
    t = t.detach().cpu()
    return (torch.view_as_real(t.resolve_conj()).sum(-1) if t.is_complex() else t).double()


def _part(name: str, x: Tensor, maps: Tensor, picture: Any, features: Sequence[str]) -> Part:
    """One input x of a sample with its maps [K, *x.shape]."""
    values = _double(x)
    if maps.ndim >= 5:  # a video or a volume: its middle frame, with the relevance of all of them
        maps, values = maps.sum(2), values[:, values.shape[1] // 2]
    while maps.ndim >= 5:
        maps, values = maps.sum(2), values[:, values.shape[1] // 2]
    if maps.ndim == 4:
        shown = stretch(values) if picture is None else unit(picture)
        return Part("picture", name, shown, maps.sum(1).numpy())
    if maps.ndim == 3 and min(maps.shape[1:]) > 0:
        turned = maps.shape[1] > maps.shape[2]  # the longer axis is time
        maps, values = (maps.transpose(1, 2), values.transpose(0, 1)) if turned else (maps, values)
        return Part("curves", name, values.numpy(), maps.numpy())
    values, maps = values.reshape(-1), maps.reshape(len(maps), -1)
    ids = () if x.is_floating_point() or x.is_complex() else tuple(f"id {int(v)}" for v in values)
    labels = tuple(features) if len(features) == len(values) else ids or tuple(f"[{i}]" for i in range(len(values)))
    return Part("features", name, values.numpy(), maps.numpy(), labels)


def unit(picture: Any) -> np.ndarray:
    """A picture [H, W, 3] of uint8 or in 0…1, in 0…1.  Raises FxlrpError for anything else."""
    given = np.asarray(picture.detach().cpu() if isinstance(picture, Tensor) else picture)
    if given.dtype.kind in "biuf" and given.ndim == 3 and given.shape[2] == 3 and given.size:
        scaled = given.astype(np.float64) / (255 if given.dtype == np.uint8 else 1)
        if scaled.min() > -1e-3 and scaled.max() < 1 + 1e-3:  # as far as rounding goes
            return scaled
    raise FxlrpError(
        f"picture is a {type(picture).__name__} of shape {given.shape}; give an array [H, W, 3] of uint8 or in 0…1, "
        "such as PIL.Image.open(path).convert('RGB')."
    )


def stretch(x: Tensor) -> np.ndarray:
    """A network's input [C, H, W] as a picture [H, W, 3], stretched to 0…1."""
    x = x[:3] if x.shape[0] >= 3 else x[:1].expand(3, -1, -1)
    low, high = x.min(), x.max()
    return ((x - low) / (high - low).clamp(min=1e-12)).permute(1, 2, 0).numpy()


def top_of(relevance: np.ndarray) -> float:
    """What the colours are scaled to: the 99.5 % quantile of |R|, so that one pixel does not darken all others."""
    sizes = np.abs(relevance).ravel()
    at = max(0, int(sizes.size * 0.995) - 1)
    return float(np.partition(sizes, at)[at]) or float(sizes.max(initial=0.0)) or 1.0
