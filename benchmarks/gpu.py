"""Explanations on a GPU: are they right, how fast are they, and what memory do they take?  `make gpu` runs all of it.

    python -m benchmarks.gpu [--out out/gpu] [--seconds 440] [--docs docs/performance-gpu.md]
    python -m benchmarks.gpu --device cpu --small

Every network is prepared in a process of its own, all at once: captured, compiled, warmed up.  Then one after the other
is timed alone.  What is not done by --seconds is stopped and stands in the table as missing.  Rows are written to
rows.jsonl as they are found, the tables to report.md.

- Right: every rulebook on the networks of examples/, against the CPU in float64.
- Fast: ratios to forward + input gradient of the untouched model, medians of interleaved calls; eager, compiled, and
  compiled with CUDA graphs (mode="reduce-overhead").  Random weights.
- Memory: the most that torch allocates during a call beyond what was there, as a ratio to that of the gradient.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import os
import platform
import queue
import statistics
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import date
from functools import partial
from multiprocessing import get_context
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import fxlrp
from benchmarks import half_precision, speed
from fxlrp.inputs.hubs import first_line

TOKENS = {"config:bert": 128, "decoder": 2048}
BATCHES = (1, 32, 256)
COMPILED_BATCHES = (32, 1)
RULES = (("abslrp-hybrid", "default"), ("abslrp", None), ("abslrp", "others"))
DECODER = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "pad_token_id": 0,
}
"""The shape of Llama 3.2 1B, in bfloat16."""
SMALL_DECODER = {
    **DECODER,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 500,
}


class Setting(NamedTuple):
    """What all parts are told."""

    device: str
    small: bool
    until: float  # of time.time(): what is not compiled by then is not timed
    seconds: float  # for one batch's timing


Row = dict[str, Any]
Say = Callable[[Row], None]


# ---- Right -----------------------------------------------------------------------------------------------------------

TOLERANCES = {"float64": 1e-8, "float32": 2e-3, "tf32": 0.2, "bfloat16": 2e-3, "float16": 2e-3, "compiled": 2e-3}
"""Largest difference as a share of the largest relevance.  Half precision is held against the rounded weights."""


def difference(a: Tensor, b: Tensor) -> float:
    """Largest difference of two maps as a share of the largest relevance of the second."""
    a, b = a.double().cpu(), b.double().cpu()
    return float((a - b).abs().max() / b.abs().max())


def tf32(on: bool) -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = on


def check_numbers(name: str, setting: Setting, say: Say, prepared: Event, turn: Event) -> None:
    """Every rulebook on a network of examples/ in every type, against the CPU in float64."""
    prepared.set()  # nothing is timed here
    network = next(n for n in half_precision.shipped(2) if n.name == name)
    target = half_precision.top(network)
    for rules in list(fxlrp.rulebooks())[: 2 if setting.small else None]:
        if (name, rules) == ("text", "gradient"):
            continue  # summed over an embedding that a norm follows it is zero, but for rounding
        for row in differences(network, rules, target, setting):
            say({"part": "numbers", "network": name, "rules": rules, **row})


def check_compiled(name: str, setting: Setting, say: Say, prepared: Event, turn: Event) -> None:
    """Compiled graphs, with CUDA graphs too, against eager ones."""
    prepared.set()
    network = next(n for n in half_precision.shipped(2) if n.name == name)
    for rules in ("abslrp-hybrid",) if setting.small else ("abslrp-hybrid", "abslrp", "gamma", "attnlrp"):
        for mode in (None,) if setting.device == "cpu" else (None, "reduce-overhead"):
            say({"part": "numbers", "network": name, "rules": rules, **compiled(network, rules, mode, setting)})


def differences(network: half_precision.Network, rules: str, target: Tensor, setting: Setting) -> Iterator[Row]:
    def explained(dtype: torch.dtype, device: str, rounded: torch.dtype | None = None) -> Tensor:
        model = copy.deepcopy(network.model)
        given = network
        if rounded:
            model, given = model.to(rounded), given._replace(args=half_precision.cast(given.args, rounded))
        given = given._replace(args=on(given.args, device), kwargs=on(given.kwargs, device))
        return half_precision.explained(given, model.to(device, dtype), rules, dtype, target.to(device))

    exact = explained(torch.float64, "cpu")
    for name in ("float64", "float32", "tf32", "bfloat16", "float16"):
        if name == "tf32" and setting.device == "cpu":
            continue
        dtype = getattr(torch, name, torch.float32)
        half = dtype in half_precision.DTYPES
        reference = explained(torch.float64, "cpu", rounded=dtype) if half else exact
        tf32(name == "tf32")
        try:
            found = explained(dtype, setting.device)
        finally:
            tf32(False)
        row = {"how": name, "difference": difference(found, reference), "tolerance": TOLERANCES[name]}
        yield {**row, "correlation": min(half_precision.correlations(exact, found.double().cpu()))}


def compiled(network: half_precision.Network, rules: str, mode: str | None, setting: Setting) -> Row:
    """Two calls by one compiled graph: the first's map must be right, and still be after the second."""
    tf32(False)  # cuDNN's default is on, and rounds differently in either
    model, (x,) = copy.deepcopy(network.model).to(setting.device), on(network.args, setting.device)
    eager, fast = fxlrp.convert(model, rules=rules), fxlrp.convert(model, rules=rules).compile(mode=mode)
    for _ in range(3):  # CUDA graphs are recorded at the second call
        fast(x)
    calls = [fast(x).relevance, fast(x.flip(-1)).relevance]
    found = max(map(difference, calls, (eager(x).relevance, eager(x.flip(-1)).relevance)))
    return {
        "how": f"compiled, {mode}" if mode else "compiled",
        "difference": found,
        "tolerance": TOLERANCES["compiled"],
    }


