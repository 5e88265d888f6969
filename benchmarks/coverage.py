"""Which models of torchvision, timm and transformers can be explained, and how well: one JSON line each, and a report.

    python -m benchmarks.coverage --sample                              # some 200 models, at least one of every family
    python -m benchmarks.coverage --zoo timm --family resnet --resume
    python -m benchmarks.coverage --report docs/coverage.md             # writes the report from coverage.jsonl

Weights are random and pictures small, see `zoo.py`; what is asked of a model is in `examine.py`.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import sys
import warnings
from pathlib import Path

from benchmarks import zoo
from benchmarks.workers import ask_all, serve
from benchmarks.zoo import ZOOS, Entry


def work(full_size: bool, gib: float) -> None:
    """Examine the models whose names come in."""
    import torch

    import fxlrp
    from benchmarks.examine import examine

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")

    def warm_up() -> None:  # imports and first calls count for no model
        for name in ZOOS:
            zoo.entries(name)
        fxlrp.convert(torch.nn.Linear(1, 1).eval(), torch.ones(1, 1))

    def answer(line: str) -> dict:
        gc.collect()
        return examine(Entry(*line.split()), full_size=full_size)

    serve(answer, warm_up, gib)


def sweep(entries: list[Entry], args: argparse.Namespace) -> None:
    """Examine all by `args.workers` processes; each record is appended to `args.out` as it comes."""
    from benchmarks.examine import blank, verdict

    by_line = {f"{entry.zoo} {entry.name}": entry for entry in entries}
    command = [sys.executable, "-m", "benchmarks.coverage", "--work", "--memory", str(args.memory)]
    command += ["--full-size"] * args.full_size

    def record(line: str, answer: dict | str) -> tuple[dict, str]:
        if isinstance(answer, str):
            answer = blank(by_line[line]) | {"tried": True, "error": answer}
        kind = "failed" if answer["tried"] else "not tried"
        return answer, "" if answer["ok"] else f"{line} {kind}: {verdict(answer)}"

    ask_all(by_line, command, record, workers=args.workers, timeout=args.timeout, out=args.out)


def read(path: Path) -> list[dict]:
    """The latest record of each model."""
    lines = path.read_text().splitlines() if path.exists() else []
    return list({(r["zoo"], r["name"]): r for r in map(json.loads, lines)}.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zoo", default=",".join(ZOOS), help="which zoos, with commas between")
    parser.add_argument("--family", help="only this family")
    parser.add_argument("--model", help="only these models, with commas between")
    parser.add_argument("--sample", action="store_true", help="a fixed sample of all families")
    parser.add_argument("--shuffle", action="store_true", help="in random order, so that a part stands for the whole")
    parser.add_argument("--list", action="store_true", help="list the models instead")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--timeout", type=float, default=300, help="seconds per model")
    parser.add_argument("--memory", type=float, default=8, help="GiB per worker")
    parser.add_argument("--resume", action="store_true", help="skip models that --out has a record of")
    parser.add_argument("--full-size", action="store_true", help="the models' own resolution and depth")
    parser.add_argument("--out", type=Path, default=Path("coverage.jsonl"))
    parser.add_argument("--report", type=Path, help="write the report on --out here, and examine nothing")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        return work(args.full_size, args.memory)
    entries = [e for name in args.zoo.split(",") for e in zoo.entries(name)]
    if args.sample:
        entries = zoo.sample(entries)
    if args.model:
        entries = [e for e in entries if e.name in args.model.split(",")]
    if args.family:
        entries = [e for e in entries if e.family == args.family]
    if args.shuffle:
        random.Random(0).shuffle(entries)
    if args.list:
        print(*(f"{e.zoo}\t{e.family}\t{e.name}" for e in entries), sep="\n")
    elif args.report:
        from benchmarks.coverage_report import report

        args.report.write_text(report(read(args.out), entries))
    else:
        done = {(r["zoo"], r["name"]) for r in read(args.out)} if args.resume else set()
        sweep([e for e in entries if (e.zoo, e.name) not in done], args)


if __name__ == "__main__":
    main()
