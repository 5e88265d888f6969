"""What explanations cost: ratios to forward + input-gradient backward of the untouched model, in one process.

    python -m benchmarks.speed [--models timm:resnet50,config:bert] [--batch 1] [--device cuda] [--memory]
    python -m benchmarks.speed --compiled abslrp,attnlrp --out docs/performance.md
    python -m benchmarks.speed --growth docs/images/growth.png

Medians of interleaved runs on one thread; every ratio is the median of ratios taken side by side.  Weights are random.
`config:TYPE` is a text model of that type in transformers, 128 tokens long, whose gradient is that of its embeddings.
Methods of zennit and captum are measured where these are installed (extra `bench`), those of lxt, which patches
transformers 4.52, where that one is.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import importlib
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from datetime import date
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fxlrp
from fxlrp.inputs.models import load_model

MODELS = (
    "timm:resnet50,torchvision:vgg16,timm:vit_base_patch16_224,torchvision:swin_t,torchvision:convnext_tiny,"
    "config:bert,config:llama"
)
CONFIGS: dict[str, dict[str, Any]] = {
    "bert": {},
    "llama": {
        "hidden_size": 512,
        "intermediate_size": 1536,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "vocab_size": 8000,
        "pad_token_id": 0,
    },
}
TOKENS = 128
RULES = "gradient-input,attnlrp,epsilon-plus,abslrp,abslrp-hybrid"
BASE = "forward + gradient"
Runs = dict[str, Callable[[], object]]


def forward(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x)


def gradient(model: nn.Module, x: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_() if x.is_floating_point() else model.embed(x).detach().requires_grad_()
    return torch.autograd.grad(model(leaf).max(1).values.sum(), leaf)[0]


class Text(nn.Module):
    """A classifier of texts as a function of ids, or of the embeddings in their place."""

    def __init__(self, kind: str, make: Callable[..., nn.Module] | None = None) -> None:
        super().__init__()
        import transformers

        self.kind = kind
        config = transformers.AutoConfig.for_model(kind, **CONFIGS[kind])
        self.model = (make or transformers.AutoModelForSequenceClassification.from_config)(config).eval()

    def embed(self, ids: Tensor) -> Tensor:
        return self.model.get_input_embeddings()(ids)

    def forward(self, x: Tensor) -> Tensor:
        name = "inputs_embeds" if x.is_floating_point() else "input_ids"
        return self.model(**{name: x, "attention_mask": x.new_ones(x.shape[:2], dtype=torch.long)}).logits


def with_zennit(model: nn.Module, x: Tensor) -> Tensor:
    from zennit import attribution, composites, torchvision

    with attribution.Gradient(model, composites.EpsilonPlus(canonizers=[torchvision.ResNetCanonizer()])) as attributor:
        return attributor(x, lambda out: torch.eye(out.shape[1], device=x.device)[out.argmax(1)])[1]


def with_captum(model: nn.Module, x: Tensor) -> Tensor:
    from captum.attr import IntegratedGradients

    return IntegratedGradients(model).attribute(x, target=0, n_steps=50, internal_batch_size=max(8, len(x)))


def with_lxt(model: Text, ids: Tensor) -> Callable[[], Tensor]:
    """AttnLRP of a text model by lxt, whose patches of classes and modules are there while it runs alone."""
    ours = importlib.import_module(f"transformers.models.{model.kind}.modeling_{model.kind}")
    patches = importlib.import_module(f"lxt.efficient.models.{model.kind}").attnLRP

    def taken() -> dict[Any, dict[str, Any]]:
        return {target: vars(target).copy() for target in patches}

    def put(state: Mapping[Any, Mapping[str, Any]]) -> None:
        for target, attributes in state.items():
            for name in ("forward",) if isinstance(target, type) else attributes.keys() - {"__builtins__"}:
                setattr(target, name, attributes[name])

    before = taken()
    for target, patch in patches.items():
        patch(target)
    there = taken()
    patched = Text(model.kind, getattr(ours, type(model.model).__name__)).eval()
    patched.load_state_dict(model.state_dict())
    patched.requires_grad_(False)
    put(before)

    def run() -> Tensor:
        put(there)
        try:
            return gradient(patched, ids)
        finally:
            put(before)

    return run


def of_peers(model: nn.Module, x: Tensor) -> Runs:
    """What zennit and captum do with pictures, where these are installed."""
    out: Runs = {}
    if x.is_floating_point():
        with suppress(ImportError):
            import zennit  # noqa: F401

            out["zennit EpsilonPlus"] = partial(with_zennit, model, x)
        with suppress(ImportError):
            import captum  # noqa: F401

            out["captum IntegratedGradients, 50 steps"] = partial(with_captum, model, x)
    return out


def runs(model: nn.Module, x: Tensor, rules: list[str], compiled: Collection[str], peers: bool) -> Runs:
    """What is measured, by name; `compiled` are the rulebooks that are compiled as well."""
    out: Runs = {"forward": partial(forward, model, x), BASE: partial(gradient, model, x)}
    for name in rules:
        explainer = fxlrp.convert(model, x, rules=name)
        out[f"`{name}`, no contrast"] = partial(explainer, x, contrast=None)
        fast = fxlrp.convert(model, x, rules=name).compile() if name in compiled else None
        if fast is not None:
            out[f"`{name}`, no contrast, compiled"] = partial(fast, x, contrast=None)
        if name in ("abslrp", "abslrp-hybrid"):
            out[f"`{name}`, contrast others"] = partial(explainer, x, contrast="others")
            if fast is not None:
                out[f"`{name}`, contrast others, compiled"] = partial(fast, x, contrast="others")
        if name == "abslrp" and explainer(x, contrast=None).logits.shape[1] >= 10:
            out["`abslrp`, 10 targets, no contrast"] = partial(explainer, x, target=list(range(10)), contrast=None)
            small = fxlrp.convert(model, x, rules=name, checkpoint=True)
            out["`abslrp`, no contrast, checkpoint"] = partial(small, x, contrast=None)
    out |= of_peers(model, x) if peers else {}
    if peers and isinstance(model, Text):
        with suppress(ImportError):
            out["lxt AttnLRP"] = with_lxt(model, x)
    return out


def timed(run: Callable[[], object], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def allocated(run: Callable[[], object]) -> int:
    """Bytes that torch allocates on the GPU during a call at most beyond what is there."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated()
    run()
    return torch.cuda.max_memory_allocated() - held


