"""Whole data sets: `python -m benchmarks.data_sets equal` and the others, each a claim that is checked and measured.

equal     2,000 pictures and 2,000 sentences: the same bytes by one process and by 1, 2 and 4 actors of Ray
cost      the time of a run over that of a bare loop of explainer(x), in one process and by one actor
killed    SIGKILL at ten random moments, of the process and of its actors: the same bytes as if nothing had happened
broken    5 % broken files: 5 % error rows, all others equal
full      a tmpfs of 20 MB that fills (needs root)
memory    the most memory for 1,000 and for 10,000 samples
"""

from __future__ import annotations

import argparse
import csv
import io
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import fxlrp
from examples import sentences, shapes
from fxlrp.data import explain, read
from fxlrp.data.prepare import Asked, prepare
from fxlrp.data.run import _loader, one_shard
from fxlrp.data.settings import locked
from fxlrp.data.sources import take
from fxlrp.data.tables import arrow

ROOT = Path(__file__).resolve().parents[1]
CNN, TEXT = ROOT / "examples" / "model.pt", ROOT / "examples" / "text"
PLACE = Path(tempfile.gettempdir()) / "fxlrp-datasets"


def pictures(count: int) -> Path:
    """A folder with so many pictures of shapes, drawn once."""
    folder = PLACE / f"pictures-{count}"
    if not folder.is_dir():
        draft = folder.with_suffix(".draft")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        for i in range(count):
            Image.fromarray(shapes.picture(i).image).save(draft / f"{i:06d}.png")
        draft.rename(folder)
    return folder


def texts(count: int) -> Path:
    """A .csv with so many sentences."""
    file = PLACE / f"sentences-{count}.csv"
    PLACE.mkdir(exist_ok=True)
    if not file.exists():
        said = io.StringIO()
        rows = csv.writer(said)
        rows.writerow(["text", "label"])
        rows.writerows([s.text, s.label] for s in map(sentences.sentence, range(count)))
        file.write_text(said.getvalue())
    return file


def new(name: str) -> Path:
    """A folder that is not there."""
    shutil.rmtree(PLACE / name, ignore_errors=True)
    return PLACE / name


def content(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}


def jobs(count: int) -> dict[str, tuple[Path, Path]]:
    return {"pictures": (CNN, pictures(count)), "sentences": (TEXT, texts(count))}


def equal(count: int) -> None:
    for name, (model, data) in jobs(count).items():
        alone = new(f"{name}-alone")
        explain(model, data, alone)
        for workers in (1, 2, 4):
            out = new(f"{name}-{workers}")
            explain(model, data, out, workers=workers)
            assert content(out) == content(alone), (name, workers)
            print(f"{name}: {len(read(out))} rows, {workers} actors, {len(content(out))} files equal", flush=True)


def cost(count: int) -> None:
    """Shard by shard, the bare loop and the run in turns, so that both meet the same other load."""
    for name, (model, data) in jobs(count).items():
        out = new(f"{name}-cost")
        load = _loader(model, None, None, None, None, True, False, "cpu")
        torch.set_num_threads(1)
        arrow()  # imported as a run does before it begins
        job, worker = prepare(load, data, Asked(), out, None, False)
        s = job.settings
        bare, ours, reading = [], [], []
        with locked(out, s):
            for shard in range(s.shards):
                of = s.range_of(shard)
                began = time.process_time()
                inputs = [worker._input(take(job.source, i).value, {}) for i in of]
                reading.append(time.process_time() - began)
                began = time.process_time()
                for i in range(0, len(of), s.batch):
                    part = inputs[i : i + s.batch]
                    if s.kind == "texts":
                        worker.explainer(
                            **fxlrp.text.encode.batched(worker.explainer.model, worker.tokenizer, part),
                            **worker.question,
                        )
                    else:
                        worker.explainer(torch.stack([x[""] for x in part]), **worker.question)
                bare.append(time.process_time() - began)
                here = time.process_time()
                one_shard(job, worker, shard)
                ours.append(time.process_time() - here)
        each = 1000 / s.samples
        print(
            f"{name}: {each * sum(bare):.2f} ms of a CPU each in the bare loop, {each * sum(reading):.2f} to read and "
            f"prepare; a run takes {sum(ours) / (sum(bare) + sum(reading)):.3f} of both, "
            f"{sum(ours) / sum(bare):.3f} of the first",
            flush=True,
        )
        walls, cpus = [], []
        for workers in (0, 1, 0, 1):
            shutil.rmtree(out, ignore_errors=True)
            marks = marked(out, partial(explain, model, data, out, workers=workers))
            (began, cpu), (ended, more) = marks[0], marks[-2]  # the last shard is a part
            walls.append(ended - began)
            cpus.append(more - cpu)
        ratios = [min(of[1::2]) / min(of[::2]) for of in (walls, cpus)]
        print(
            f"{name}: after its first shard, one actor takes {ratios[0]:.3f} of the one process by the clock, "
            f"{ratios[1]:.3f} of its CPU time",
            flush=True,
        )


