"""What an explanation costs: ratio to forward + input-gradient backward of the untouched model, in one process.

    python benchmarks/explain_cost.py [--models timm:resnet50,timm:vit_base_patch16_224] [--batch 1] [--repeats 7]

Prints medians of interleaved runs on one thread, and the seconds `convert` took.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from datetime import date

import torch

import fxlrp
from fxlrp.inputs.models import load_model


def once(f: Callable[[], object]) -> float:
    start = time.perf_counter()
    f()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="timm:resnet50,timm:vit_base_patch16_224,timm:mobilenetv2_100")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{date.today()}, torch {torch.__version__}, {platform.machine()} CPU, 1 thread, batch {args.batch}")
    for spec in args.models.split(","):
        loaded = load_model(spec, pretrained=False)
        model, x = loaded.module, torch.randn(args.batch, 3, *loaded.preprocess.size)

        def forward(model: torch.nn.Module = model, x: torch.Tensor = x) -> None:
            with torch.no_grad():
                model(x)

        def gradient(model: torch.nn.Module = model, x: torch.Tensor = x) -> None:
            leaf = x.clone().requires_grad_()
            torch.autograd.grad(model(leaf).max(), leaf)

        for p in model.parameters():
            p.requires_grad_(False)  # the baseline computes no gradient of the weights
        start = time.perf_counter()
        explainer = fxlrp.convert(model, x)
        seconds = time.perf_counter() - start
        runs: dict[str, Callable[[], object]] = {
            "forward": forward,
            "forward + gradient": gradient,
            "contrast=None": lambda e=explainer, x=x: e(x, contrast=None),
            "contrast=others": lambda e=explainer, x=x: e(x),
        }
        times: dict[str, list[float]] = {name: [] for name in runs}
        for i in range(args.repeats + 1):
            for name, run in runs.items():
                taken = once(run)
                if i:  # the first round warms up
                    times[name].append(taken)
        base = times["forward + gradient"]
        cells = []
        for name, taken in times.items():
            ratio = statistics.median(t / b for t, b in zip(taken, base, strict=True))
            cells.append(f"{name} {statistics.median(taken):.3f} s = {ratio:.2f}×")
        print(f"{spec}: convert {seconds:.1f} s; " + "; ".join(cells), flush=True)


if __name__ == "__main__":
    main()