def prepared(spec: str, batch: int, device: str) -> tuple[nn.Module, Tensor]:
    torch.set_num_threads(1)
    kind, _, name = spec.partition(":")
    if kind == "config":
        module: nn.Module = Text(name)
        x = torch.randint(1, 1000, (batch, TOKENS), device=device)
    else:
        loaded = load_model(spec, pretrained=False)
        module, x = loaded.module, torch.randn(batch, 3, *loaded.preprocess.size, device=device)
    for p in module.parameters():
        p.requires_grad_(False)  # the baseline computes no gradient of the weights
    return module.to(device).eval(), x


def peak(spec: str, batch: int, rules: list[str], name: str) -> float:
    """MiB of resident memory that one run takes at most beyond what model and graph hold, in a process of its own."""
    model, x = prepared(spec, batch, "cpu")
    run = runs(model, x, rules, (), True)[name]
    run()
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what was freed is not held
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
    parser.add_argument("--compiled", default="", help="rulebooks to torch.compile as well, which takes minutes each")
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--memory", action="store_true", help="peak memory as well (CPU: each in a process of its own)")
    parser.add_argument("--out", type=Path, help="append the tables to this file")
    parser.add_argument("--growth", type=Path, help="plot how the cost grows with batch, depth and length instead")
    args = parser.parse_args()
    if args.growth:
        return plot_growth(args.growth, args.device, args.repeats)
    machine = torch.cuda.get_device_name() if args.device == "cuda" else f"{platform.machine()} CPU, 1 thread"
    lines = [
        f"\n{date.today()}, torch {torch.__version__}, {machine}, batch {args.batch}, medians of {args.repeats}.\n"
    ]
    rules = args.rules.split(",")
    for spec in args.models.split(","):
        model, x = prepared(spec, args.batch, args.device)
        every = runs(model, x, rules, args.compiled.split(","), not args.no_peers)
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
                row += f" {_memory(name, every[name], spec, args, rules)} |"
            lines.append(row)
            print(row, file=sys.stderr, flush=True)
    text = "\n".join(lines) + "\n"
    if args.out:
        args.out.write_text((args.out.read_text() if args.out.exists() else "") + text)
    print(text)


def plot_growth(path: Path, device: str, repeats: int) -> None:
    """Seconds of `abslrp` and of a gradient by the size of the batch, the depth and the length of a text."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    axes: dict[str, list[int]] = {"batch": [1, 2, 4, 8, 16], "layers": [2, 4, 8, 16], "tokens": [64, 128, 256, 512]}
    figure, plots = plt.subplots(1, 3, figsize=(12, 3.2), layout="constrained")
    for plot, (axis, sizes) in zip(plots, axes.items(), strict=True):
        seconds: dict[str, list[float]] = {"forward + gradient": [], "abslrp": [], "abslrp, no contrast": []}
        for size in sizes:
            shape = {"batch": 1, "layers": 4, "tokens": 128, axis: size}
            CONFIGS["llama"]["num_hidden_layers"] = shape["layers"]
            model, _ = prepared("config:llama", 1, device)
            x = torch.randint(1, 1000, (shape["batch"], shape["tokens"]), device=device)
            explainer = fxlrp.convert(model, x, rules="abslrp")
            cases = (
                partial(gradient, model, x),
                partial(explainer, x, contrast="others"),
                partial(explainer, x, contrast=None),
            )
            for name, run in zip(seconds, cases, strict=True):
                run()
                seconds[name].append(statistics.median(timed(run, device) for _ in range(repeats)))
            print(
                axis, size, {name: round(taken[-1], 4) for name, taken in seconds.items()}, file=sys.stderr, flush=True
            )
        for name, taken in seconds.items():
            plot.plot(sizes, taken, marker="o", label=name)
        plot.set(xlabel=axis, xlim=(0, None), ylim=(0, None))
        plot.grid(alpha=0.3)
    plots[0].set_ylabel("seconds")
    plots[0].legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _memory(name: str, run: Callable[[], object], spec: str, args: argparse.Namespace, rules: list[str]) -> str:
    if args.device == "cuda":
        return f"{allocated(run) / 2**20:.0f}"
    if "compiled" in name:  # in a process of its own it would be compiled again
        return "–"
    with get_context("spawn").Pool(1) as pool:
        return f"{pool.apply(peak, (spec, args.batch, rules, name)):.0f}"


if __name__ == "__main__":
    main()
