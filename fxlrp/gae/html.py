"""The report as one HTML file that needs no network: charts are inline SVG, pictures inline PNG."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from fxlrp.attribution import Attribution

if TYPE_CHECKING:
    from fxlrp.gae.report import Estimate, Examples, Report

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #667; --line: #d8dbe0; --bar: #3b6fb6; --other: #c4572e }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8eaed; --soft: #9aa4b0; --line: #3a4048; --bar: #7aa7e6; --other: #ef9470 }
}
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2rem auto; padding: 0 1rem; color: var(--ink) }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13px }
.wide { overflow-x: auto } td, th { padding: .25rem .7rem; border-bottom: 1px solid var(--line); text-align: right }
td:first-child, th:first-child { text-align: left } .soft { color: var(--soft) }
svg text { fill: var(--ink); font: 12px system-ui, sans-serif } svg .soft { fill: var(--soft) }
.panels, .shots { display: flex; flex-wrap: wrap; gap: .8rem } figure { margin: 0; font-size: 12px }
figure img { display: block; width: 190px; image-rendering: pixelated } summary { cursor: pointer }
"""
SAID = {
    "gae": "GAE, local consistency times contrastiveness",
    "lc": "Local consistency",
    "contrastiveness": "Contrastiveness",
    "abpc": "ABPC, area between the LeRF and MoRF curves",
    "pointing": "Pointing game",
    "relevance_mass": "Relevance inside the mask",
}


def page(report: Report, examples: Examples | None = None) -> str:
    """The whole page."""
    means = {measure: report.means(measure) for measure in report.measures}
    ranked = sorted(report.methods, key=lambda m: -means["gae"][m].mean)
    how = ", ".join(f"{k} {v}" for k, v in report.settings.items() if k not in ("model", "files"))
    body = ["<h1>Evaluation of explanations</h1>", f"<p class=soft>{escape(how)}</p>"]
    body += [f"<p>{escape(note)}</p>" for note in report.notes]
    body += [f"<p><b>{escape(m)}</b> was not evaluated: {escape(e)}</p>" for m, e in report.errors.items()]
    body += ["<p>Bars are means, whiskers their 95 % bootstrap intervals.</p>"]
    body += [f"<h2>{SAID[k]}</h2>{_bars({m: means[k][m] for m in ranked})}" for k in SAID if k in means]
    body += ["<h2>All measures</h2>", _table(report, means, ranked)]
    body += ["<h2>Masking curves</h2><p>The class's probability as patches are masked, most relevant first (low is "
             "good) and least relevant first (high is good).</p><div class=panels>"]  # fmt: skip
    body += [_panel(m, report.curve(m, "morf"), report.curve(m, "lerf")) for m in ranked]
    body += ["</div><h2>Differences in GAE on the same samples</h2>", _differences(report)]
    if examples is not None:
        body += ["<h2>Best and worst samples by GAE</h2>"]
        body += [_shots(report, m, examples) for m in ranked]
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>Evaluation of explanations</title><style>{STYLE}</style><body>{''.join(body)}</body></html>\n"
    )


def _bars(means: dict[str, Estimate]) -> str:
    """Horizontal bars with whiskers, on an axis that has 0 in it."""
    low = min(0.0, *(e.low for e in means.values()))
    high = max(1e-6, *(e.high for e in means.values()))
    left, wide, row = 190, 620, 24

    def at(v: float) -> float:
        return left + wide * (v - low) / (high - low)

    out = []
    for i, (name, e) in enumerate(means.items()):
        y = i * row + 4
        a, b = sorted((at(0), at(e.mean)))
        out.append(
            f"<text x={left - 8} y={y + 13} text-anchor=end>{escape(name)}</text>"
            f"<rect x={a:.1f} y={y} width={max(b - a, 0.5):.1f} height={row - 8} rx=2 fill='var(--bar)'/>"
            f"<path d='M{at(e.low):.1f} {y + 8}H{at(e.high):.1f}' stroke='var(--ink)' stroke-width=1.5 />"
            f"<text x={max(at(e.high), b) + 8:.1f} y={y + 13} class=soft>{e.mean:.3f}</text>"
            f"<title>{escape(name)} {e}</title>"
        )
    height = len(means) * row + 4
    zero = f"<path d='M{at(0):.1f} 0V{height}' stroke='var(--line)'/>"
    return f"<svg width={left + wide + 70} height={height} style='max-width:100%'>{zero}{''.join(out)}</svg>"


def _panel(name: str, morf: np.ndarray, lerf: np.ndarray) -> str:
    """Both curves of a method, the area between them shaded."""
    w, h = 190, 110

    def points(curve: Sequence[float]) -> list[str]:
        return [f"{i * w / (len(curve) - 1):.1f},{h - h * v:.1f}" for i, v in enumerate(curve)]

    down, up = points(list(morf)), points(list(lerf))
    lines = "".join(
        f"<polyline points='{' '.join(p)}' fill=none stroke='var(--{colour})' stroke-width=2 />"
        for p, colour in ((down, "other"), (up, "bar"))
    )
    return (
        f"<figure><svg width={w} height={h} style='border:1px solid var(--line);overflow:visible'>"
        f"<polygon points='{' '.join(down + up[::-1])}' fill='var(--bar)' opacity=.12 />{lines}</svg>"
        f"<figcaption>{escape(name)}<br><span style='color:var(--other)'>most first</span> "
        "<span style='color:var(--bar)'>least first</span></figcaption></figure>"
    )


def _table(report: Report, means: dict[str, dict[str, Estimate]], ranked: Sequence[str]) -> str:
    head = "".join(f"<th>{measure}" for measure in ["method", *means])
    rows = "".join(f"<tr><td>{escape(m)}" + "".join(f"<td>{means[k][m]}" for k in means) for m in ranked)
    return f"<div class=wide><table><tr>{head}{rows}</table></div>"


def _differences(report: Report) -> str:
    rows = []
    for (a, b), e in report.differences().items():
        sure = "<b>" if e.low > 0 or e.high < 0 else ""
        rows.append(f"<tr><td>{escape(a)} − {escape(b)}<td>{sure}{e}")
    return (
        "<details><summary>All pairs; bold where the interval leaves out 0</summary>"
        f"<table><tr><th>pair<th>difference{''.join(rows)}</table></details>"
    )


def _shots(report: Report, method: str, examples: Examples) -> str:
    out = [f"<h3>{escape(method)}</h3>"]
    best, worst = report.extremes(method)
    x, relevance = examples(method, [row["sample"] for row in best + worst])
    a = Attribution(relevance.expand_as(x), None, x, None, ("x",), (x,))
    shots = [_shot(a, i, row) for i, row in enumerate(best + worst)]
    for title, some in (("Best", shots[: len(best)]), ("Worst", shots[len(best) :])):
        out.append(f"<p>{title}</p><div class=shots>{''.join(some)}</div>")
    return "".join(out)


def _shot(a: Attribution, index: int, row: dict[str, Any]) -> str:
    from PIL import Image

    strip = np.concatenate(a.panels(index=index, side=64)[:2], 1)
    picture = Image.fromarray((strip * 255).round().astype(np.uint8))
    picture.thumbnail((192, 192))
    held = io.BytesIO()
    picture.save(held, "png")
    name = escape(str(row.get("name", f"sample {row['sample']}")))
    source = f"data:image/png;base64,{base64.b64encode(held.getvalue()).decode()}"
    said = f"{name}, class {row['predicted']}: {row['gae']:.3f}"
    return f"<figure><img src='{source}' alt='{name}'><figcaption>{said}</figcaption></figure>"
