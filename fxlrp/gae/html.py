"""The report as one HTML file that needs no network: charts are inline SVG, pictures inline PNG."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

from fxlrp.attribution import Attribution
from fxlrp.gae.masking import MASKINGS
from fxlrp.gae.report import Estimate, Examples, Report
from fxlrp.show.parts import heat_of, parts_of

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #667; --line: #d8dbe0; --bar: #8fb3e0; --up: #3b6fb6;
  --down: #c4572e }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8eaed; --soft: #9aa4b0; --line: #3a4048; --bar: #3d618f; --up: #7aa7e6; --down: #ef9470 }
}
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1200px; margin: 2rem auto; padding: 0 1rem; color: var(--ink);
  overflow-wrap: anywhere }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13px; white-space: nowrap }
.wide { overflow-x: auto } td, th { padding: .25rem .6rem; border-bottom: 1px solid var(--line); text-align: right }
td:first-child, th:first-child { text-align: left } .soft { color: var(--soft) } td .soft { font-size: 11px }
.pairs td + td { text-align: center; padding: .1rem .4rem } .pairs th { vertical-align: bottom }
.pairs th + th { writing-mode: vertical-rl; padding: .4rem .1rem; text-align: left }
.up { color: var(--up) } .down { color: var(--down) }
svg text { fill: var(--ink); font: 12px system-ui, sans-serif } svg .soft { fill: var(--soft) }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(420px, 100%), 1fr)); gap: 0 2rem }
.charts svg { width: 100% } h2 { margin-bottom: .3rem }
.panels, .shots { display: flex; flex-wrap: wrap; gap: .8rem } figure { margin: 0; font-size: 12px }
figure img { display: block; width: 190px; image-rendering: pixelated }
"""
ORDERS = "<p>A method that is ahead by one {what} alone is ahead by its artefacts. Equal ones share a place.</p>"
CHARTS = {  # the heading of each measure that has a chart, and whether more of it is better
    "gae": ("GAE, local consistency × contrastiveness", True),
    "lc": ("Local consistency", True),
    "contrastiveness": ("Contrastiveness", True),
    "abpc": ("ABPC, between the LeRF and MoRF curves", True),
    "srg": ("SRG, the same of the logit", True),
    "pointing": ("Pointing game", True),
    "relevance_mass": ("Relevance inside the mask", True),
    "max_sensitivity": ("Max-sensitivity to noise", False),
    "randomization": ("Correlation with the map of random weights", False),
}


def page(report: Report, examples: Examples | None = None) -> str:
    """Write the whole page.  examples(method, samples) → x and relevance, for pictures of the best and worst."""
    means = {measure: report.means(measure) for measure in report.measures}
    ranked = sorted(report.methods, key=lambda m: -means["gae"][m].mean)
    settings = ", ".join(f"{k} {v}" for k, v in report.settings.items() if k not in ("model", "files"))
    body = ["<h1>Evaluation of explanations</h1>", f"<p class=soft>{escape(settings)}</p>"]
    body += [f"<p>{escape(note)}</p>" for note in report.notes]
    body += [f"<p><b>{escape(m)}</b> was not evaluated: {escape(e)}</p>" for m, e in report.errors.items()]
    body += ["<p>Bars are means, whiskers their 95 % bootstrap intervals; methods stand in the order of their GAE.</p>"]
    body += ["<div class=charts>"]
    for k in (k for k in CHARTS if k in means):
        heading = f"{CHARTS[k][0]} <span class=soft>{'' if CHARTS[k][1] else '(low is good)'}</span>"
        body += [f"<div><h2>{heading}</h2>{bars({m: means[k][m] for m in ranked})}</div>"]
    body += ["</div><h2>All measures</h2>", table(report, means, ranked)]
    body += ["<h2>Masking curves</h2><p>The class's probability, 0 to 1, as 0 to 100 % of the patches are masked: "
             "<span class=down>most relevant first</span> (low is good) and <span class=up>least relevant first</span> "
             "(high is good); between them lies ABPC.</p><div class=panels>"]  # fmt: skip
    body += [panel(m, report.curve(m, "morf"), report.curve(m, "lerf"), means["abpc"][m].mean) for m in ranked]
    body += ["</div>", *_maskings(report, means, ranked)]
    body += ["<h2>Differences in GAE on the same samples</h2>", differences(report, ranked)]
    if examples is not None:
        body += ["<h2>Best and worst samples by GAE</h2>"]
        body += [_shots(report, m, examples) for m in ranked]
    return document(body)


