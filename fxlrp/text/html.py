"""HTML: one page that needs nothing else: no network, no fonts, no library."""

from __future__ import annotations

import html
import itertools
import json
from collections.abc import Sequence
from typing import Any

from fxlrp.show.page import document

STYLE = """
.fxlrp{font:16px/2 system-ui,sans-serif;color:#111;background:#fff;max-width:60rem;margin:0 auto;padding:1rem}
.fxlrp+.fxlrp{border-top:1px solid #ddd}
.fxlrp .text{white-space:pre-wrap;overflow-wrap:anywhere;margin:.6rem 0}
.fxlrp .t{position:relative;border-radius:3px;padding:2px 0}
.fxlrp .t:hover::after{content:attr(data-score);position:absolute;left:0;top:100%;z-index:1;padding:0 .5em;
  font-size:.8rem;line-height:1.8;white-space:pre;background:#111;color:#fff;border-radius:4px}
.fxlrp .added{font-size:.75em;color:#555}
.fxlrp .can{cursor:pointer;border-bottom:2px dotted #888}
.fxlrp .asked{outline:2px solid #111}
.fxlrp button{font:inherit;font-size:.85em;line-height:1.6;border:1px solid #999;border-radius:4px;background:#fff}
.fxlrp button{color:#111;margin:.1em .3em .1em 0;cursor:pointer}
.fxlrp button[aria-pressed=true]{background:#111;color:#fff}
.fxlrp .note,.fxlrp .key,.fxlrp summary,.fxlrp td{font-size:.8rem;color:#555}
.fxlrp .bar{display:inline-block;width:7em;height:.8em;margin:0 .5em;vertical-align:middle;border-radius:3px;
  background:linear-gradient(90deg,BARS)}
.fxlrp details{overflow-x:auto}
.fxlrp table{border-collapse:collapse;line-height:1.3}
.fxlrp td{min-width:.9em;height:1.3em;padding:0 1px;white-space:pre;cursor:pointer}
.fxlrp tr:first-child td{padding:.5em 0;writing-mode:vertical-rl;transform:rotate(180deg);cursor:default}
.fxlrp td:first-child{padding-right:.5em;text-align:right}
.fxlrp tr[aria-current=true] td{border-block:1px solid #111}
"""

SCRIPT = """
(function(root){
  var d=JSON.parse(root.querySelector('script[type="application/json"]').textContent);
  function all(what){return [].slice.call(root.querySelectorAll(what))}
  var spans=all('.t'),buttons=all('button'),ends=all('.end'),table=root.querySelector('table');
  function colour(r){
    var s=Math.pow(Math.min(Math.abs(r),1),.7)*.85;
    return 'rgba('+(r>=0?'219,20,26':'33,77,217')+','+s.toFixed(3)+')';
  }
  function most(row){return row.reduce(function(m,v){return Math.max(m,Math.abs(v))},0)||1}
  function show(k){
    var row=d.rows[k],top=most(row);
    spans.forEach(function(s,i){
      s.style.background=colour(row[i]/top);
      s.setAttribute('data-score',row[i].toPrecision(3));
      s.classList.toggle('asked',d.tokens[k]===i);
    });
    ends.forEach(function(e,i){e.textContent=((2*i-1)*top).toPrecision(3).replace('-','−')});
    buttons.forEach(function(b,i){b.setAttribute('aria-pressed',i===k)});
    if(table)[].forEach.call(table.rows,function(r,i){r.setAttribute('aria-current',i===k+1)});
    root.setAttribute('data-shown',k);
  }
  buttons.forEach(function(b,i){b.addEventListener('click',function(){show(i)})});
  d.tokens.forEach(function(t,k){
    if(t!==null&&d.tokens.indexOf(t)===k)spans[t].addEventListener('click',function(){show(k)});
  });
  if(table){
    var words=spans.map(function(s){return s.textContent.trim()||'␣'}),line=table.insertRow();
    [''].concat(words).forEach(function(w){line.insertCell().textContent=w});
    d.rows.forEach(function(row,k){
      var line=table.insertRow(),top=most(row);
      line.insertCell().textContent=buttons[k].textContent;
      row.forEach(function(v,i){
        var cell=line.insertCell();
        cell.style.background=colour(v/top);
        cell.title=words[i]+' '+v.toPrecision(3);
      });
      line.addEventListener('click',function(){show(k)});
    });
  }
  show(0);
})(document.getElementById('ID'));
"""

POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
"""What the browser may load for a page: nothing but what is in it."""

_ids = itertools.count()


def fragment(panels: Sequence[dict[str, Any]]) -> str:
    """Return HTML for a notebook's cell or a page's body: each panel is one text with buttons for its questions."""
    bars = ",".join(_colour(r / 4) for r in range(-4, 5))
    return f"<style>{STYLE.replace('BARS', bars)}</style>" + "".join(map(_panel, panels))


def page(panels: Sequence[dict[str, Any]]) -> str:
    """Return a whole HTML file."""
    return document(fragment(panels), POLICY)


def _panel(panel: dict[str, Any]) -> str:
    """Write one panel: the question, the coloured text, the key and, for several questions, the table."""
    name = f"fxlrp-{next(_ids)}"
    titles, row = panel["titles"], panel["rows"][0]
    top = max(map(abs, row), default=0) or 1
    clickable = {t for t in panel["tokens"] if t is not None} if len(titles) > 1 else set()
    spans = []
    for i, (piece, r) in enumerate(zip(panel["pieces"], row, strict=True)):
        kind = "t" + " added" * piece["added"] + " can" * (i in clickable) + " asked" * (i == panel["tokens"][0])
        spans.append(
            f'{html.escape(piece["gap"])}<span class="{kind}" style="background:{_colour(r / top)}"'
            f' data-score="{r:.3g}">{html.escape(piece["text"])}</span>'
        )
    if len(titles) > 1:
        marks = (f'<button aria-pressed="{str(not i).lower()}">{html.escape(t)}</button>' for i, t in enumerate(titles))
        asked, matrix = "".join(marks), "<details><summary>all rows</summary><table></table></details>"
    else:
        asked, matrix = f"<b>{html.escape(titles[0])}</b>", ""
    data = json.dumps({"rows": panel["rows"], "tokens": panel["tokens"]}).replace("<", "\\u003c")
    note = f'<p class="note">{html.escape(panel["note"])}</p>' if panel["note"] else ""
    return (
        f'<div class="fxlrp" id="{name}"><div>why {asked}</div><div class="text">{"".join(spans)}</div>{note}'
        '<p class="key">against it <span class="end"></span><span class="bar"></span><span class="end"></span> for it; '
        f"hover for the score{'; click a dotted token to ask about it' if clickable else ''}.</p>{matrix}"
        f'<script type="application/json">{data}</script><script>{SCRIPT.replace("ID", name)}</script></div>'
    )


def _colour(r: float) -> str:
    strength = min(abs(r), 1.0) ** 0.7 * 0.85
    return f"rgba({'219,20,26' if r >= 0 else '33,77,217'},{strength:.3f})"
