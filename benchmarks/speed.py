"""What explanations cost: ratios to forward + input-gradient backward of the untouched model, in one process.

    python -m benchmarks.speed [--models timm:resnet50,timm:vit_base_patch16_224] [--batch 1] [--device cuda]
    python -m benchmarks.speed --compiled --out docs/performance.md

Medians of interleaved runs on one thread; every ratio is the median of ratios taken side by side.  Weights are random.
Methods of zennit and captum are measured where these are installed (extra `bench`).
"""

from __future__ import annotations

import argparse
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import date
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import Tensor, nn

import fxlrp
from fxlrp.inputs.models import load_model

MODELS = "timm:resnet50,torchvision:vgg16,timm:vit_base_patch16_224,timm:mobilenetv2_100"
RULES = "gradient-input,attnlrp,epsilon-plus,abslrp,abslrp-hybrid"
BASE = "forward + gradient"
Runs = dict[str, Callable[[], object]]


def forward(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x)


def gradient(model: nn.Module, x: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(model(leaf).max(1).values.sum(), leaf)[0]


def with_zennit(model: nn.Module, x: Tensor) -> Tensor:
    from zennit import attribution, composites, torchvision

    with attribution.Gradient(model, composites.EpsilonPlus(canonizers=[torchvision.ResNetCanonizer()])) as attributor:
        return attributor(x, lambda out: torch.eye(out.shape[1], device=x.device)[out.argmax(1)])[1]


def with_captum(model: nn.Module, x: Tensor) -> Tensor:
    from captum.attr import IntegratedGradients

    return IntegratedGradients(model).attribute(x, target=0, n_steps=50, internal_batch_size=max(8, len(x)))


def runs(model: nn.Module, x: Tensor, rules: list[str], compiled: bool, peers: bool) -> Runs:
    """What is measured, by name."""
    out: Runs = {"forward": partial(forward, model, x), BASE: partial(gradient, model, x)}
    for name in rules:
        explainer = fxlrp.convert(model, x, rules=name)
        out[f"`{name}`, no contrast"] = partial(explainer, x, contrast=None)
        if name not in ("gradient-input", "attnlrp", "epsilon-plus"):
            out[f"`{name}`, contrast others"] = partial(explainer, x, contrast="others")
        if name == "abslrp":
            out["`abslrp`, 10 targets, no contrast"] = partial(explainer, x, target=list(range(10)), contrast=None)
        if compiled:
            fast = fxlrp.convert(model, x, rules=name).compile()
            out[f"`{name}`, no contrast, compiled"] = partial(fast, x, contrast=None)
    if peers:
        with suppress(ImportError):
            import zennit  # noqa: F401

            out["zennit EpsilonPlus"] = partial(with_zennit, model, x)
        with suppress(ImportError):
            import captum  # noqa: F401

            out["captum IntegratedGradients, 50 steps"] = partial(with_captum, model, x)
    return out


def timed(run: Callable[[], object], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def prepared(spec: str, batch: int, device: str) -> tuple[nn.Module, Tensor]:
    torch.set_num_threads(1)
    loaded = load_model(spec, pretrained=False)
    for p in loaded.module.parameters():
        p.requires_grad_(False)  # the baseline computes no gradient of the weights
    return loaded.module.to(device), torch.randn(batch, 3, *loaded.preprocess.size, device=device)


def peak(spec: str, batch: int, rules: list[str], name: str) -> float:
    """MiB of resident memory that one run takes at most beyond what model and graph hold, in a process of its own."""
    model, x = prepared(spec, batch, "cpu")
    run = runs(model, x, rules, False, True)[name]
    forward(model, x[:1])
    with open("/proc/self/statm") as statm:
        held = int(statm.read().split()[1]) * resource.getpagesize()
    with open("/proc/self/clear_refs", "w") as refs:
        refs.write("5")  # forget the peak so far
    run()
    with open("/proc/self/status") as status:
        top = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
    return (top - held) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=MODELS)
    parser.add_argument("--rules", default=RULES)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compiled", action="store_true", help="torch.compile as well, which takes minutes")
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--memory", action="store_true", help="peak memory as well (CPU: each in a process of its own)")
    parser.add_argument("--out", type=Path, help="append the tables to this file")
    args = parser.parse_args()
    machine = torch.cuda.get_device_name() if args.device == "cuda" else f"{platform.machine()} CPU, 1 thread"
    lines = [
        f"\n{date.today()}, torch {torch.__version__}, {machine}, batch {args.batch}, medians of {args.repeats}.\n"
    ]
    rules = args.rules.split(",")
    for spec in args.models.split(","):
        model, x = prepared(spec, args.batch, args.device)
        every = runs(model, x, rules, args.compiled, not args.no_peers)
        times: dict[str, list[float]] = {name: [] for name in every}
        for i in range(args.repeats + 1):
            for name, run in every.items():
                taken = timed(run, args.device)
                if i:  # the first round warms up
                    times[name].append(taken)
        lines += [f"\n### {spec}\n", "| | seconds | ratio |" + (" peak MiB |" if args.memory else "")]
        lines += ["|---|---|---|" + ("---|" if args.memory else "")]
        for name, taken in times.items():
            ratio = statistics.median(t / b for t, b in zip(taken, times[BASE], strict=True))
            row = f"| {name} | {statistics.median(taken):.3f} | {ratio:.2f} |"
            if args.memory:
                row += f" {_memory(name, every[name], spec, args, rules):.0f} |"
            lines.append(row)
            print(row, file=sys.stderr, flush=True)
    text = "\n".join(lines) + "\n"
    if args.out:
        args.out.write_text((args.out.read_text() if args.out.exists() else "") + text)
    print(text)


def _memory(name: str, run: Callable[[], object], spec: str, args: argparse.Namespace, rules: list[str]) -> float:
    if args.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        run()
        return (torch.cuda.max_memory_allocated() - held) / 2**20
    if "compiled" in name:
        return float("nan")
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(peak, (spec, args.batch, rules, name))


if __name__ == "__main__":
    main()
