"""The records of a sweep, as docs/coverage.md."""

from __future__ import annotations

import platform
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median, quantiles

from benchmarks.examine import FORWARD, ROWS, ROWS_DOUBLE, Record, verdict
from benchmarks.zoo import Entry

NUMBER = r" by ([^,;]+)"  # of a verdict
INTRO = f"""# Coverage

Every model of torchvision, timm and transformers (`python -m benchmarks.coverage`), with random weights, converted with
the default rulebook and asked for one output. A model is **ok** if it is captured, its graph gives the model's own
output (to {FORWARD:g} of its largest value), relevance is finite and not zero, and each sample of a batch has the
relevance that it has alone (to {ROWS:g} of its largest in float32, or {ROWS_DOUBLE:g} in float64). **Not tried** are
models that can't be built here or do not run by themselves."""


def report(records: list[Record], entries: list[Entry]) -> str:
    """The whole page."""
    known = {(e.zoo, e.name) for e in entries}
    records = sorted((r for r in records if (r["zoo"], r["name"]) in known), key=lambda r: (r["zoo"], r["name"]))
    parts = (_machine(), _totals(records, entries), _seconds(records), _failures(records), _generic(records))
    more = (_quality(records), _reduced(records), _not_tried(records), _families(records))
    return "\n\n".join([INTRO, *parts, *more]) + "\n"


def _machine() -> str:
    found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    cores = Path("/proc/cpuinfo").read_text().count("processor\t")
    versions = ", ".join(f"{name} {_version(name)}" for name in ("torch", "torchvision", "timm", "transformers"))
    cpu = found[1] if found else platform.machine()
    return f"{date.today()}; {versions}; {cpu}, {cores} cores, one thread for each model."


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "–"


def _totals(records: list[Record], entries: list[Entry]) -> str:
    listed = Counter(e.zoo for e in entries)
    groups = _by(records, lambda r: r["zoo"])
    rows = [[zoo, listed[zoo], *_counts(groups[zoo])] for zoo in listed if groups[zoo]]
    if len(rows) > 1:
        rows.append(["**all**", sum(listed.values()), *_counts(records)])
    return table(["zoo", "entries", "tried", "ok", "of tried", "all ops with a rule", "of captured"], rows)


def _counts(records: list[Record]) -> list[str | int]:
    """Tried, ok and its share, without generic nodes and their share."""
    tried = [r for r in records if r["tried"]]
    captured = [r for r in tried if r["captured"]]
    ok, pure = sum(r["ok"] for r in tried), sum(not r["generic"] for r in captured)
    return [len(tried), ok, percent(ok, len(tried)), pure, percent(pure, len(captured))]


def _seconds(records: list[Record]) -> str:
    rows = []
    for zoo, group in _by(records, lambda r: r["zoo"]).items():
        for key in ("seconds_build", "seconds_capture", "seconds_explain"):
            if found := [r[key] for r in group if r["captured"] and key in r]:
                rows.append([zoo, key.removeprefix("seconds_"), f"{median(found):.2f}", f"{_quantile(found, 95):.2f}"])
    return "## Seconds\n\n" + table(["zoo", "step, two samples", "median", "95 %"], rows)


def _failures(records: list[Record]) -> str:
    failed = [r for r in records if r["tried"] and not r["ok"]]
    return f"## Failures\n\n{_reasons(failed)}" if failed else "## Failures\n\nNone."


def _not_tried(records: list[Record]) -> str:
    left = [r for r in records if not r["tried"]]
    return f"## Not tried\n\n{_reasons(left)}" if left else "## Not tried\n\nNone."


def _reasons(records: list[Record]) -> str:
    groups = _by(records, lambda r: (r["zoo"], r["error"][:240] or re.sub(NUMBER, "", verdict(r))))
    rows = sorted(groups.items(), key=lambda kv: (kv[0][0], -len(kv[1])))
    return table(["zoo", "reason", "", "models"], [[z, cell(why), len(rs), _with_size(rs)] for (z, why), rs in rows])


