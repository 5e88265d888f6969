"""Figures of attributions, by matplotlib: what was asked above, the maps with a scale, and who drew it below."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fxlrp import __version__
from fxlrp.show.colours import colour_map
from fxlrp.show.fonts import legible
from fxlrp.show.parts import Part, laid_out, parts_of, top_of
from fxlrp.show.words import against, headline, maps_of, small_print

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from fxlrp.attribution import Attribution

SIDE = 3.2
"""Inches of a panel."""
MOST_FEATURES, MOST_CURVES = 20, 6


def plot(
    a: Attribution,
    *,
    index: int = 0,
    picture: Any = None,
    features: Sequence[str] = (),
    colours: str = "red-blue",
    opacity: float = 0.85,
) -> Figure:
    """A matplotlib figure of sample `index`: for each explained input, and each class that was asked about, a row.

    A picture is shown beside its relevance, with a colour bar, and under it; curves over time are coloured by it; of
    features the 20 that count most are bars; the nodes or edges of a graph are coloured.

    picture, features: as in `parts_of`.  colours: as in `colour_map`.  opacity: of the overlay, 0…1.

    Raises FxlrpError for an index, a picture or colours that can't be.
    """
    parts = parts_of(a, index, picture, features)
    palette = colour_map(colours)
    rows = [(part, k) for k in range(maps_of(a, index)) for part in parts]
    heights = [_height(part) for part, _ in rows]
    wide = 3 * SIDE + 1
    figure = blank(figsize=(wide, sum(heights) + 0.35), layout="constrained", dpi=100)
    bands = figure.subfigures(len(rows), 1, height_ratios=heights, squeeze=False)[:, 0]
    for band, (part, k) in zip(bands, rows, strict=True):
        of = f"  ({part.title})" if len(parts) > 1 else ""
        band.suptitle(f"{headline(a, index, k)}{of}\n{small_print(a)}".strip(), fontsize=11)
        _DRAWN[part.kind](band, part, k, palette, opacity)
    figure.text(0.005, 0.004, f"fxlrp {__version__}", fontsize=6, color="0.5", va="bottom")
    return legible(figure)


def compare(maps: Mapping[str, Attribution], *, colours: str = "red-blue", opacity: float = 0.85) -> Figure:
    """A matplotlib figure of one question answered in several ways: for pictures a column for each, by its name, for
    anything else a row.

    Of several samples, the first is shown.  colours, opacity: as in `plot`, whose errors it raises.
    """
    palette = colour_map(colours)
    every = {name: parts_of(a) for name, a in maps.items()}
    titles = {name: "\n".join(filter(None, (name, against(a)))) for name, a in maps.items()}
    title = headline(next(iter(maps.values())))
    if all(len(parts) == 1 and parts[0].kind == "picture" for parts in every.values()):
        figure = blank(figsize=(SIDE * (len(maps) + 1), 2 * SIDE + 1), layout="constrained", dpi=100)
        columns = figure.subplots(2, len(maps) + 1).T
        first = next(iter(every.values()))[0]
        columns[0][0].imshow(first.values)
        columns[0][0].set_title("input", fontsize=10)
        for (over, alone), (name, parts) in zip(columns[1:], every.items(), strict=True):
            over.set_title(titles[name], fontsize=10)
            _overlay(over, parts[0], 0, palette, opacity)
            _heat(alone, parts[0], 0, palette)
        for axes in columns.ravel():
            axes.set_axis_off()
    else:
        rows = [(name, part) for name, parts in every.items() for part in parts]
        heights = [_height(part) for _, part in rows]
        figure = blank(figsize=(3 * SIDE + 1, sum(heights) + 0.8), layout="constrained", dpi=100)
        bands = figure.subfigures(len(rows), 1, height_ratios=heights, squeeze=False)[:, 0]
        for band, (name, part) in zip(bands, rows, strict=True):
            band.suptitle(titles[name].replace("\n", " · "), fontsize=10)
            _DRAWN[part.kind](band, part, 0, palette, opacity)
    figure.suptitle(title, fontsize=12)
    return legible(figure)


def blank(**how: Any) -> Figure:
    """A figure that a notebook shows, without pyplot, which would keep it."""
    from matplotlib.figure import Figure

    class Shown(Figure):
        def _repr_png_(self) -> bytes:
            out = io.BytesIO()
            self.savefig(out, format="png", dpi=72)
            return out.getvalue()

    return Shown(**how)


def _height(part: Part) -> float:
    if part.kind in ("nodes", "edges"):
        return 2 * SIDE
    if part.kind == "picture":
        return SIDE * min(2.0, max(0.4, part.values.shape[0] / part.values.shape[1])) + 0.7
    rows = min(MOST_FEATURES, len(part.labels)) / 4 if part.kind == "features" else min(MOST_CURVES, len(part.values))
    return max(1.2, rows) + 1.1


def _picture(band: Any, part: Part, k: int, palette: Any, opacity: float) -> None:
    """The picture, its relevance with a colour bar, and the one over the other, at the picture's own resolution."""
    left, middle, right = band.subplots(1, 3)
    left.imshow(part.values)
    _scale(band, _heat(middle, part, k, palette), middle)
    _overlay(right, part, k, palette, opacity)
    for axes, title in ((left, "input"), (middle, "relevance"), (right, "both")):
        axes.set_title(title, fontsize=9)
        axes.set_axis_off()


