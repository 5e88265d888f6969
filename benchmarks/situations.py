"""Which ways of writing and calling a model can be explained, and how well: one JSON line each, and a table.

    python -m benchmarks.situations                                # all, to situations.jsonl
    python -m benchmarks.situations --only lstm gru --all-rulebooks
    python -m benchmarks.situations --report docs/situations.md    # writes the table from situations.jsonl

The models are in `situation_models/`; what is asked of each is in `situation_checks.py`.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import warnings
from pathlib import Path

from benchmarks.workers import ask_all, serve

SAMPLE = 6  # every so many-th case is in the sample, and one of every kind


def work(books: str, gib: float) -> None:
    """Examine the cases whose names come in."""
    import torch

    import fxlrp
    from benchmarks.situation_checks import examine

    torch.set_num_threads(1)

    def answer(line: str) -> dict:
        gc.collect()
        torch._dynamo.reset()
        return examine(line, books.split(","))

    serve(answer, lambda: fxlrp.convert(torch.nn.Linear(1, 1).eval(), torch.ones(1, 1)), gib)


def sweep(names: list[str], args: argparse.Namespace) -> None:
    """Examine all by `args.workers` processes; each record is appended to `args.out` as it comes."""
    from benchmarks.situation_checks import BOOKS, blank, verdict
    from fxlrp import rulebooks

    books = ",".join(rulebooks() if args.all_rulebooks else BOOKS)
    command = [sys.executable, "-m", "benchmarks.situations", "--work", books, "--memory", str(args.memory)]

    def record(name: str, answer: dict | str) -> tuple[dict, str]:
        if isinstance(answer, str):
            answer = blank(name) | {"books": {"all": {"result": "broken", "why": answer}}}
        result, why = verdict(answer)
        return answer, "" if result == "right" else f"{name} {result}: {why[:300]}"

    ask_all(names, command, record, workers=args.workers, timeout=args.timeout, out=args.out)


def read(path: Path) -> list[dict]:
    """The latest record of each case."""
    lines = path.read_text().splitlines() if path.exists() else []
    return list({r["case"]: r for r in map(json.loads, lines)}.values())


def sample(names: list[str]) -> list[str]:
    """Every so many-th, and the first of every kind."""
    from benchmarks.situation_models import CASES

    first = {CASES[name].kind: name for name in reversed(names)}
    return [name for i, name in enumerate(names) if i % SAMPLE == 0 or name in first.values()]


def main() -> None:
    from benchmarks.situation_models import CASES

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these cases, or all of a kind")
    parser.add_argument("--sample", action="store_true", help="some of every kind")
    parser.add_argument("--all-rulebooks", action="store_true", help="ask every rulebook, not just four")
    parser.add_argument("--list", action="store_true", help="list the cases instead")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--timeout", type=float, default=600, help="seconds per case")
    parser.add_argument("--memory", type=float, default=8, help="GiB per worker")
    parser.add_argument("--resume", action="store_true", help="skip cases that --out has a record of")
    parser.add_argument("--out", type=Path, default=Path("situations.jsonl"))
    parser.add_argument("--report", type=Path, help="write the table on --out here, and examine nothing")
    parser.add_argument("--work", metavar="RULEBOOKS", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        return work(args.work, args.memory)
    names = list(CASES)
    if args.only:
        unknown = [n for n in args.only if n not in CASES and n not in {c.kind for c in CASES.values()}]
        if unknown:
            parser.error(f"no case or kind is called {', '.join(unknown)}; see --list")
        names = [n for n in names if n in args.only or CASES[n].kind in args.only]
    if args.sample:
        names = sample(names)
    if args.list:
        print(*(f"{CASES[n].kind}\t{n}\t{CASES[n].what}" for n in names), sep="\n")
    elif args.report:
        from benchmarks.situation_report import report

        args.report.write_text(report(read(args.out)))
    else:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        done = {r["case"] for r in read(args.out)} if args.resume else set()
        sweep([n for n in names if n not in done], args)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
