"""What convert costs, beside torch.export of the same model and call, and where it goes.

    python -m benchmarks.capture [--models timm:resnet50,config:bert]

CPU seconds of one thread, each model in a process of its own after a small one was converted.  "kept" is `convert` by a
graph that an earlier process kept (`cache=`).
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from multiprocessing import get_context
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

import fxlrp
from benchmarks.speed import MODELS, prepared

PARTS = {
    "torch.export": [
        ("torch.export", "export"),
        ("torch.export:ExportedProgram", "run_decompositions"),
        ("torch.export:ExportedProgram", "module"),
    ],
    "the model's output, and the graph's": [("fxlrp.plans:Plans", "_same_output")],
    "where samples are": [("fxlrp.plans", "find_samples"), ("fxlrp.graph.facts", "Samples")],
    "patterns": [("fxlrp.graph.rewrite", "_run_passes")],
    "rules": [("fxlrp.graph.rewrite", "_replace_ops")],
    "capture": [("fxlrp.plans", "capture")],
    "reading the kept graph": [("fxlrp.inputs.graph_store:GraphStore", "load")],
}


@contextmanager
def measured(spent: dict[str, float]) -> Iterator[None]:
    """Adds the CPU seconds that each part takes, without those of parts within it, to `spent`."""
    inner: list[float] = []

    def timed(label: str, function: Any) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            inner.append(0.0)
            began = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                took = time.process_time() - began
                spent[label] += took - inner.pop()
                if inner:
                    inner[-1] += took

        return run

    with ExitStack() as stack:
        for label, places in PARTS.items():
            for place, name in places:
                module, _, kind = place.partition(":")
                owner = getattr(import_module(module), kind) if kind else import_module(module)
                stack.enter_context(patch.object(owner, name, timed(label, getattr(owner, name))))
        yield


def converted(spec: str, cache: str | None = None) -> tuple[float, dict[str, float]]:
    """The CPU seconds of convert, and of its parts."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    model, x = prepared(spec, 1, "cpu")
    fxlrp.convert(nn.Linear(2, 2).eval(), torch.ones(1, 2))
    spent: dict[str, float] = defaultdict(float)
    with measured(spent):
        began = time.process_time()
        fxlrp.convert(model, x, cache=cache)
        return time.process_time() - began, dict(spent)


def exported(spec: str) -> float:
    """The CPU seconds of torch.export alone, with a batch of any size."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    model, x = prepared(spec, 2, "cpu")
    torch.export.export(nn.Linear(2, 2), (torch.ones(2, 2),))
    began = time.process_time()
    torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim.AUTO},), strict=False).module()
    return time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=MODELS)
    args = parser.parse_args()
    print("| model | torch.export alone | convert | of it, torch.export | the rest | kept |\n|---|---|---|---|---|---|")
    with get_context("spawn").Pool(1, maxtasksperchild=1) as pool, tempfile.TemporaryDirectory() as folder:
        for spec in args.models.split(","):
            alone = pool.apply(exported, (spec,))
            whole, spent = pool.apply(converted, (spec,))
            pool.apply(converted, (spec, folder))
            kept, _ = pool.apply(converted, (spec, folder))
            share = spent.pop("torch.export") / whole
            rest = [*spent.items(), ("everything else", whole - sum(spent.values()) - share * whole)]
            parts = ", ".join(f"{label} {s / whole:.0%}" for label, s in sorted(rest, key=lambda r: -r[1]) if s > 0.005)
            print(f"| {spec} | {alone:.1f} | {whole:.1f} | {share:.0%} | {parts} | {kept:.1f} |", flush=True)


if __name__ == "__main__":
    main()