def on(thing: Any, device: str) -> Any:
    return torch.utils._pytree.tree_map_only(Tensor, lambda t: t.to(device), thing)


# ---- Fast ------------------------------------------------------------------------------------------------------------


class Case(NamedTuple):
    batch: int
    method: str
    how: str
    run: Callable[[], object]


def network_and_inputs(spec: str, batch: int, setting: Setting) -> tuple[nn.Module, Callable[[int], Tensor]]:
    """A model of random weights on the device, and what makes a batch for it."""
    if spec == "decoder":
        speed.CONFIGS["llama"] = SMALL_DECODER if setting.small else DECODER
        with torch.device(setting.device):
            kept = torch.get_default_dtype()
            torch.set_default_dtype(torch.bfloat16)
            try:
                model: nn.Module = speed.Text("llama").eval()
            finally:
                torch.set_default_dtype(kept)
        model.requires_grad_(False)
    else:
        model, x = speed.prepared(spec, batch, setting.device)
    if spec in TOKENS:
        length = 32 if setting.small else TOKENS[spec]
        return model, lambda n: torch.randint(1, 400, (n, length), device=setting.device)
    return model, lambda n: torch.randn(n, *x.shape[1:], device=setting.device)


def measure(spec: str, setting: Setting, say: Say, prepared: Event, turn: Event) -> None:
    """Prepare all that is timed of a network, wait for the turn, time it."""
    torch.manual_seed(0)
    about: Row = {"part": "speed", "network": spec}
    model, inputs = network_and_inputs(spec, 1, setting)
    start = time.perf_counter()
    eager = {rules: fxlrp.convert(model, inputs(2), rules=rules) for rules in dict(RULES)}
    say(
        {
            **about,
            "batch": None,
            "method": "convert",
            "how": "eager",
            "seconds": (time.perf_counter() - start) / len(eager),
        }
    )
    batches = (1, 2) if setting.small else (1,) if spec == "decoder" else BATCHES
    cases: list[Case] = []
    given = {n: inputs(n) for n in batches}
    for n, x in given.items():
        cases += [Case(n, "forward", "eager", partial(speed.forward, model, x))]
        cases += [Case(n, speed.BASE, "eager", partial(speed.gradient, model, x))]
        for rules, contrast in RULES:
            cases.append(Case(n, named(rules, contrast), "eager", partial(eager[rules], x, contrast=contrast)))
    cases += [Case(n, name, "eager", run) for n in batches[:2] for name, run in speed.of_peers(model, given[n]).items()]
    cases += compiled_cases(model, given, about, say, setting)
    prepared.set()
    turn.wait()
    for n in batches:
        clock([c for c in cases if c.batch == n], about, say, setting)


def named(rules: str, contrast: str | None) -> str:
    return f"`{rules}`" + {"default": "", None: ", no contrast"}.get(contrast, f", contrast {contrast}")