def marked(out: Path, run: Callable[[], Any]) -> list[tuple[float, float]]:
    """When each shard was there, and the CPU time until then of the actor, or of this process where there is none."""
    marks: list[tuple[float, float]] = []
    thread = threading.Thread(target=run)
    thread.start()
    while thread.is_alive():
        if count_of(out) > len(marks):
            actors = [p for p in below(os.getpid()) if is_actor(p)]
            marks.append((time.time(), sum(map(cpu_of, actors or [os.getpid()]))))
        time.sleep(0.02)
    return marks


def cpu_of(pid: int) -> float:
    """The seconds of CPU time that a process has taken."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def killed(count: int, times: int = 10) -> None:
    """Kill the process, or one of its actors, at random moments until the run ends."""
    model, data = CNN, pictures(count)
    alone = new("killed-alone")
    explain(model, data, alone, shard=16)
    rng = random.Random(0)
    for workers in (0, 2):
        out, kills, seen = new(f"killed-{workers}"), [0, 0], 0
        command = [sys.executable, "-m", "fxlrp.cli", "map", str(model), str(data), "-o", str(out), "--shard", "16"]
        while True:
            pipe = subprocess.PIPE
            process = subprocess.Popen([*command, "--workers", str(workers)], stdout=pipe, stderr=pipe)
            while process.poll() is None and sum(kills) < times:
                enough = count_of(out) + rng.randint(0, 6)
                while process.poll() is None and count_of(out) < enough:
                    time.sleep(0.01)
                time.sleep(rng.uniform(0, 2) + 8 * (enough == seen))
                actors = [p for p in below(process.pid) if is_actor(p)]
                is_process = not actors or (sum(kills) % 2 == 0)
                if process.poll() is None:
                    os.kill(process.pid if is_process else rng.choice(actors), signal.SIGKILL)
                    kills[not is_process] += 1
                if is_process:
                    break
            _, said = process.communicate()
            assert count_of(out) >= seen, "shards were lost"
            seen = count_of(out)
            if process.returncode == 0:
                break
            assert process.returncode == -signal.SIGKILL, said
        assert content(out) == content(alone)
        print(
            f"workers {workers}: the process killed {kills[0]} times, an actor {kills[1]}; {len(read(out))} rows, "
            "bytes equal",
            flush=True,
        )


def count_of(out: Path) -> int:
    return len(list(out.glob("part-*.parquet")))


def below(pid: int) -> list[int]:
    """The processes that a process started, and those that they did."""
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found, todo = [], [pid]
    while todo:
        todo += parents.get(now := todo.pop(), [])
        found.append(now)
    return found


def is_actor(pid: int) -> bool:
    try:
        return b"ray::MapWorker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def broken(count: int) -> None:
    whole, out, data = new("broken-whole"), new("broken-part"), new("broken-pictures")
    explain(CNN, pictures(count), whole)
    shutil.copytree(pictures(count), data)
    bad = set(random.Random(0).sample(range(count), count // 20))
    for i in bad:
        file = data / f"{i:06d}.png"
        file.write_bytes(file.read_bytes()[: i % 200])
    explain(CNN, data, out)
    rows, before = read(out), read(whole)
    assert {r["index"] for r in rows if r["error"]} == bad
    for row, other in zip(rows, before, strict=True):
        if row["index"] not in bad:
            assert np.array_equal(row.pop("relevance"), other.pop("relevance"))
            assert row == other
    print(f"{len(bad)} of {count} files broken: as many error rows, {count - len(bad)} others equal to the bit")


def full(count: int) -> None:
    place = new("full")
    place.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m", "none", str(place)], check=True)
    command = [sys.executable, "-m", "fxlrp.cli", "map", str(CNN), str(pictures(count)), "-o", str(place / "out")]
    command += ["--keep", "full", "--dtype", "float32"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        rows = read(place / "out")
        assert done.returncode == 2, done
        assert all(row["relevance"].shape == (3, 64, 64) for row in rows)
        print(f"20 MB: exit {done.returncode}, {len(rows)} whole rows; {done.stderr.strip().splitlines()[-1]}")
    finally:
        subprocess.run(["umount", str(place)], check=True)


def memory(count: int) -> None:
    """In a process each, the most memory that it held."""
    for n in (1000, 10_000):
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.data_sets", "--count", str(n), "tiny"]
        print(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip(), flush=True)


def tiny(count: int) -> None:
    """So many tiny pictures through a tiny network."""
    folder = PLACE / f"tiny-{count}"
    if not folder.is_dir():
        folder.mkdir(parents=True)
        for i in range(count):
            Image.fromarray(np.random.default_rng(i).integers(0, 256, (8, 8, 3), np.uint8)).save(
                folder / f"{i:06d}.png"
            )
    torch.manual_seed(0)
    layers: list[Any] = [torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(144, 3)]
    prepare = fxlrp.inputs.Preprocess((8, 8), crop_pct=1.0)
    maps = explain(torch.nn.Sequential(*layers).eval(), folder, new(f"tiny-out-{count}"), preprocess=prepare)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{len(maps)} samples: {most:.0f} MB at most")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("equal", "cost", "killed", "broken", "full", "memory", "tiny"))
    parser.add_argument("--count", type=int, default=2000)
    asked = parser.parse_args()
    globals()[asked.what](asked.count)
