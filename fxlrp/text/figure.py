"""Figures of texts, by matplotlib: the words on coloured ground, a block for each question."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fxlrp import __version__
from fxlrp.errors import counted
from fxlrp.show.colours import colour_map, ink, shade
from fxlrp.show.figure import blank
from fxlrp.show.fonts import families, not_said_again

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fxlrp.text.attribution import TextAttribution

WIDE, MARGIN = 9.0, 0.25
"""Inches of a figure, and of its margins."""
LINE, SIZE = 0.3, 11
"""Inches from line to line, and points of the letters."""
HIGHEST = 100.0
"""Inches: there is no larger picture than of 65,536 pixels."""


def plot(a: TextAttribution, *, colours: str = "red-blue") -> Figure:
    """A matplotlib figure of a text: for each question what was asked, a scale, and the words coloured by relevance; of
    more questions than fit 100 inches, the first.

    colours: as in `fxlrp.show.colours.colour_map`, whose error it raises.
    """
    palette = colour_map(colours)
    ends = tuple(tuple(255 * float(c) for c in palette(end)[:3]) for end in (0.0, 1.0))
    figure = blank(figsize=(WIDE, 1.0), dpi=100)
    fonts = families("".join([*(shown for _, word in _words(a) for _, shown in word), *(q.title for q in a.asked)]))
    weight = "bold" if len(fonts) == 1 else "normal"  # others need not have bold letters
    with not_said_again():
        lines = _lines(a, figure, fonts)
    block = (len(lines) + 2.2) * LINE
    count = min(len(a.asked), max(1, int(HIGHEST / block)))
    high = block * count + MARGIN + 0.2
    figure.set_size_inches(WIDE, high)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, WIDE), ylim=(high, 0))
    axes.set_axis_off()
    for k, (row, asked) in enumerate(zip(a.matrix[:count].tolist(), a.asked[:count], strict=True)):
        top, y = max(map(abs, row), default=0) or 1.0, MARGIN + k * block
        _write(axes, MARGIN, y, asked.title, weight=weight, family=fonts)
        _write(axes, MARGIN, y + 0.8 * LINE, a._small_print(asked), fontsize=8, color="0.35")
        _scale(axes, y, top, ends)
        for i, line in enumerate(lines):
            for x, wide, token, shown in line:
                colour = shade(row[token] / top, ends)
                edge = "black" if token == asked.token else "none"
                at = (x, y + (i + 1.6) * LINE)
                _ground(axes, at, wide, 0.8 * LINE, colour, edge)
                how = {"style": "italic"} if a.pieces[token].end <= a.pieces[token].start else {}
                _write(axes, at[0], at[1] + 0.4 * LINE, shown, va="center", color=ink(colour), family=fonts, **how)
    left_out = f"{counted(len(a.asked) - count, 'question')} more, which a page has · " if count < len(a.asked) else ""
    _write(
        axes,
        WIDE - MARGIN,
        high - 0.06,
        f"{left_out}fxlrp {__version__}",
        fontsize=6,
        color="0.5",
        ha="right",
        va="bottom",
    )
    return figure


def _lines(a: TextAttribution, figure: Any, fonts: list[str]) -> list[list[tuple[float, float, int, str]]]:
    """The lines that the tokens fill: of each token where it stands, how wide it is, its number and what is shown."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.font_manager import FontProperties

    renderer, font = FigureCanvasAgg(figure).get_renderer(), FontProperties(family=fonts, size=SIZE)

    def width(text: str) -> float:
        return renderer.get_text_width_height_descent(text, font, False)[0] / figure.dpi

    space, right, x = width("n n") - width("nn"), WIDE - MARGIN, MARGIN
    lines: list[list[tuple[float, float, int, str]]] = [[]]
    for breaks, word in _words(a):
        wide = [width(shown) for _, shown in word]
        x += space if lines[-1] else 0
        if lines[-1] and (breaks or x + sum(wide) > right):
            lines.append([])
            x = MARGIN
        for (token, shown), w in zip(word, wide, strict=True):
            if lines[-1] and x + w > right:  # a word that is longer than a line
                lines.append([])
                x = MARGIN
            lines[-1].append((x, w, token, shown))
            x += w
    return lines


def _words(a: TextAttribution) -> list[tuple[bool, list[tuple[int, str]]]]:
    """The tokens that are written together, each by its number and what is shown; and whether a line ends before."""
    from fxlrp.text.attribution import laid_out

    words: list[tuple[bool, list[tuple[int, str]]]] = []
    ended = False
    for i, (gap, shown, _) in enumerate(laid_out(a.segments, a.pieces)):
        breaks = ended or "\n" in gap
        if not words or gap or breaks or shown[:1].isspace():
            words.append((breaks, []))
        words[-1][1].append((i, " ".join(shown.split())))
        ended = "\n" in shown
    return words


def _scale(axes: Any, y: float, top: float, ends: Any, steps: int = 24) -> None:
    """Draw which colour is how much against and for it, at the right of a block's first line."""
    left, wide = WIDE - 2.3, 1.0
    for i in range(steps):
        colour = shade(2 * i / (steps - 1) - 1, ends)
        _ground(axes, (left + i * wide / steps, y), wide / steps, 0.5 * LINE, colour)
    how = {"fontsize": 8, "color": "0.35", "va": "center"}
    _write(axes, left - 0.08, y + 0.25 * LINE, f"against {-top:.3g}".replace("-", "−"), ha="right", **how)
    _write(axes, left + wide + 0.08, y + 0.25 * LINE, f"{top:.3g} for", **how)


def _ground(axes: Any, at: tuple[float, float], wide: float, high: float, colour: Any, edge: str = "none") -> None:
    from matplotlib.patches import Rectangle

    rgb = tuple(c / 255 for c in colour)
    axes.add_patch(Rectangle(at, wide, high, facecolor=rgb, edgecolor=edge, linewidth=1.2))


def _write(axes: Any, x: float, y: float, text: str, **how: Any) -> None:
    axes.text(x, y, text, **{"fontsize": SIZE, "va": "top", "parse_math": False, **how})