def compiled_cases(
    model: nn.Module, given: dict[int, Tensor], about: Row, say: Say, setting: Setting
) -> Iterator[Case]:
    """The compiled cases for which there is time, warmed up; each says what compiling took."""
    sizes = [n for n in COMPILED_BATCHES if n in given] or list(given)[-1:]
    plans = [(r, c, n) for r, c in (("abslrp-hybrid", "default"), ("abslrp", None), (speed.BASE, None)) for n in sizes]
    taken = 0.0
    for rules, contrast, n in plans:
        if time.time() + taken > setting.until:  # the next takes about as long as the last
            return
        mode = "reduce-overhead" if n == 1 and setting.device == "cuda" else None
        how = "compiled, CUDA graphs" if mode else "compiled"
        method = rules if rules == speed.BASE else named(rules, contrast)
        start = time.perf_counter()
        try:
            if rules == speed.BASE:
                fast = copy.copy(model)
                fast.forward = torch.compile(model.forward, mode=mode)
                run: Callable[[], object] = partial(speed.gradient, fast, given[n])
            else:
                run = partial(
                    fxlrp.convert(model, given[n], rules=rules).compile(mode=mode), given[n], contrast=contrast
                )
            for _ in range(3):
                run()
        except Exception as error:
            say({**about, "batch": n, "method": method, "how": how, "error": first_line(error)})
            traceback.print_exc()
            continue
        taken = time.perf_counter() - start
        say({**about, "batch": n, "method": f"{method}: compiling", "how": how, "seconds": taken})
        yield Case(n, method, how, run)


def clock(cases: list[Case], about: Row, say: Say, setting: Setting) -> None:
    """Time the cases of one batch, in turn, until the time for it is up; at least three rounds."""
    alive = []
    for case in cases:
        try:
            speed.timed(case.run, setting.device)
            alive.append((case, speed.allocated(case.run) if setting.device == "cuda" else None, []))
        except Exception as error:
            free()
            if case.method == speed.BASE:
                raise
            say({**about, **case._replace(run=None)._asdict(), "error": first_line(error)})
    end = time.perf_counter() + setting.seconds
    for i in range(50):
        if i >= 3 and time.perf_counter() > end:
            break
        for case, _, times in alive:
            times.append(speed.timed(case.run, setting.device))
    _, bytes_of_base, times_of_base = next(a for a in alive if (a[0].method, a[0].how) == (speed.BASE, "eager"))
    for case, taken, times in alive:
        row = {
            "seconds": statistics.median(times),
            "ratio": statistics.median(t / b for t, b in zip(times, times_of_base, strict=True)),
            "rounds": len(times),
            "MiB": taken and taken / 2**20,
            "memory ratio": taken / bytes_of_base if taken and bytes_of_base else None,
        }
        say({**about, "batch": case.batch, "method": case.method, "how": case.how, **row})
    free()


def free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


# ---- All of it -------------------------------------------------------------------------------------------------------

PARTS: dict[str, Callable[..., None]] = {
    **{f"numbers:{name}": partial(check_numbers, name) for name in ("cnn", "vit", "text")},
    **{f"compiled:{name}": partial(check_compiled, name) for name in ("cnn", "vit")},
    **{
        spec: partial(measure, spec)
        for spec in (
            "timm:resnet50",
            "timm:vit_base_patch16_224",
            "config:bert",
            "torchvision:vgg16",
            "torchvision:swin_t",
            "torchvision:convnext_tiny",
            "decoder",
        )
    },
}
SMALL = ("numbers:cnn", "compiled:cnn", "timm:resnet10t", "decoder")


