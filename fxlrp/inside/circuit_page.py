"""Draws a circuit: modules from the input up to the output, and an arc for each edge between them."""

from __future__ import annotations

import html
import itertools
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fxlrp import __version__
from fxlrp.show.colours import BLUE, RED
from fxlrp.show.page import POLICY, document
from fxlrp.show.words import name_of

if TYPE_CHECKING:
    from fxlrp.inside.edges import Edges

ROW, BAR = 30, 90
"""The height of a node's row, and how long the longest bar of relevance is; in pixels."""
_ids = itertools.count()


def drawing(edges: Edges, index: int = 0, most: int = 30) -> str:
    """An SVG of a sample's strongest edges that stands alone."""
    return _svg(edges, index, most)


def page(edges: Edges, index: int = 0, most: int = 30) -> str:
    """A whole HTML file: the drawing, a slider for how many edges it shows, nodes to choose, and a table."""
    name = f"fxc-{next(_ids)}"
    css, script = (Path(__file__).with_name(f"circuit.{kind}").read_text("utf-8") for kind in ("css", "js"))
    places = {n: i for i, n in enumerate(edges.nodes)}
    total = float(edges.node[index, -1].abs()) or 1.0
    top = edges.top(len(edges.nodes) ** 2, index)
    rows = "".join(
        f'<tr data-rank="{k}" data-from="{places[s]}" data-to="{places[t]}"><td>{html.escape(s)}</td>'
        f'<td>{html.escape(t)}</td><td class="n">{r:+.4g}</td><td class="n">{r / total:+.1%}</td></tr>'
        for k, (s, t, r) in enumerate(top)
    )
    target = "" if edges.target is None else f" for {name_of(edges.labels, int(edges.target[index]))}"
    title = f"Relevance from module to module{target}"
    body = (
        f'<style>{css}</style><main class="fxc" id="{name}"><h1>{html.escape(title)}</h1>'
        f'<div class="soft">rulebook {html.escape(edges.rules)} · red spoke for it, blue against it · an arc goes '
        "from a module's output directly into another's input</div>"
        f'<div class="tools"><label>edges <input type="range" min="1" max="{max(len(top), 1)}" '
        f'value="{min(most, max(len(top), 1))}"></label> <output class="count"></output>'
        '<output class="about"></output></div>'
        f'<div class="scroll">{_svg(edges, index, len(top))}</div>'
        "<details open><summary>the edges as a table</summary><table><thead><tr><th>from</th><th>to</th>"
        f'<th class="n">relevance</th><th class="n">of the output\'s</th></tr></thead><tbody>{rows}</tbody></table>'
        f'</details><p class="soft">fxlrp {__version__}</p><script>{script.replace("ID", name)}</script></main>'
    )
    return document(body, POLICY, title)


def _svg(edges: Edges, index: int, most: int) -> str:
    count = len(edges.nodes)
    left = 24 + 7.2 * min(46, max(map(len, edges.nodes)))  # where names end
    top = edges.top(most, index)
    places = {n: i for i, n in enumerate(edges.nodes)}
    strongest = max((abs(r) for _, _, r in top), default=1.0)
    height = ROW * count + 20
    reach = 60 + 17.0 * max((abs(places[t] - places[s]) for s, t, _ in top), default=1)
    width = int(left + BAR + 50 + min(reach, 560))
    arcs = "".join(
        _arc(places[s], places[t], r, k, strongest, count, left) for k, (s, t, r) in reversed(list(enumerate(top)))
    )
    sizes = edges.node[index].abs()
    most_of_a_node = float(sizes.max()) or 1.0
    rows = "".join(
        _row(name, i, float(edges.node[index, i]), most_of_a_node, count, left) for i, name in enumerate(edges.nodes)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="system-ui,sans-serif" font-size="13" role="img" aria-label="relevance between modules">'
        f'<rect class="back" width="{width}" height="{height}" fill="#fff"/>{arcs}{rows}</svg>'
    )


def _y(place: int, count: int) -> float:
    """The height of a node: the input below, the output on top."""
    return 10 + ROW * (count - 1 - place) + ROW / 2


def _colour(r: float) -> str:
    return "#{:02x}{:02x}{:02x}".format(*(RED if r > 0 else BLUE))


def _arc(source: int, to: int, r: float, rank: int, strongest: float, count: int, left: float) -> str:
    x, a, b = left + BAR + 14, _y(source, count), _y(to, count) + 4
    bend = min(40 + 17.0 * abs(to - source), 540)
    share = abs(r) / strongest
    shape = f"M{x} {a:.1f}C{x + bend:.1f} {a:.1f} {x + bend:.1f} {b:.1f} {x + 5} {b:.1f}"
    tip = f"M{x - 1} {b:.1f}l8 -3.5v7z"
    return (
        f'<g class="edge" data-from="{source}" data-to="{to}" data-rank="{rank}"><path d="{shape}" fill="none" '
        f'stroke="{_colour(r)}" stroke-width="{0.6 + 7 * np.sqrt(share):.2f}" '
        f'stroke-opacity="{0.25 + 0.55 * share:.2f}"/>'
        f'<path d="{tip}" fill="{_colour(r)}"/><title>{r:+.4g}</title></g>'
    )


def _row(name: str, place: int, r: float, most: float, count: int, left: float) -> str:
    y, long = _y(place, count), BAR * abs(r) / most
    shown = name if len(name) < 46 else f"…{name[-44:]}"
    return (
        f'<g class="node" tabindex="0" role="button" data-node="{place}" data-name="{html.escape(name)}" '
        f'data-relevance="{r:+.4g}"><title>{html.escape(name)}: {r:+.4g}</title>'
        f'<rect class="back" x="0" y="{y - ROW / 2 + 2:.1f}" width="{left + BAR + 8}" height="{ROW - 4}" fill="#fff"/>'
        f'<text class="ink" x="{left - 10}" y="{y + 4.5:.1f}" text-anchor="end" fill="#1b1f24">'
        f"{html.escape(shown)}</text>"
        f'<rect x="{left}" y="{y - 6:.1f}" width="{max(long, 1):.1f}" height="12" rx="2" fill="{_colour(r)}"/>'
        f'<line class="line" x1="{left}" x2="{left}" y1="{y - 9:.1f}" y2="{y + 9:.1f}" stroke="#8a949e"/></g>'
    )
