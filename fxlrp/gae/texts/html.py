"""The report of an evaluation on texts as one HTML file that needs no network."""

from __future__ import annotations

from html import escape
from typing import Any

import numpy as np

from fxlrp.gae.html import bars, differences, document, orders, panel, table
from fxlrp.gae.texts.report import Shown, TextReport
from fxlrp.show.colours import shade
from fxlrp.text.attribution import TextAttribution, laid_out

WAYS = {
    "hidden": "Tokens hidden from attention",
    "dropped": "Tokens dropped",
    "replaced": "Tokens replaced by the tokenizer's mask",
}
CHARTS = {  # the heading of each measure that has a chart, and whether more of it is better
    "hidden_abpc": ("ABPC, tokens hidden", True),
    "dropped_abpc": ("ABPC, tokens dropped", True),
    "replaced_abpc": ("ABPC, tokens masked", True),
    "comprehensiveness": ("Comprehensiveness", True),
    "sufficiency": ("Sufficiency", False),
    "auprc": ("Agreement with people, AUPRC", True),
    "token_f1": ("Agreement with people, token F1", True),
    "max_sensitivity": ("Max-sensitivity to noise", False),
    "randomization": ("Correlation with the map of random weights", False),
}
STYLE = """
.text { white-space: pre-wrap; overflow-wrap: anywhere; margin: .2rem 0 .8rem; color: #111; background: #fff;
  padding: .4rem .6rem; border-radius: 4px } .text b { font-weight: inherit; border-bottom: 2px solid #111 }
"""


def page(report: TextReport, examples: Shown | None = None) -> str:
    """Write the whole page.  examples(method, samples) → their attributions, for texts of the best and worst."""
    means = {measure: report.means(measure) for measure in report.measures}
    ranked = sorted(report.methods, key=lambda m: -means[report.first][m].mean)
    settings = ", ".join(f"{k} {v}" for k, v in report.settings.items() if k not in ("model", "tokenizer", "fxlrp"))
    body = ["<h1>Evaluation of explanations on texts</h1>", f"<p class=soft>{escape(settings)}</p>"]
    body += [f"<p>{escape(note)}</p>" for note in report.notes]
    body += [f"<p><b>{escape(m)}</b> was not evaluated: {escape(e)}</p>" for m, e in report.errors.items()]
    heading = report.headings[report.first]
    body += [
        f"<p>Bars are means, whiskers their 95 % bootstrap intervals; methods stand in the order of {heading}.</p>"
    ]
    body += ["<div class=charts>"]
    for k in (k for k in CHARTS if k in means):
        low = "" if CHARTS[k][1] else "(low is good)"
        body += [f"<div><h2>{CHARTS[k][0]} <span class=soft>{low}</span></h2>{bars({m: means[k][m] for m in ranked})}"]
        body += ["</div>"]
    body += ["</div><h2>All measures</h2>", table(report, means, ranked)]
    for way in report.ways:
        body += _curves(report, way, ranked)
    body += orders(report, ranked, "removal")
    body += [f"<h2>Differences in {heading} on the same samples</h2>", differences(report, ranked)]
    if examples is not None:
        body += ["<h2>Best and worst texts</h2><p>Red spoke for it, blue against it; underlined is what people "
                 "marked.</p>"]  # fmt: skip
        body += [_texts(report, m, examples) for m in ranked]
    return document(body, STYLE)


def _curves(report: TextReport, way: str, ranked: list[str]) -> list[str]:
    """Draw the removal curves of all methods on one scale."""
    curves = {m: [report.curve(m, f"{way}_{order}") for order in ("morf", "lerf")] for m in ranked}
    low = min(0.0, *(float(c.min()) for pair in curves.values() for c in pair))
    high = max(1.0, *(float(c.max()) for pair in curves.values() for c in pair)) if low == 0 else 0.0
    what = "class's probability" if low == 0 else "continuation's log-probability"
    out = [
        f"<h2>{WAYS[way]}</h2><p>The {what}, {low:.3g} to {high:.3g}, as 0 to 100 % of the tokens go, "
        "<span class=down>most relevant first</span> (low is good) or <span class=up>least relevant first</span> "
        "(high is good); between them lies ABPC.</p><div class=panels>"
    ]
    means = report.means(f"{way}_abpc")
    for m, pair in curves.items():
        morf, lerf = (np.clip((c - low) / (high - low), 0, 1) for c in pair)
        out.append(panel(m, morf, lerf, means[m].mean))
    return [*out, "</div>"]


def _texts(report: TextReport, method: str, examples: Shown) -> str:
    """Show a method's best and worst texts, coloured."""
    best, worst = report.extremes(method)
    shown = examples(method, [row["sample"] for row in best + worst])
    texts = [_text(a, row, report.first) for a, row in zip(shown, best + worst, strict=True)]
    out = [f"<h3>{escape(method)}</h3><p>Best</p>", *texts[: len(best)], "<p>Worst</p>", *texts[len(best) :]]
    return "".join(out)


def _text(a: TextAttribution, row: dict[str, Any], measure: str) -> str:
    """Show one text, its tokens coloured by relevance; what people marked is the second row of the attribution."""
    top = float(a.scores.abs().max()) or 1.0
    marks = a.matrix[1] if len(a.matrix) > 1 else a.scores * 0
    spans = []
    for i, (gap, written, _) in enumerate(laid_out(a.segments, a.pieces)):
        colour = f"rgb{shade(float(a.scores[i]) / top)}"
        text = f"<span style='background:{colour}' title='{float(a.scores[i]):.3g}'>{escape(written)}</span>"
        spans.append(escape(gap) + (f"<b>{text}</b>" if float(marks[i]) > 0 else text))
    name = escape(str(row.get("name", f"sample {row['sample']}")))
    return (
        f"<div class=soft>{name}, {escape(a.asked[0].title)}: {row[measure]:.3f}</div>"
        f"<div class=text>{''.join(spans)}</div>"
    )
