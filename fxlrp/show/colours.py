"""Colours of relevance: one map for signs, one that can be read without telling red from blue."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from fxlrp.errors import FxlrpError

if TYPE_CHECKING:
    from matplotlib.colors import Colormap

RED, BLUE = (219, 20, 26), (33, 77, 217)
COLOURS = ("red-blue", "lightness")
"""red-blue: white at zero, red for, blue against.  lightness: dark against, light for (cividis)."""


def colour_map(name: str) -> Colormap:
    """The matplotlib colour map of that name in `COLOURS`, or of matplotlib's own.

    Raises FxlrpError if there is none.
    """
    import matplotlib
    from matplotlib.colors import LinearSegmentedColormap

    if name == "red-blue":
        ends = [tuple(v / 255 for v in rgb) for rgb in (BLUE, (255, 255, 255), RED)]
        return LinearSegmentedColormap.from_list(name, ends)
    try:
        return matplotlib.colormaps["cividis" if name == "lightness" else name]
    except KeyError:
        raise FxlrpError(f"There are no colours {name!r}; give red-blue, lightness or a map of matplotlib's.") from None


def colour(heat: np.ndarray) -> np.ndarray:
    """Red for positive, blue for negative relevance, [H, W] → [H, W, 3] in 0…1."""
    return np.where(heat[..., None] >= 0, np.array(RED) / 255, np.array(BLUE) / 255)


def diverging(heat: np.ndarray) -> np.ndarray:
    """White at zero, red above, blue below: heat in −1…1, [H, W] → [H, W, 3] in 0…1."""
    strength = np.abs(heat)[..., None]
    return 1 - strength + colour(heat) * strength


def shade(r: float, ends: Sequence[Sequence[float]] = (BLUE, RED)) -> tuple[int, ...]:
    """Return the ground of a word by its relevance, as red, green and blue: white at 0, `ends` towards −1 and 1."""
    strength = min(abs(r), 1.0) ** 0.7 * 0.85
    return tuple(round(255 + (c - 255) * strength) for c in ends[r >= 0])


def ink(rgb: Sequence[float]) -> str:
    """Return black or white, whichever can be read on a colour."""
    return "white" if 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2] < 115 else "black"
