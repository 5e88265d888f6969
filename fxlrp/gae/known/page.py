"""The report on networks that are known as one HTML file that needs no network."""

from __future__ import annotations

from html import escape

from fxlrp.gae.html import STYLE, bars
from fxlrp.gae.known.measures import TITLES
from fxlrp.gae.known.report import KnownReport, facts_of

MORE = """
.known td + td { text-align: center }
.known th + th { writing-mode: vertical-rl; text-align: left; vertical-align: bottom }
.yes { background: color-mix(in srgb, var(--up) 30%, transparent) }
.some { background: color-mix(in srgb, var(--up) 12%, transparent) }
details { margin: .6rem 0 }
"""


def page(report: KnownReport) -> str:
    """Write the whole page."""
    settings = ", ".join(f"{k} {v}" for k, v in report.settings.items() if k not in ("fxlrp", "suites"))
    body = ["<h1>What methods know of networks that are known</h1>", f"<p class=soft>{escape(settings)}</p>"]
    for suite in report.suites:
        body.append(f"<h2>{escape(TITLES.get(suite, suite))}</h2>")
        body += [f"<p class=soft>{escape(line)}</p>" for line in facts_of(report, suite)]
        body.append(_passed(report) if suite == "built" else _measured(report, suite))
        if said := report.said(suite):
            items = "".join(f"<li>{escape(line)}" for line in said)
            body.append(
                f"<details><summary>{len(said)} reasons why methods could not run</summary><ul>{items}</ul></details>"
            )
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>Known answers</title><style>{STYLE}{MORE}</style><body>{''.join(body)}</body></html>\n"
    )


def _passed(report: KnownReport) -> str:
    """A matrix of methods and kinds: in how many layouts a method passes."""
    headings, cells = report.columns("built")
    layouts = max(len(report.cases("built")) // max(len(headings) - 1, 1), 1)
    head = "".join(f"<th>{escape(h)}" for h in headings)

    def cell(text: str) -> str:
        look = "yes" if text == str(layouts) else "some" if text not in ("0", "–") else "soft"
        return f"<td class={look}>{text}"

    rows = "".join(f"<tr><td>{escape(m)}<td>{row[0]}{''.join(map(cell, row[1:]))}" for m, row in cells.items())
    return (
        f"<p>In how many of {layouts} layouts (table, sequence, one, two and three axes) a method is right about every "
        f"sample; – where it can't run.</p><div class=wide><table class=known><tr><th>method{head}{rows}</table></div>"
    )


def _measured(report: KnownReport, suite: str) -> str:
    """Bars of each measure, the methods in the order of the first one."""
    ranked = report.ranked(suite)
    out = ["<div class=charts>"]
    for measure, heading in report.measures(suite).items():
        means = report.means(suite, measure)
        if means:
            out.append(f"<div><h3>{escape(heading)}</h3>{bars({m: means[m] for m in ranked if m in means})}</div>")
    return "".join([*out, "</div>"])
