"""What compiling an explanation costs, as a whole and with repeated blocks compiled once.

    python -m benchmarks.compile_time [--models timm:vit_base_patch16_224] [--rules abslrp-hybrid] [--batch 1]

CPU seconds of the first call after compile(), C++ compiler included, each in a process and with a cache folder of its
own; then of a call of another batch size, and of one after both.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time
import warnings
from multiprocessing import get_context
from statistics import median
from unittest.mock import patch

import torch

import fxlrp
from benchmarks.speed import prepared
from fxlrp.export import regions

MODELS = "timm:vit_base_patch16_224,timm:swin_tiny_patch4_window7_224,config:bert,config:llama,timm:resnet50"


def cpu_seconds() -> float:
    """Of this process and of the compilers that it has started and that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def compiled(spec: str, rules: str, batch: int, whole: bool) -> tuple[list[float], float]:
    """CPU seconds of the first call, of one with a sample more, and of one with two; median seconds of later ones."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder, patch.object(regions, "SHARE", 0.0 if whole else regions.SHARE):
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
        model, x = prepared(spec, batch, "cpu")
        more = [torch.cat([x, *[x[:1]] * n]) for n in (1, 2)]
        explainer = fxlrp.convert(model, x, rules=rules)
        for inputs in (x, *more):
            explainer(inputs)
        explainer.compile()
        took = []
        for inputs in (x, *more):
            began = cpu_seconds()
            explainer(inputs)
            took.append(cpu_seconds() - began)
        laps = []
        for _ in range(5):
            start = time.perf_counter()
            explainer(x)
            laps.append(time.perf_counter() - start)
        return took, median(laps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=MODELS)
    parser.add_argument("--rules", default="abslrp-hybrid")
    parser.add_argument("--batch", type=int, default=1)
    args = parser.parse_args()
    print("| model | | first call | another batch size | a third | a call, seconds |\n|---|---|---|---|---|---|")
    with get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for spec in args.models.split(","):
            for whole in (True, False):
                took, lap = pool.apply(compiled, (spec, args.rules, args.batch, whole))
                how = "whole" if whole else "blocks once"
                print(f"| {spec} | {how} | {' | '.join(f'{t:.0f}' for t in took)} | {lap:.2f} |", flush=True)


if __name__ == "__main__":
    main()
