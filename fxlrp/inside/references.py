"""References: what a sample shows of a concept: part of a picture, or words of a text, by its conditional map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fxlrp.errors import FxlrpError
from fxlrp.show.parts import stretch, unit

if TYPE_CHECKING:
    from fxlrp.explainer import Explainer
    from fxlrp.inside.concepts import Concepts

SHOWN = 0.15
"""A crop is of what has at least this part of a smoothed map's largest |R|."""
LEAST = 4
"""A crop is at least a quarter of a picture's side."""


class Reference(NamedTuple):
    """A sample that shows a concept.

    sample: its number.  value: the concept's share of relevance in it, or its activation.
    map: conditional relevance [H, W] of a picture, or [T] of a text's tokens.
    picture: [H', W', 3] in 0…1.  box: the crop (top, left, bottom, right), in parts of the picture.  words: of a text.
    """

    sample: int
    value: float
    map: np.ndarray
    picture: np.ndarray | None = None
    box: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)
    words: tuple[str, ...] = ()


def references(
    explainer: Explainer,
    concepts: Concepts,
    data: Any,
    parts: Sequence[int],
    *,
    by: str = "relevance",
    most: int = 6,
    target: Any = None,
) -> dict[int, list[Reference]]:
    """The samples that show each of some parts, by "relevance" or "activation", each with its conditional map.

    data: as `concepts` took it; what is seen of its i-th sample is `data.seen(i)`, a picture, or words of a text.
    """
    wanted: dict[int, list[int]] = {}
    for part in parts:
        for i in concepts.samples(part, by)[:most]:
            wanted.setdefault(i, []).append(part)
    shown: dict[tuple[int, int], Reference] = {}
    values = getattr(concepts, f"{by}_values")
    for i, several in wanted.items():
        item = data[i]
        label = item[1] if isinstance(item, tuple | list) else None
        maps = conditional_maps(explainer, concepts, item, several, label if target == "label" else target)
        for part, r in zip(several, maps, strict=True):
            place = getattr(concepts, by)[part].tolist().index(i)
            shown[part, i] = reference(i, float(values[part, place]), r, item, _seen(data, i))
    return {p: [shown[p, i] for i in concepts.samples(p, by)[:most]] for p in parts}


def conditional_maps(
    explainer: Explainer, concepts: Concepts, item: Any, parts: Sequence[int], target: Any = None
) -> list[np.ndarray]:
    """The conditional map of each part for one sample, [H, W] or [T]; several channels of colours are summed."""
    args, kwargs = call_of(item)
    given = [concepts.condition(part) for part in parts]
    maps = explainer(*args, target=target, given=given, **kwargs).each[0][0].detach().double().cpu()
    return [flat(r) for r in maps]


def call_of(item: Any) -> tuple[tuple, dict[str, Any]]:
    """The arguments of a call of one sample: a tensor, a dict of them by name, or a pair of either and its class."""
    x = item[0] if isinstance(item, tuple | list) else item
    if isinstance(x, Mapping):
        return (), {name: torch.as_tensor(v)[None] for name, v in x.items()}
    return (torch.as_tensor(x)[None],), {}


def flat(r: Tensor) -> np.ndarray:
    """A map of one sample as [H, W], or [T]."""
    return (r.sum(0) if r.ndim == 3 else r.reshape(-1)).numpy()


def _seen(data: Any, i: int) -> Any:
    return data.seen(i) if hasattr(data, "seen") else None


def reference(sample: int, value: float, r: np.ndarray, item: Any, seen: Any) -> Reference:
    """A sample with its map, cropped if it is a picture.  Raises FxlrpError for a map that is neither."""
    x = item[0] if isinstance(item, tuple | list) else item
    if r.ndim == 2:
        picture = stretch(torch.as_tensor(x).double().cpu()) if seen is None else unit(seen)
        return Reference(sample, value, r, picture, crop(r))
    if r.ndim != 1:
        raise FxlrpError(f"A map of shape {r.shape} is neither of a picture nor of a text.")
    words = tuple(seen) if seen is not None and len(seen) == len(r) else tuple(f"[{i}]" for i in range(len(r)))
    return Reference(sample, value, r, None, words=words)


def crop(r: np.ndarray) -> tuple[float, float, float, float]:
    """The square that holds what is shown of a map [H, W], as (top, left, bottom, right) in parts of its sides."""
    height, width = r.shape
    k = max(1, min(height, width) // 12) | 1
    smooth = torch.nn.functional.avg_pool2d(torch.from_numpy(np.abs(r))[None, None], k, 1, k // 2)[0, 0].numpy()
    inside = smooth >= max(SHOWN * float(smooth.max()), np.finfo(float).tiny)
    if not inside.any():
        return 0.0, 0.0, 1.0, 1.0
    weight = smooth * inside
    rows, columns = np.arange(height) + 0.5, np.arange(width) + 0.5
    y, x = (weight.sum(1) @ rows) / weight.sum(), (weight.sum(0) @ columns) / weight.sum()
    spread = np.sqrt((weight.sum(1) @ (rows - y) ** 2 + weight.sum(0) @ (columns - x) ** 2) / weight.sum())
    side = min(max(3.2 * spread, min(height, width) / LEAST), min(height, width))
    top, left = (float(np.clip(c - side / 2, 0, n - side)) for c, n in ((y, height), (x, width)))
    return top / height, left / width, (top + side) / height, (left + side) / width
