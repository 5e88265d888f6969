"""Pages: an attribution in one HTML file that opens offline, to look at from several sides."""

from __future__ import annotations

import base64
import html
import io
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from fxlrp import __version__
from fxlrp.show.figure import MOST_CURVES, MOST_FEATURES
from fxlrp.show.parts import Part, laid_out, parts_of, reduced, samples_of, top_of
from fxlrp.show.words import against, headline, likeliest, maps_of, subject

if TYPE_CHECKING:
    from fxlrp.attribution import Attribution
    from fxlrp.reports.report import Report

POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
"""What the browser may load for a page: nothing but what is in it."""
MOST_PIXELS, MOST_MAP, MOST_TIMES = 768, 384, 1000
"""The longest side of a picture and of a map in a page, and the times of a curve; larger ones are reduced."""
SWITCH = (
    '<label>colours <select><option value="red-blue">red for, blue against</option>'
    '<option value="lightness">light for, dark against</option></select></label>'
)
SCALE = 'against <output class="end"></output><span class="bar"></span><output class="end"></output> for'
WORDS = '<details><summary>the most relevant {what}, in words</summary><ol class="words"></ol></details>'
VERSION = f'<p class="soft">fxlrp {__version__}</p>'
_ids = itertools.count()


def page(answers: Sequence[Attribution], *, index: int = 0, **how: Any) -> str:
    """A whole HTML file of the answers to one call about sample `index`, as `fragment` shows them."""
    return page_of([(answers, index)], **how)


def page_of(shown: Sequence[tuple[Sequence[Attribution], int]], model: str = "", **how: Any) -> str:
    """A whole HTML file of the answers to calls, each about a sample.  model: its name, for the title."""
    names = [f"fxa-{next(_ids)}" for _ in shown]
    body = "".join(_shown(a, name=name, index=index, **how) for (a, index), name in zip(shown, names, strict=True))
    return document(_with_code(body, names), POLICY, why([headline(a[0], i) for a, i in shown], model))


def why(asked: Sequence[str], model: str) -> str:
    """The title of a page about these questions."""
    first = "; ".join(list(dict.fromkeys(asked))[:3])
    return f"{model}: why {first}?" if model else f"why {first}?"


def document(body: str, policy: str, title: str) -> str:
    """A whole HTML file, which loads what the policy lets it."""
    head = f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{policy}">'
    head += '<meta name="viewport" content="width=device-width">' + f"<title>{html.escape(title)} · fxlrp</title>"
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>{body}</body></html>\n'


def fragment(
    answers: Sequence[Attribution], *, index: int = 0, picture: Any = None, features: Sequence[str] = ()
) -> str:
    """HTML of the answers to one call about sample `index`, with buttons for each class, contrast and rulebook asked,
    for a cell of a notebook: it brings its style and script.

    A picture has its map over it, with sliders, values on hover and a scale; curves and features as in
    `fxlrp.show.figure.plot`; then the maps of layers inside, and where relevance goes if an answer was traced.

    picture, features: as in `parts_of`, whose errors it raises.
    """
    name = f"fxa-{next(_ids)}"
    body = _shown(answers, index=index, picture=picture, features=features, name=name)
    return _with_code(body, [name])


def _with_code(body: str, names: Sequence[str]) -> str:
    return with_code(body, names, Path(__file__).parent)


def with_code(body: str, names: Sequence[str], folder: Path) -> str:
    """Markup with the style and script of a folder, which is run on each element of these ids."""
    style, script = ((folder / f"page.{kind}").read_text("utf-8").strip() for kind in ("css", "js"))
    shared = Path(__file__).with_name("shared.js").read_text("utf-8")
    run = f"{json.dumps(names)}.map(function(i){{return document.getElementById(i)}}).forEach({script});"
    return f"<style>{style}</style>{body}<script>(function(){{\n{shared}{run}\n}})()</script>"


