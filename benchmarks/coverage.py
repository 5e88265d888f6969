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
import os
import queue
import random
import resource
import select
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import IO

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from benchmarks import zoo
from benchmarks.zoo import ZOOS, Entry

SERVES = 40  # models after which a worker is replaced: what libraries cache adds up


def work(full_size: bool, gib: float) -> None:
    """Names in, records out, a line each, until the input ends."""
    import torch

    import fxlrp
    from benchmarks.examine import examine

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    limit = int(gib * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    for name in ZOOS:  # imports and first calls count for no model
        zoo.entries(name)
    fxlrp.convert(torch.nn.Linear(1, 1).eval(), torch.ones(1, 1))
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(examine(Entry(*line.split()), full_size=full_size)), file=answers, flush=True)
        gc.collect()


class Worker:
    """A process that examines models; replaced when it dies, takes too long, or has served long enough."""

    def __init__(self, args: argparse.Namespace, log: IO[str]) -> None:
        self.timeout, self.log = args.timeout, log
        self.command = [sys.executable, "-m", "benchmarks.coverage", "--work", "--memory", str(args.memory)]
        self.command += ["--full-size"] * args.full_size
        self.process: subprocess.Popen[str] | None = None
        self.served = 0

    def ask(self, entry: Entry) -> dict:
        """The record of a model; a failure if the process does not come back with one."""
        from benchmarks.examine import blank

        if self.process is not None and self.process.poll() is not None:
            self.process = None
        process = self.process or self._start()
        print(entry.zoo, entry.name, file=process.stdin, flush=True)
        if not select.select([process.stdout], [], [], self.timeout)[0]:
            reason = f"timeout after {self.timeout:g} s"
        elif line := process.stdout.readline():
            self.served += 1
            if self.served == SERVES:
                self.stop()
            return json.loads(line)
        else:
            code = process.wait()
            by = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            reason = "killed, out of memory" if by == "SIGKILL" else f"the process died ({by})"
        self.stop()
        return blank(entry) | {"tried": True, "error": reason}

    def _start(self) -> subprocess.Popen[str]:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.log}
        self.process, self.served = subprocess.Popen(self.command, text=True, **pipes), 0
        if not self.process.stdout.readline():
            raise RuntimeError(f"a worker does not start, see {self.log.name}")
        return self.process

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


def sweep(entries: list[Entry], args: argparse.Namespace) -> None:
    """Examine all by `args.workers` processes; each record is appended to `args.out` as it comes."""
    from benchmarks.examine import verdict

    waiting: queue.SimpleQueue[Entry] = queue.SimpleQueue()
    for entry in entries:
        waiting.put(entry)
    lock = threading.Lock()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    bar = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(elapsed_when_finished=True))
    with args.out.open("a") as out, args.out.with_suffix(".log").open("a") as log, bar:
        task = bar.add_task("starting", total=len(entries))
        workers = [Worker(args, log) for _ in range(args.workers)]

        def serve(worker: Worker) -> None:
            while not waiting.empty():
                try:
                    entry = waiting.get_nowait()
                except queue.Empty:
                    break
                record = worker.ask(entry)
                with lock:
                    print(json.dumps(record), file=out, flush=True)
                    bar.update(task, advance=1, description=f"{entry.zoo} {entry.name}"[:40])
                    if not record["ok"]:
                        kind = "failed" if record["tried"] else "not tried"
                        bar.console.print(f"{entry.zoo} {entry.name} {kind}: {verdict(record)}", markup=False)

        threads = [threading.Thread(target=serve, args=(worker,), daemon=True) for worker in workers]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            for worker in workers:
                worker.stop()


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
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # by way of `finally`, which ends the workers
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