def document(body: Sequence[str], style: str = "") -> str:
    """Write a whole HTML file."""
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>Evaluation of explanations</title><style>{STYLE}{style}</style><body>{''.join(body)}</body></html>\n"
    )


def bars(means: dict[str, Estimate]) -> str:
    """Draw horizontal bars with whiskers, on an axis that has 0 in it."""
    low = min(0.0, *(e.low for e in means.values()))
    high = max(1e-6, *(e.high for e in means.values()))
    left, wide, row = 190, 340, 20

    def at(v: float) -> float:
        return left + wide * (v - low) / (high - low)

    out = []
    for i, (name, e) in enumerate(means.items()):
        y = i * row + 10
        a, b = sorted((at(0), at(e.mean)))
        ends = "".join(f"M{at(v):.1f} {y - 4}v8" for v in (e.low, e.high))
        out.append(
            f"<g><title>{escape(name)} {e}, {e.n} samples</title>"
            f"<text x={left - 8} y={y + 4} text-anchor=end>{escape(name)}</text>"
            f"<rect x={a:.1f} y={y - 7} width={max(b - a, 0.5):.1f} height=14 rx=2 fill='var(--bar)'/>"
            f"<path d='M{at(e.low):.1f} {y}H{at(e.high):.1f}{ends}' stroke='var(--ink)'/>"
            f"<text x={max(at(e.high), b) + 8:.1f} y={y + 4} class=soft>{e.mean:.3f}</text></g>"
        )
    height = len(means) * row + 4
    zero = f"<path d='M{at(0):.1f} 0V{height}' stroke='var(--line)'/>"
    return f"<svg viewBox='0 0 {left + wide + 60} {height}'>{zero}{''.join(out)}</svg>"


def panel(name: str, morf: np.ndarray, lerf: np.ndarray, abpc: float) -> str:
    """Draw both curves of a method, the area between them shaded."""
    w, h = 190, 110

    def points(curve: Sequence[float]) -> list[str]:
        return [f"{i * w / (len(curve) - 1):.1f},{h - h * v:.1f}" for i, v in enumerate(curve)]

    down, up = points(list(morf)), points(list(lerf))
    lines = "".join(
        f"<polyline points='{' '.join(p)}' fill=none stroke='var(--{colour})' stroke-width=2 />"
        for p, colour in ((down, "down"), (up, "up"))
    )
    return (
        f"<figure><svg width={w} height={h} style='border:1px solid var(--line)'>"
        f"<polygon points='{' '.join(down + up[::-1])}' fill='var(--bar)' opacity=.25 />{lines}</svg>"
        f"<figcaption>{escape(name)} <span class=soft>{abpc:.3f}</span></figcaption></figure>"
    )


def _maskings(report: Report, means: dict[str, dict[str, Estimate]], ranked: Sequence[str]) -> list[str]:
    """The curves by each other way of masking, the place of each method by each, and how alike these are."""
    out = []
    for way in (way for way in MASKINGS if f"abpc_{way}" in means):
        found = means[f"abpc_{way}"]
        both = {m: (report.curve(m, f"morf_{way}"), report.curve(m, f"lerf_{way}")) for m in ranked}
        panels = [panel(m, *both[m], found[m].mean) for m in ranked]
        out.append(f"<details><summary>Masked by {way}</summary><div class=panels>{''.join(panels)}</div></details>")
    return [*out, *orders(report, ranked, "masking")] if out else []