def _shown(
    answers: Sequence[Attribution], *, index: int, picture: Any = None, features: Sequence[str] = (), name: str = ""
) -> str:
    """The markup and data of `fragment`, without style and script."""
    parts = parts_of(answers[0], index, picture, features)
    views = [view for a in answers for view in _views(a, index, features)]
    data = {"inputs": [_input(p) for p in parts], "views": views}
    trace = next((a.trace for a in answers if a.trace is not None), None)
    rows = "".join(
        f'<span class="soft">{label}</span><span data-row="{row}"></span>'
        for row, label in (("name", "class"), ("against", "contrast"), ("rules", "rulebook"))
    )
    count = samples_of(answers[0])
    which = f'<div class="soft">sample {index % count} of {count}, from 0</div>' if count > 1 else ""
    slides = any(part.kind != "features" for part in parts)  # bars are as long as their relevance
    tools = "".join(
        f'<label>{what} <input type="range" name="{what}" min="0" max="100" value="{value}"></label>'
        for what, value in (("opacity", 85), ("threshold", 0))
        if slides
    )
    likely = "".join(
        f"<tr><td>{html.escape(n)}</td><td>{100 * p:.1f} %</td></tr>" for _, n, p in likeliest(answers[0], index)
    )
    several = " many" if len(parts) > 1 else ""
    encoded = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    return (
        f'<div class="fxa" id="{name}"><h1></h1><div class="soft asked"></div>{which}'
        f'<div class="rows">{rows}</div><div class="inputs{several}">{"<figure></figure>" * len(parts)}</div>'
        f'<div class="tools">{tools}{SWITCH}</div>'
        f'<div class="soft">{SCALE} &emsp;<output class="value"></output></div>{WORDS.format(what="places")}'
        f"<details{'' if likely else ' hidden'}><summary>the likeliest classes</summary>"
        f"<table>{likely}</table></details>"
        '<details class="layers" open><summary>inside the network</summary><div class="inside"></div></details>'
        f"{_flow(trace)}{VERSION}"
        f'<script type="application/json">{encoded}</script></div>'
    )


def _views(a: Attribution, index: int, features: Sequence[str]) -> list[dict[str, Any]]:
    """What a page shows of an answer: a view for each class that was asked about."""
    parts = parts_of(a, index, features=features)
    out = []
    for k in range(maps_of(a, index)):
        title = headline(a, index, k)
        out.append({
            "title": title,
            "name": title if a.given else subject(a, index, k),
            "against": against(a),
            "rules": a.rules,
            "maps": [_map(p, k) for p in parts],
            "inside": [_inside(name, r, index, k, a) for name, r in a.latent.items()],
        })  # fmt: skip
    return out


def _input(part: Part) -> dict[str, Any]:
    """An input as the page's script takes it."""
    about: dict[str, Any] = {"kind": part.kind, "name": part.title}
    if part.kind == "picture":
        h, w = reduced(part.relevance[0], MOST_MAP).shape
        height, width = part.values.shape[:2]
        return about | {"picture": _photograph(part.values), "width": width, "height": height, "w": w, "h": h}
    if part.kind == "curves":
        first = _starts(part)
        high, low = (f.reduceat(part.values, first, axis=1) for f in (np.maximum, np.minimum))
        ends = np.append(first[1:], part.values.shape[1]) - 1
        times = [str(a) if a == b else f"{a} to {b}" for a, b in zip(first.tolist(), ends.tolist(), strict=True)]
        return about | {"values": _rounded(np.where(high > -low, high, low)), "times": times}
    if part.kind in ("nodes", "edges"):
        drawn = laid_out(part)
        pairs = [[*ends, *line] for ends, line in zip(drawn.joined.tolist(), drawn.lines, strict=True)]
        names = [part.labels[n] for n in drawn.nodes] if part.kind == "nodes" else [f"node {n}" for n in drawn.nodes]
        return about | {
            "nodes": drawn.nodes.tolist(),
            "labels": names,
            "values": _rounded(drawn.places),
            "edges": pairs,
        }
    named = not part.labels[0].startswith("id ") if part.labels else False
    labels = [f"{n} = {v:.4g}" if named else n for n, v in zip(part.labels, part.values, strict=True)]
    return about | {"labels": labels}


def _map(part: Part, k: int) -> dict[str, Any]:
    """The relevance of an input for one class, as the page's script takes it."""
    r = part.relevance[k]
    words = [] if part.kind == "picture" else _times(r) if part.kind == "curves" else _names(part, r)
    if part.kind == "curves":
        r = np.add.reduceat(r, _starts(part), axis=1)
    if part.kind == "picture":
        small = reduced(r, MOST_MAP)
        return _grey(small) | {"top": top_of(small), "words": _places(r)}
    order = np.argsort(-np.abs(r if r.ndim == 1 else np.abs(r).sum(1)), kind="stable")
    rows = order[: MOST_CURVES if part.kind == "curves" else MOST_FEATURES].tolist()
    top = float(np.abs(r).max(initial=0)) or 1.0
    scale = top_of(r) if part.kind == "curves" else top
    return {"values": _rounded(r), "rows": rows, "top": scale, "most": top, "words": words}


