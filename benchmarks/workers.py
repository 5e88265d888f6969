"""Processes that answer lines with JSON, so that a model that breaks, hangs or eats all memory is one answer only."""

from __future__ import annotations

import json
import os
import queue
import resource
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import IO, Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

SERVES = 40  # models after which a worker is replaced: what libraries cache adds up


def serve(answer: Callable[[str], dict], warm_up: Callable[[], Any], gib: float) -> None:
    """What a worker runs: names in, records out, a line each, until the input ends."""
    limit = int(gib * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    warm_up()
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(line.rstrip("\n"))), file=answers, flush=True)


class Worker:
    """A process that examines models; replaced when it dies, takes too long, or has served long enough."""

    def __init__(self, command: Sequence[str], timeout: float, log: IO[str]) -> None:
        self.command, self.timeout, self.log = command, timeout, log
        self.process: subprocess.Popen[str] | None = None
        self.served = 0

    def ask(self, line: str) -> dict | str:
        """The record of a model, or why the process does not come back with one."""
        if self.process is not None and self.process.poll() is not None:
            self.process = None
        process = self.process or self._start()
        print(line, file=process.stdin, flush=True)
        if not select.select([process.stdout], [], [], self.timeout)[0]:
            reason = f"timeout after {self.timeout:g} s"
        elif answer := process.stdout.readline():
            self.served += 1
            if self.served == SERVES:
                self.stop()
            return json.loads(answer)
        else:
            code = process.wait()
            by = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            reason = "killed, out of memory" if by == "SIGKILL" else f"the process died ({by})"
        self.stop()
        return reason

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


def ask_all(
    lines: Iterable[str],
    command: Sequence[str],
    record: Callable[[str, dict | str], tuple[dict, str]],
    *,
    workers: int,
    timeout: float,
    out: Path,
) -> None:
    """Append the record of each line to `out` as it comes.

    record: makes it of a line and its answer, and a sentence to print beside the bar, empty for none.
    """
    waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
    total = 0
    for line in lines:
        waiting.put(line)
        total += 1
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # by way of `finally`, which ends the workers
    lock = threading.Lock()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    bar = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(elapsed_when_finished=True))
    with out.open("a") as records, out.with_suffix(".log").open("a") as log, bar:
        task = bar.add_task("starting", total=total)
        all_workers = [Worker(command, timeout, log) for _ in range(workers)]

        def take(worker: Worker) -> None:
            while not waiting.empty():
                try:
                    line = waiting.get_nowait()
                except queue.Empty:
                    break
                answer = worker.ask(line)
                with lock:
                    made, said = record(line, answer)
                    print(json.dumps(made), file=records, flush=True)
                    bar.update(task, advance=1, description=line[:40])
                    if said:
                        bar.console.print(said, markup=False)

        threads = [threading.Thread(target=take, args=(worker,), daemon=True) for worker in all_workers]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            for worker in all_workers:
                worker.stop()
