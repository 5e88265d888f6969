"""The page of concepts: each with its share, the map of the picture that is explained, and what shows it elsewhere."""

from __future__ import annotations

import html
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image

from fxlrp import __version__
from fxlrp.errors import counted
from fxlrp.inside.references import Reference
from fxlrp.show.colours import BLUE, RED, colour
from fxlrp.show.page import POLICY, document, encoded

if TYPE_CHECKING:
    from fxlrp.inside.concepts import Concepts

SIDE = 208
"""The side of a crop in pixels, twice what it is shown at."""
_ids = itertools.count()


class Shown(NamedTuple):
    """A concept on a page: its part, its share, its map of what is explained, and references by relevance and by
    activation."""

    part: int
    share: float
    explained: Reference | None
    relevant: list[Reference]
    active: list[Reference]


def page(concepts: Concepts, shown: Sequence[Shown], headline: str = "", explained: Reference | None = None) -> str:
    """A whole HTML file of concepts, which needs nothing else.

    headline: what is explained, as "star, 97.1 %".  explained: it, with the whole map.
    """
    name = f"fxk-{next(_ids)}"
    css, script = (Path(__file__).with_name(f"concepts.{kind}").read_text("utf-8") for kind in ("css", "js"))
    pictures = any(r.picture is not None for s in shown for r in (*s.relevant, *s.active))
    heat = '<label><input type="checkbox" name="heat"> relevance over the references</label> &emsp;' if pictures else ""
    title = f"{headline}, for these concepts" if headline else f"Concepts at {concepts.at}"
    whole = "" if explained is None else f'<div class="asked">{_figure(explained, "all of it", whole=True)}</div>'
    largest = max((abs(s.share) for s in shown), default=1.0) or 1.0
    body = (
        f'<style>{css}</style><main class="fxk" id="{name}"><h1>{html.escape(title)}</h1>'
        f'<div class="soft">{html.escape(concepts.at)}, {len(concepts.mean)} {concepts.by} over '
        f"{counted(concepts.count, 'sample')} · rulebook {html.escape(str(concepts.about.get('rules', '')))} · a share "
        "is of Σ|R| at the place</div>"
        f'<p>{heat}<label><input type="checkbox" name="active"> what is most active, beside</label></p>'
        f"{whole}{''.join(_concept(concepts, s, largest) for s in shown)}"
        f'<p class="soft">fxlrp {__version__}</p><script>{script.replace("ID", name)}</script></main>'
    )
    return document(body, POLICY, title)


def _concept(concepts: Concepts, s: Shown, largest: float) -> str:
    """A row of the page."""
    against = " against" if s.share < 0 else ""
    own = "" if s.explained is None else _figure(s.explained, "its part of the map", whole=True)
    rows = (("most relevant in", "by-relevance", s.relevant), ("most active in", "by-activation", s.active))
    shown = "".join(
        f'<div class="{kind}"><div class="soft">{words}</div><div class="row">'
        f"{''.join(_figure(r, f'{r.sample}: {_value(r.value, kind)}') for r in several)}</div></div>"
        for words, kind, several in rows
    )
    return (
        f'<section class="concept"><div><h2>{concepts.by.removesuffix("s")} {s.part}</h2>{s.share:+.1%}'
        f'<div class="bar{against}" style="width:{max(2, round(100 * abs(s.share) / largest))}%"></div>{own}</div>'
        f"<div>{shown}</div></section>"
    )


def _value(value: float, kind: str) -> str:
    return f"{value:+.1%}" if kind == "by-relevance" else f"{value:.3g}"


def _figure(r: Reference, caption: str, whole: bool = False) -> str:
    """A reference: the crop of a picture with its relevance over it, or a text with coloured words."""
    if r.picture is None:
        return f'<div class="text">{_text(r)} <span class="soft">{html.escape(caption)}</span></div>'
    box = (0.0, 0.0, 1.0, 1.0) if whole else r.box
    plain, heat = _crop(r.picture, box), _crop(overlay(r), box)
    words = html.escape(caption)
    return (
        f'<figure{" class=whole" if whole else ""}><span class="look"><img src="{plain}" alt="sample {r.sample}">'
        f'<img class="heat" src="{heat}" alt="its relevance"></span><figcaption>{words}</figcaption></figure>'
    )


def overlay(r: Reference) -> np.ndarray:
    """A picture in grey with its map in colours over it, [H, W, 3] in 0…1."""
    assert r.picture is not None
    height, width = r.picture.shape[:2]
    top = float(np.quantile(np.abs(r.map), 0.995)) or float(np.abs(r.map).max()) or 1.0
    heat = np.clip(r.map / top, -1, 1).astype(np.float32)
    heat = np.asarray(Image.fromarray(heat).resize((width, height), Image.Resampling.BILINEAR), dtype=np.float64)
    grey = r.picture.mean(2, keepdims=True) * 0.6 + 0.35
    strength = np.abs(heat)[..., None] ** 0.6
    return grey * (1 - strength) + colour(heat) * strength


def _crop(picture: np.ndarray, box: tuple[float, float, float, float]) -> str:
    """A part of a picture as a data address."""
    height, width = picture.shape[:2]
    top, left, bottom, right = (round(p * n) for p, n in zip(box, (height, width) * 2, strict=True))
    part = picture[top : max(bottom, top + 1), left : max(right, left + 1)]
    image = Image.fromarray((part.clip(0, 1) * 255).round().astype(np.uint8))
    scale = SIDE / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    image = image.resize(size, Image.Resampling.BICUBIC)
    return encoded(image, "jpeg")


def _text(r: Reference) -> str:
    most = float(np.abs(r.map).max()) or 1.0
    return "".join(
        f'<span title="{v:+.3g}" style="background:rgba({",".join(map(str, RED if v > 0 else BLUE))},'
        f'{0.75 * abs(v) / most:.2f})">{html.escape(w)}</span>'
        for w, v in zip(r.words, r.map, strict=True)
    )