def _starts(part: Part) -> np.ndarray:
    """The times at which the pieces of curves begin that a page shows: all, or so many of equal length."""
    count = part.values.shape[1]
    return np.unique(np.linspace(0, count, min(count, MOST_TIMES), endpoint=False).astype(int))


def _inside(name: str, relevance: Tensor, index: int, k: int, a: Attribution) -> dict[str, Any]:
    """The relevance at a layer as a small map: channels summed, or tokens × channels."""
    r = relevance[index if len(relevance) > 1 else 0]
    r = (r[k] if a.several else r).detach().double().cpu()
    flat = r.sum(0) if r.ndim == 3 else r.reshape(-1, r.shape[-1]) if r.ndim > 1 else r.reshape(1, -1)
    small = reduced(flat.numpy(), MOST_MAP)
    return _grey(small) | {"name": name, "w": small.shape[1], "h": small.shape[0], "top": top_of(small)}


def _grey(r: np.ndarray) -> dict[str, Any]:
    """A map as a grey PNG: 128 is zero, the distance from it the root of |relevance| / most."""
    from PIL import Image

    most = float(np.abs(r).max(initial=0)) or 1.0
    scaled = np.sign(r) * np.sqrt(np.abs(r) / most)
    return {"png": encoded(Image.fromarray((128 + 127 * scaled).round().astype(np.uint8)), "png"), "most": most}


def _photograph(picture: np.ndarray) -> str:
    from PIL import Image

    image = Image.fromarray((picture * 255).round().astype(np.uint8))
    image.thumbnail((MOST_PIXELS, MOST_PIXELS))
    return encoded(image, "png" if max(image.size) <= 128 else "jpeg")


def encoded(image: Any, kind: str) -> str:
    out = io.BytesIO()
    image.save(out, kind, **({"quality": 88} if kind == "jpeg" else {"optimize": True}))
    return f"data:image/{kind};base64,{base64.b64encode(out.getvalue()).decode()}"


def _rounded(values: np.ndarray) -> Any:
    return np.vectorize(lambda v: float(f"{v:.4g}"), otypes=[float])(values).tolist() if values.size else []


def _places(r: np.ndarray, cells: int = 8, most: int = 10) -> list[str]:
    """The ten squares of a map with the most relevance, for who can't see it."""
    rows, columns = (min(cells, s) for s in r.shape)
    pieces = [np.array_split(band, columns, 1) for band in np.array_split(r, rows, 0)]
    sums = np.array([[piece.sum() for piece in band] for band in pieces])
    total = float(np.abs(sums).sum()) or 1.0
    order = np.argsort(-np.abs(sums), axis=None)[:most]
    return [
        f"row {i + 1} of {rows}, column {j + 1} of {columns}: {abs(sums[i, j]) / total:.0%} of relevance, "
        f"{'for' if sums[i, j] > 0 else 'against'} it"
        for i, j in (divmod(int(o), columns) for o in order)
        if sums[i, j]
    ]


def _times(r: np.ndarray, most: int = 10) -> list[str]:
    order = np.argsort(-np.abs(r), axis=None)[:most]
    places = (divmod(int(o), r.shape[1]) for o in order)
    return [f"curve {c}, time {t}: {r[c, t]:.3g}" for c, t in places if r[c, t]]


def _names(part: Part, r: np.ndarray, most: int = 10) -> list[str]:
    return [f"{part.labels[i]}: {r[i]:.3g}" for i in np.argsort(-np.abs(r), kind="stable")[:most] if r[i]]


def _flow(trace: Report | None) -> str:
    """Where relevance goes, module by module, and the nodes that lose or add some, as rich prints them."""
    if trace is None:
        return ""
    from fxlrp.reports.report import as_html

    tables = as_html(trace.tree(3), trace.conservation().table())
    return f"<details><summary>where relevance goes, by module</summary>{tables}</details>"