def _with_size(records: list[Record]) -> str:
    """Names, with the numbers that the reason they share leaves out."""
    found = [(r["name"], [] if r["error"] else re.findall(NUMBER, verdict(r))) for r in records]
    return ", ".join(f"`{name}`" + (f" ({'; '.join(numbers)})" if numbers else "") for name, numbers in found)


def _generic(records: list[Record]) -> str:
    places: dict[str, list[str]] = defaultdict(list)
    for r in records:
        for place in r.get("generic", ()):
            places[place].append(r["name"])
    rows = []
    for place, names in sorted(places.items(), key=lambda kv: (-len(kv[1]), kv[0])):
        op, source = place.split(" at ", 1)
        rows.append([f"`{op}`", cell(f"`{source}`"), len(names), _names(names)])
    listed = table(["op", "source", "models", ""], rows) if rows else "None."
    return f"## Ops that fell to the generic rule\n\n{listed}"


def _quality(records: list[Record]) -> str:
    ok = [r for r in records if r["ok"]]
    noisy = [r for r in ok if "rows_difference_double" in r]
    fixed = [r for r in ok if r["dynamic"] is False]
    other = Counter(r["way"] for r in ok if r.get("way"))
    lines = [f"- {len(fixed)} models that are ok fix their batch: one graph is captured for each size of it."]
    lines.append(f"- {len(noisy)} of them have equal rows in float64 only: {_names([r['name'] for r in noisy], 40)}.")
    lines += [f"- captured by {way}: {count}" for way, count in other.most_common()]
    rows = []
    for zoo, group in _by(ok, lambda r: r["zoo"]).items():
        columns = {
            "output, largest difference": [r["forward_difference"] for r in group],
            "rows, largest difference": [r["rows_difference"] for r in group if "rows_difference" in r],
            "Σ R of the input, of 1 at the output": [m for r in group for m in r["mass"]],
        }
        for name, values in columns.items():
            rows.append([zoo, name, *(f"{_quantile(values, q):.2g}" for q in (5, 50, 95))])
    return "## Of those that are ok\n\n" + "\n".join(lines) + "\n\n" + table(["zoo", "", "5 %", "median", "95 %"], rows)


def _reduced(records: list[Record]) -> str:
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    for r in records:
        for part in filter(None, r["note"].split("; ")):
            groups[r["zoo"], part].append(r["name"])
    rows = [[z, part, len(names), _names(names)] for (z, part), names in groups.items()]
    rows.sort(key=lambda row: (row[0], -row[2]))
    return "## What was made smaller\n\n" + (table(["zoo", "how", "models", ""], rows) if rows else "Nothing.")


def _families(records: list[Record]) -> str:
    rows = []
    for (zoo, family), group in sorted(_by(records, lambda r: (r["zoo"], r["family"])).items()):
        rows.append([zoo, family, len(group), *_counts(group)])
    head = ["zoo", "family", "entries", "tried", "ok", "of tried", "all ops with a rule", "of captured"]
    return "## Families\n\n" + table(head, rows)


def _by(records: Iterable[Record], key: Callable[[Record], Hashable]) -> dict:
    groups: dict = defaultdict(list)
    for r in records:
        groups[key(r)].append(r)
    return groups


def _names(names: list[str], most: int = 6) -> str:
    shown = ", ".join(f"`{n}`" for n in names[:most])
    return shown + (f", and {len(names) - most} more" if len(names) > most else "")


def percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "–"


def _quantile(values: list[float], percent: int) -> float:
    return quantiles(values, n=100, method="inclusive")[percent - 1] if len(values) > 1 else values[0]


def cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def table(head: list[str], rows: Iterable[list]) -> str:
    def lines() -> Iterator[str]:
        yield "| " + " | ".join(head) + " |"
        yield "|" + "---|" * len(head)
        for row in rows:
            yield "| " + " | ".join(map(str, row)) + " |"

    return "\n".join(lines())
