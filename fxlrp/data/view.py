"""View: a page to browse the maps of a data set, in one file, or in a folder with the pictures beside it."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fxlrp import __version__
from fxlrp.data.reading import Maps, read
from fxlrp.data.writing import Row
from fxlrp.errors import FxlrpError
from fxlrp.show.colours import BLUE, RED
from fxlrp.show.files import write
from fxlrp.show.page import POLICY, document
from fxlrp.show.parts import reduced, top_of
from fxlrp.show.words import AGAINST

SHOWN = {"page": 500, "folder": 20_000}
"""Rows in one file, which holds all pictures, and in a folder, if no other limit is given."""
MOST_MAP = 224
"""The longest side of a map in a page; larger ones are reduced."""
STEPS = 127
Image_ = Callable[[str, bytes], str]


def view(out: str | Path, to: str | Path, *, limit: int | None = None, name: str | None = None) -> Path:
    """Write a page of maps, to be sorted, filtered and opened, and return its path.

    out: what `fxlrp.data.explain` wrote.  to: an .html file that needs nothing else, or a folder.
    limit: the most rows shown, taken evenly; 500 of a page, 20,000 of a folder.  name: only of this class.

    Raises FxlrpError if there are no maps, or a place that can't be written to.
    """
    maps, to = read(out), Path(to)
    is_page = to.suffix.lower() == ".html"
    if not is_page and to.exists() and (not to.is_dir() or (any(to.iterdir()) and not (to / "index.html").exists())):
        raise FxlrpError(f"{to} holds other things; give a new folder, or an .html file.")
    rows, count = chosen(maps, limit or SHOWN["page" if is_page else "folder"], name)
    if not count:
        raise FxlrpError(f"There is no map of class {name} in {out}." if name else f"{out} holds no maps yet.")
    keep: Image_ = _inside if is_page else lambda file, content: _beside(to, file, content)
    cards = [card(maps, row, keep) for row in rows]
    left = "" if len(cards) == count else f"; {len(cards)} of {count:,} are shown, taken evenly"
    policy = POLICY if is_page else POLICY.replace("img-src data:", "img-src 'self' file: data:")
    body = _body({"rows": cards, "red": RED, "blue": BLUE}, _headline(maps) + left)
    return write(to if is_page else to / "index.html", document(body, policy, _headline(maps)))


def chosen(maps: Maps, limit: int, name: str | None) -> tuple[Iterator[Row], int]:
    """Return the rows of a class, or all, at most so many and taken evenly, and how many there are; one shard is held
    at a time."""
    places: list[tuple[int, int]] = []
    for shard in sorted(maps.done):
        for place, row in enumerate(maps.shard(shard, ["name"])):
            if name in (None, row["name"]):
                places.append((shard, place))
    picked = places if len(places) <= limit else [places[i * len(places) // limit] for i in range(limit)]
    return (maps.shard(shard)[place] for shard, place in picked), len(places)


def card(maps: Maps, row: Row, keep: Image_) -> dict[str, Any]:
    """Return a row as the page's script takes it.  keep: takes a file's name and content, returns its address."""
    about = {"i": row["index"], "key": row["key"], "label": row["label"], "error": row["error"]}
    if row.get("picture"):
        about["picture"] = keep(f"{row['index']:08d}.jpg", row["picture"])
    if row["error"] is not None:
        return about | ({"text": row["text"]} if "text" in row else {})
    about |= {"name": row["name"], "positive": round(row["positive"], 4), "against": _against(row["contrast"])}
    if row["scores"]:
        sure = dict(zip(row["classes"] or (), row["scores"], strict=False)).get(row["target"], row["scores"][0])
        about["value" if row["name"] == "the score" else "score"] = round(float(sure), 5)
    if row.get("tokens") is not None:
        return about | {"tokens": pieces(row)}
    heat = flat(maps.map(row))
    return about | {"map": keep(f"{row['index']:08d}.png", overlay(heat)), "w": heat.shape[1], "h": heat.shape[0]}


def pieces(row: Row) -> list[list[Any]]:
    """Return the tokens of a text: what stands in front of each, it, and its relevance in −1…1."""
    out: list[list[Any]] = []
    at, top = 0, float(np.abs(row["relevance"]).max(initial=0)) or 1.0
    for token, start, end, r in zip(row["tokens"], row["start"], row["end"], row["relevance"], strict=True):
        share = round(float(r) / top, 3)
        if end <= start:
            out.append([" ", token, share, 1])
            continue
        gap = " " if at == start == 0 else row["text"][at:start]
        out.append([gap, row["text"][max(at, start) : end], share, 0])
        at = max(at, end)
    return out


def _against(contrast: str | None) -> str:
    """Say what a class was set against; nothing if it was nothing."""
    return "" if contrast is None else AGAINST.get(contrast, f"against {contrast}")


def flat(relevance: np.ndarray) -> np.ndarray:
    """Return a sample's relevance as a map [H, W] of at most `MOST_MAP` a side: channels summed."""
    r = relevance.astype(np.float32)
    while r.ndim > 2:
        r = r.sum(0)
    return reduced(np.atleast_2d(r), MOST_MAP)


