"""HTML: one page that needs nothing else: no network, no fonts, no library."""

from __future__ import annotations

import html
import itertools
import json
from collections.abc import Sequence
from typing import Any

STYLE = """
.fxlrp{font:16px/1.9 system-ui,sans-serif;color:#111;background:#fff;max-width:60rem;margin:1rem auto;padding:0 1rem}
.fxlrp .text{white-space:pre-wrap;overflow-wrap:anywhere;margin:.6rem 0}
.fxlrp .t{border-radius:3px;padding:2px 0}
.fxlrp .added{font-size:.75em;color:#555}
.fxlrp .can{cursor:pointer;border-bottom:2px dotted #888}
.fxlrp .asked{outline:2px solid #111}
.fxlrp button{font:inherit;font-size:.85em;border:1px solid #999;border-radius:4px;background:#fff;color:#111}
.fxlrp button{margin:0 .3em .3em 0;cursor:pointer}
.fxlrp button[aria-pressed=true]{background:#111;color:#fff}
.fxlrp .note,.fxlrp .key{font-size:.8em;color:#555}
"""

SCRIPT = """
(function(root){
  var d=JSON.parse(root.querySelector('script[type="application/json"]').textContent);
  var spans=[].slice.call(root.querySelectorAll('.t')),buttons=[].slice.call(root.querySelectorAll('button'));
  function colour(r){
    var s=Math.pow(Math.min(Math.abs(r),1),.7)*.85;
    return 'rgba('+(r>=0?'219,20,26':'33,77,217')+','+s.toFixed(3)+')';
  }
  function show(k){
    var row=d.rows[k],top=row.reduce(function(m,v){return Math.max(m,Math.abs(v))},0)||1;
    spans.forEach(function(s,i){
      s.style.background=colour(row[i]/top);
      s.title=row[i].toPrecision(3);
      s.classList.toggle('asked',d.tokens[k]===i);
    });
    buttons.forEach(function(b,i){b.setAttribute('aria-pressed',i===k)});
    root.setAttribute('data-shown',k);
  }
  buttons.forEach(function(b,i){b.addEventListener('click',function(){show(i)})});
  d.tokens.forEach(function(t,k){
    if(t!==null&&d.tokens.indexOf(t)===k)spans[t].addEventListener('click',function(){show(k)});
  });
  show(0);
})(document.getElementById('ID'));
"""

_ids = itertools.count()


def fragment(panels: Sequence[dict[str, Any]]) -> str:
    """HTML for a notebook's cell or a page's body: each panel the text of one attribution and its switch."""
    return f"<style>{STYLE}</style>" + "".join(map(_panel, panels))


def page(panels: Sequence[dict[str, Any]]) -> str:
    """A whole HTML file."""
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>fxlrp</title>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>{fragment(panels)}</body></html>\n'


def _panel(panel: dict[str, Any]) -> str:
    name = f"fxlrp-{next(_ids)}"
    titles, row = panel["titles"], panel["rows"][0]
    top = max(map(abs, row), default=0) or 1
    clickable = {t for t in panel["tokens"] if t is not None} if len(titles) > 1 else set()
    spans = []
    for i, (piece, r) in enumerate(zip(panel["pieces"], row, strict=True)):
        kind = "t" + " added" * piece["added"] + " can" * (i in clickable) + " asked" * (i == panel["tokens"][0])
        spans.append(
            f'{html.escape(piece["gap"])}<span class="{kind}" style="background:{_colour(r / top)}" title="{r:.3g}">'
            f"{html.escape(piece['text'])}</span>"
        )
    buttons = "".join(
        f'<button aria-pressed="{str(not i).lower()}">{html.escape(t)}</button>' for i, t in enumerate(titles)
    )
    data = json.dumps({"rows": panel["rows"], "tokens": panel["tokens"]}).replace("<", "\\u003c")
    note = f'<p class="note">{html.escape(panel["note"])}</p>' if panel["note"] else ""
    return (
        f'<div class="fxlrp" id="{name}"><div>{buttons}</div><div class="text">{"".join(spans)}</div>{note}'
        '<p class="key">Red spoke for it, blue against it; hover for the score'
        + ("; click a dotted token to ask about it" if clickable else "")
        + f'.</p><script type="application/json">{data}</script><script>{SCRIPT.replace("ID", name)}</script></div>'
    )


def _colour(r: float) -> str:
    strength = min(abs(r), 1.0) ** 0.7 * 0.85
    return f"rgba({'219,20,26' if r >= 0 else '33,77,217'},{strength:.3f})"