def _heat(axes: Axes, part: Part, k: int, palette: Any, **how: Any) -> Any:
    """Draw a map as large as its picture; returns the image."""
    height, width = part.values.shape[:2]
    top = top_of(part.relevance[k])
    how = {"interpolation": "nearest", **how}
    return axes.imshow(part.relevance[k], cmap=palette, vmin=-top, vmax=top, extent=(0, width, height, 0), **how)


def _overlay(axes: Axes, part: Part, k: int, palette: Any, opacity: float) -> None:
    """Draw a map over its picture in grey, the stronger the less it lets through."""
    heat, (height, width) = part.relevance[k], part.values.shape[:2]
    grey = part.values.mean(2) * 0.6 + 0.35
    axes.imshow(grey, cmap="gray", vmin=0, vmax=1, extent=(0, width, height, 0))
    strength = np.clip(np.abs(heat) / top_of(heat), 0, 1) ** 0.6 * opacity
    smooth = "bilinear" if heat.shape != (height, width) else "nearest"
    _heat(axes, part, k, palette, alpha=strength, interpolation=smooth)


def _curves(band: Any, part: Part, k: int, palette: Any, opacity: float) -> None:
    """Each curve, those with the most relevance first, as points over time coloured by relevance."""
    from matplotlib.collections import LineCollection

    r = part.relevance[k]
    top = top_of(r)
    order = np.argsort(-np.abs(r).sum(1), kind="stable")[:MOST_CURVES]
    every = band.subplots(len(order), 1, squeeze=False, sharex=True)[:, 0]
    for axes, row in zip(every, order, strict=True):
        values, time = part.values[row], np.arange(part.values.shape[1])
        points = np.stack([time, values], 1)
        pieces = np.stack([points[:-1], points[1:]], 1)
        lines = LineCollection(list(pieces), cmap=palette, linewidths=2.5)
        lines.set_array((r[row][:-1] + r[row][1:]) / 2)
        lines.set_clim(-top, top)
        axes.plot(time, values, color="0.75", linewidth=0.8)
        axes.add_collection(lines)
        axes.set_ylabel(f"[{row}]", fontsize=8)
        axes.tick_params(labelsize=7)
    every[-1].set_xlabel("time", fontsize=8)
    _scale(band, lines, list(every))


def _features(band: Any, part: Part, k: int, palette: Any, opacity: float) -> None:
    """The features with the most relevance, the largest above, with their values beside their names."""
    r = part.relevance[k]
    order = np.argsort(-np.abs(r), kind="stable")[:MOST_FEATURES][::-1]
    axes: Axes = band.subplots()
    top = float(np.abs(r).max(initial=0)) or 1.0
    axes.barh(range(len(order)), r[order], color=palette(0.5 + 0.5 * r[order] / top), edgecolor="0.6", linewidth=0.5)
    is_named = not part.labels[0].startswith("id ") if part.labels else False
    names = [f"{part.labels[i]} = {part.values[i]:.4g}" if is_named else part.labels[i] for i in order]
    axes.set_yticks(range(len(order)), names, fontsize=8)
    axes.axvline(0, color="0.3", linewidth=0.8)
    axes.set_xlabel("relevance", fontsize=8)
    axes.tick_params(axis="x", labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)


def _graph(band: Any, part: Part, k: int, palette: Any, opacity: float) -> None:
    """The nodes coloured by their relevance, those that count most with their names, and the edges between them; or the
    edges coloured, those of both directions as one line."""
    from matplotlib.collections import LineCollection

    drawn, axes = laid_out(part), band.subplots()
    of_nodes = part.kind == "nodes"
    r = part.relevance[k]
    r = r[drawn.nodes] if of_nodes else np.array([r[line].sum() for line in drawn.lines])
    top = float(np.abs(r).max(initial=0)) or 1.0
    ends = list(drawn.places[drawn.joined])
    wide = 0.2 if of_nodes else 1.5 + 5 * np.abs(r) / top
    axes.add_collection(LineCollection(ends, colors="0.7", linewidths=wide + 0.8, zorder=0))
    lines = LineCollection(ends, linewidths=wide, zorder=1)
    shown = axes.scatter(*drawn.places.T, c="white", s=160 if of_nodes else 90, edgecolors="0.4", zorder=2)
    coloured = shown if of_nodes else lines
    coloured.set(array=r, cmap=palette, clim=(-top, top))
    if not of_nodes:
        axes.add_collection(lines)
    most = np.argsort(-np.abs(r), kind="stable")[:MOST_FEATURES]
    for i in most if of_nodes else range(min(len(drawn.nodes), 3 * MOST_FEATURES)):
        name = part.labels[drawn.nodes[i]].removeprefix("node ") if of_nodes else str(drawn.nodes[i])
        axes.annotate(name, drawn.places[i], ha="center", va="center", fontsize=7)
    axes.set_axis_off()
    axes.margins(0.06)
    _scale(band, coloured, axes)


def _scale(band: Any, shown: Any, axes: Any) -> None:
    """A colour bar that says which end is for the class."""
    bar = band.colorbar(shown, ax=axes, fraction=0.046, pad=0.02)
    bar.ax.tick_params(labelsize=7)
    bar.ax.set_ylabel("against  ←  relevance  →  for", fontsize=7)


_DRAWN = {"picture": _picture, "curves": _curves, "features": _features, "nodes": _graph, "edges": _graph}
