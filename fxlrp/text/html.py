"""HTML: one page that needs nothing else: no network, no fonts, no library."""

from __future__ import annotations

import html
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fxlrp.show.colours import shade
from fxlrp.show.page import SCALE, SWITCH, VERSION, WORDS, document, why, with_code

POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
"""What the browser may load for a page: nothing but what is in it."""

_ids = itertools.count()


def fragment(panels: Sequence[dict[str, Any]]) -> str:
    """Return HTML for a notebook's cell or a page's body: each panel is one text with buttons for its questions."""
    names = [f"fxlrp-{next(_ids)}" for _ in panels]
    return with_code("".join(map(_panel, panels, names)), names, Path(__file__).parent)


def page(panels: Sequence[dict[str, Any]], model: str = "") -> str:
    """Return a whole HTML file.  model: its name, for the title."""
    return document(fragment(panels), POLICY, why([panel["titles"][0] for panel in panels], model))


def _panel(panel: dict[str, Any], name: str) -> str:
    """Write one panel: the question, the coloured text, the scale, the words and, for several questions, the table."""
    titles, row = panel["titles"], panel["rows"][0]
    top = max(map(abs, row), default=0) or 1
    clickable = {t for t in panel["tokens"] if t is not None} if len(titles) > 1 else set()
    spans = []
    for i, (piece, r) in enumerate(zip(panel["pieces"], row, strict=True)):
        kind = "t" + " added" * piece["added"] + " can" * (i in clickable) + " asked" * (i == panel["tokens"][0])
        spans.append(
            f'{html.escape(piece["gap"])}<span class="{kind}" style="background:rgb{shade(r / top)}"'
            f' data-score="{r:.3g}">{html.escape(piece["text"])}</span>'
        )
    if len(titles) > 1:
        marks = (f'<button aria-pressed="{str(not i).lower()}">{html.escape(t)}</button>' for i, t in enumerate(titles))
        asked, matrix = "".join(marks), "<details><summary>all rows</summary><table></table></details>"
    else:
        asked, matrix = f"<b>{html.escape(titles[0])}</b>", ""
    data = json.dumps({key: panel[key] for key in ("rows", "tokens", "asked", "words")}).replace("<", "\\u003c")
    note = f'<p class="soft note">{html.escape(panel["note"])}</p>' if panel["note"] else ""
    return (
        f'<div class="fxlrp" id="{name}"><div>why {asked}</div>'
        f'<div class="soft question">{html.escape(panel["asked"][0])}</div>'
        f'<div class="text">{"".join(spans)}</div>{note}<p class="soft">{SCALE}; '
        f"hover for the score{'; click a dotted token to ask about it' if clickable else ''} &emsp;{SWITCH}</p>"
        f'{WORDS.format(what="words")}{matrix}{VERSION}<script type="application/json">{data}</script></div>'
    )