def orders(report: Report, ranked: Sequence[str], what: str) -> list[str]:
    """Write the place of each method by each way of masking or removal, and how alike these rank the methods."""
    places = report.places()
    head = "".join(f"<th>{escape(way)}" for way in places)
    rows = "".join(f"<tr><td>{escape(m)}" + "".join(f"<td>{by[m]}" for by in places.values()) for m in ranked)
    out = [f"<h2>The order of methods by each {what}</h2>{ORDERS.format(what=what)}"]
    out += [f"<div class=wide><table><tr><th>method{head}{rows}</table></div>"]
    return [*out, *(f"<p>Spearman's ρ, {heading}: {line}.</p>" for heading, line in report.agreements().items())]


def table(report: Report, means: dict[str, dict[str, Estimate]], ranked: Sequence[str]) -> str:
    """Write a table of all measures, a row for each method."""
    head = "".join(f"<th title='{measure}'>{report.headings[measure]}" for measure in means)

    def cell(e: Estimate) -> str:
        return f"<td title='{e}, {e.n} samples'>{e.mean:.3f} <span class=soft>±{(e.high - e.low) / 2:.3f}</span>"

    rows = "".join(f"<tr><td>{escape(m)}" + "".join(cell(means[k][m]) for k in means) for m in ranked)
    return f"<div class=wide><table><tr><th>method{head}{rows}</table></div>"


def differences(report: Report, ranked: Sequence[str]) -> str:
    """Write a table of each method against each, in the order of their means."""
    differences = report.differences()

    def cell(a: str, b: str) -> str:
        if a == b:
            return "<td>"
        e, sign = (differences[a, b], 1) if (a, b) in differences else (differences[b, a], -1)
        low, mean, high = sorted((sign * e.low, sign * e.mean, sign * e.high))
        mark = "<span class=up>▲</span>" if low > 0 else "<span class=down>▼</span>" if high < 0 else "·"
        return f"<td title='{escape(a)} − {escape(b)}: {mean:.3f} [{low:.3f}, {high:.3f}]'>{mark}"

    head = "".join(f"<th>{escape(b)}" for b in ranked)
    rows = "".join(f"<tr><td>{escape(a)}{''.join(cell(a, b) for b in ranked)}" for a in ranked)
    return (
        "<p>▲ the row is above the column and the interval of the difference leaves out 0, ▼ below, · neither.</p>"
        f"<div class=wide><table class=pairs><tr><th>{head}{rows}</table></div>"
    )


def _shots(report: Report, method: str, examples: Examples) -> str:
    """Show a method's best and worst samples, each beside its heatmap."""
    out = [f"<h3>{escape(method)}</h3>"]
    best, worst = report.extremes(method)
    x, relevance = examples(method, [row["sample"] for row in best + worst])
    a = Attribution(relevance.expand_as(x), None, x, None, ("x",), (x,))
    shots = [_shot(a, i, row) for i, row in enumerate(best + worst)]
    for title, figures in (("Best", shots[: len(best)]), ("Worst", shots[len(best) :])):
        out.append(f"<p>{title}</p><div class=shots>{''.join(figures)}</div>")
    return "".join(out)


def _shot(a: Attribution, index: int, row: dict[str, Any]) -> str:
    """Show one sample of an attribution, with its GAE."""
    from PIL import Image

    part = parts_of(a, index)[0]
    strip = np.concatenate([part.values, heat_of(part.relevance[0])], 1)
    picture = Image.fromarray((strip * 255).round().astype(np.uint8))
    if picture.width < 128:
        picture = picture.resize((128, 128 * picture.height // picture.width), Image.Resampling.NEAREST)
    picture.thumbnail((192, 192))
    png = io.BytesIO()
    picture.save(png, "png")
    name = escape(str(row.get("name", f"sample {row['sample']}")))
    source = f"data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}"
    caption = f"{name}, class {row['predicted']}: {row['gae']:.3f}"
    return f"<figure><img src='{source}' alt='{name}'><figcaption>{caption}</figcaption></figure>"