def part(name: str, setting: Setting, rows: Any, prepared: Event, turn: Event) -> None:
    """One part in a process of its own, whose errors are a row."""
    torch.set_num_threads(1)
    torch._inductor.config.compile_threads = 2
    say = rows.put
    work = PARTS.get(name) or partial(measure, name)
    try:
        work(setting, say, prepared, turn)
    except Exception as error:
        traceback.print_exc()
        say({"part": "error", "network": name, "error": first_line(error)})
    finally:
        say({"part": "done", "network": name})
        prepared.set()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="small networks and batches: does the script itself work?")
    parser.add_argument("--only", nargs="+", help="parts: networks, numbers:NETWORK, compiled:NETWORK")
    parser.add_argument("--seconds", type=float, default=440, help="for all of it")
    parser.add_argument("--out", type=Path, default=Path("out/gpu"))
    parser.add_argument("--docs", type=Path, help="write the tables into this document too, below its marker")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("There is no GPU that torch can use; --device cpu --small tries the script without one.")
    args.out.mkdir(parents=True, exist_ok=True)
    start = time.time()
    context = get_context("spawn")
    setting = Setting(args.device, args.small, start + args.seconds * 0.6, 1.0 if args.small else 2.5)
    rows, names = context.Queue(), args.only or (SMALL if args.small else list(PARTS))
    events = {name: (context.Event(), context.Event()) for name in names}
    processes = {n: context.Process(target=part, args=(n, setting, rows, *events[n])) for n in names}
    for process in processes.values():
        process.start()
    found: list[Row] = []
    timing: str | None = None
    waiting = [
        n for n in names if not n.startswith(("numbers:", "compiled:"))
    ]  # for their turn; nothing is timed there
    with (args.out / "rows.jsonl").open("w") as file:
        while time.time() < start + args.seconds and any(p.is_alive() for p in processes.values()):
            with suppress(queue.Empty):
                row = rows.get(timeout=0.2)
                row["at"] = round(time.time() - start, 1)
                found.append(row)
                file.write(json.dumps(row) + "\n")
                file.flush()
                if row["part"] == "done":
                    waiting = [n for n in waiting if n != row["network"]]
                    timing = None if timing == row["network"] else timing
                continue
            if timing and not processes[timing].is_alive():
                waiting, timing = [n for n in waiting if n != timing], None
            ready = [n for n in waiting if events[n][0].is_set()]
            if timing is None and ready and (len(ready) == len(waiting) or time.time() > setting.until):
                timing = ready[0]
                events[timing][1].set()
    for process in processes.values():
        process.kill()
    done = {r["network"] for r in found if r["part"] == "done"}
    found += [{"part": "error", "network": n, "error": "stopped by the clock"} for n in names if n not in done]
    text = report(found, args, time.time() - start)
    (args.out / "report.md").write_text(text)
    if args.docs:
        kept = args.docs.read_text().partition(MARKER)[0] if args.docs.exists() else ""
        args.docs.write_text(kept + MARKER + text)
    print(text)


MARKER = "<!-- written by python -m benchmarks.gpu -->\n"


def report(rows: list[Row], args: argparse.Namespace, seconds: float) -> str:
    machine = torch.cuda.get_device_name() if args.device == "cuda" else f"{platform.machine()} CPU, 1 thread"
    lines = [f"\n{date.today()}, torch {torch.__version__}, {machine}, {os.cpu_count()} CPU cores, {seconds:.0f} s.\n"]
    numbers = [r for r in rows if r["part"] == "numbers"]
    wrong = [r for r in numbers if not r["difference"] <= r["tolerance"]]
    lines += [f"## Right\n\n{len(numbers) - len(wrong)} of {len(numbers)} maps within their tolerance.\n"]
    lines += ["| how | maps | tolerance | largest difference | least correlation |", "|---|---|---|---|---|"]
    for how in dict.fromkeys(r["how"] for r in numbers):
        own = [r for r in numbers if r["how"] == how]
        least = min((r["correlation"] for r in own if "correlation" in r), default=None)
        worst = max(own, key=lambda r: r["difference"])
        lines.append(
            f"| {how} | {len(own)} | {own[0]['tolerance']:.0e} | {worst['difference']:.1e} ({worst['network']}, "
            f"`{worst['rules']}`) | {'–' if least is None else f'{least:.4f}'} |"
        )
    if wrong:
        lines += ["\nOutside:\n"]
        lines += [f"- {r['network']}, `{r['rules']}`, {r['how']}: {r['difference']:.2e}" for r in wrong]
    lines += ["\n## Fast\n"]
    timed = [r for r in rows if r["part"] == "speed"]
    for network in dict.fromkeys(r["network"] for r in timed):
        lines += [
            f"\n### {network}\n",
            "| batch | | | ms | ratio | a second | MiB | ratio |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for r in (r for r in timed if r["network"] == network):
            head = f"| {r['batch'] or ''} | {r['method']} | {r['how']} |"
            if "error" in r:
                lines.append(f"{head} {r['error']} | | | | |")
            elif "ratio" not in r:
                lines.append(f"{head} {r['seconds'] * 1000:.0f} | | | | |")
            else:
                mib = f"{r['MiB']:.0f} | {r['memory ratio']:.2f}" if r["memory ratio"] else "–| –"
                lines.append(
                    f"{head} {r['seconds'] * 1000:.2f} | {r['ratio']:.2f} | {r['batch'] / r['seconds']:.0f} | {mib} |"
                )
    lines += [f"- {r['network']}: {r['error']}" for r in rows if r["part"] == "error"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