def overlay(heat: np.ndarray) -> bytes:
    """Return a map [H, W] as a PNG to be laid over its picture: red for, blue against, clear where there is nothing."""
    t = np.clip(heat / top_of(heat), -1, 1)
    image = Image.fromarray((STEPS + np.rint(STEPS * t)).astype(np.uint8), mode="P")
    sizes = [abs(i - STEPS) / STEPS for i in range(2 * STEPS + 1)]
    image.putpalette([v for i in range(2 * STEPS + 1) for v in (RED if i >= STEPS else BLUE)])
    out = io.BytesIO()
    image.save(out, "png", transparency=bytes(round(255 * size**0.6) for size in sizes), optimize=True)
    return out.getvalue()


def _inside(file: str, content: bytes) -> str:
    kind = "jpeg" if file.endswith("jpg") else "png"
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _beside(to: Path, file: str, content: bytes) -> str:
    place = f"maps/{file[:5]}/{file}"  # a thousand to a folder
    write(to / place, content)
    return place


def _headline(maps: Maps) -> str:
    s = maps.settings
    missing = "" if maps.complete else f" of {s.samples:,}"
    errors = f", {maps.errors} errors" if maps.errors else ""
    return f"{s.model} on {s.data}: {len(maps):,}{missing} maps{errors}, by {s.rules}"


def _body(data: dict[str, Any], headline: str) -> str:
    here = Path(__file__)
    css, script = (here.with_name(f"view.{kind}").read_text("utf-8") for kind in ("css", "js"))
    encoded = json.dumps(data, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")
    choices = {
        "order": (("i", "number"), ("score", "score"), ("positive", "share for it"), ("key", "key")),
        "shown": (("", "all"), ("fine", "without errors"), ("error", "errors"), ("wrong", "class is not the label")),
    }
    selects = "".join(
        f'<label>{what} <select name="{what}">'
        + "".join(f'<option value="{value}">{label}</option>' for value, label in options)
        + "</select></label>"
        for what, options in choices.items()
    )
    return (
        f"<style>{css}</style><h1>{html.escape(headline)}</h1>"
        '<form><label>class <select name="name"><option value="">all</option></select></label>'
        f'{selects}<label><input type="checkbox" name="down"> falling</label>'
        '<label>find <input type="search" name="find"></label>'
        '<label>opacity <input type="range" name="opacity" min="0" max="100" value="85"></label>'
        '<output></output></form><div class="cards"></div><button class="more" type="button">more</button>'
        '<dialog><button class="close" type="button" aria-label="close">×</button><div></div></dialog>'
        f'<p class="soft">red spoke for the class, blue against it · fxlrp {__version__}</p>'
        f'<script type="application/json">{encoded}</script><script>{script}</script>'
    )


def figures(maps: Maps, rows: Sequence[Row]) -> str:
    """Return HTML of some rows, each a picture under its map or a coloured text, for pages without a script."""
    out = []
    for row in rows:
        about = card(maps, row, _inside)
        if "tokens" in about:
            spans = "".join(f"{html.escape(gap)}{_span(text, r)}" for gap, text, r, _ in about["tokens"])
            out.append(f'<figure class="text">{spans}<figcaption>{html.escape(about["key"])}</figcaption></figure>')
            continue
        below = f'<img src="{about["picture"]}" alt="">' if "picture" in about else ""
        key = html.escape(about["key"])
        image = f'<img class="map" src="{about["map"]}" alt="the map of {key}">'
        out.append(f"<figure><div>{below}{image}</div><figcaption>{key}</figcaption></figure>")
    return "".join(out)


def _span(text: str, r: float) -> str:
    red, green, blue = RED if r >= 0 else BLUE
    alpha = 0.85 * min(abs(r), 1) ** 0.7
    return f'<span style="background:rgba({red},{green},{blue},{alpha:.2f})">{html.escape(text)}</span>'
