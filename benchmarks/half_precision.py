"""Does half precision keep the map?  Every rulebook on models stored in bfloat16 and float16, against float32.

    python -m benchmarks.half_precision [--kit PATH] [--samples 4] [--only NETWORK …] [--rules RULEBOOK …]

A row for each network, rulebook and type: whether all relevance is finite, the share of entries that are zero in half
precision but not in float32, and the correlation with the map of the model in float32, the mean and the least over the
samples.  The class asked about is the float32 model's top one in both.  Where the least is below 0.99, "same weights"
is that of the float32 model with weights and inputs rounded to the type: what no arithmetic could better.
PATH holds models/kit_models.py, images/photos, images/cifar10_test500.npz and text/sst2_dev.tsv.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Iterable, Iterator
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

import fxlrp

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import sentences

from benchmarks.localization import load, two_objects

DTYPES = (torch.bfloat16, torch.float16)


class Network(NamedTuple):
    """A model in float32, its keyword or positional arguments, and how it is asked: by class, at the last position of
    a sequence where `position` is -1."""

    name: str
    model: nn.Module
    args: tuple[Tensor, ...]
    kwargs: dict[str, Tensor]
    position: int | None = None


def shipped(count: int) -> Iterator[Network]:
    """The networks of examples/."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    x = two_objects(count).x
    for name in ("cnn", "vit"):
        yield Network(name, load(name), (x,), {})
    folder = Path(sentences.__file__).with_name("text")
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    texts = (sentences.sentence(seed).text for seed in range(100))
    yield Network("text", model, (), _tokens(AutoTokenizer.from_pretrained(folder), texts, count))


def kit(path: Path, count: int) -> Iterator[Network]:
    """The networks of the kit, on its photographs, its CIFAR-10 pictures and its sentences."""
    sys.path.insert(0, str(path / "models"))
    import kit_models

    photos = sorted((path / "images" / "photos").glob("*.jpg"))[:count]
    pixels = [np.array(Image.open(p).convert("RGB").resize((224, 224), Image.Resampling.BICUBIC)) for p in photos]
    with np.load(path / "images" / "cifar10_test500.npz") as cifar:
        small = cifar["x"][:count]
    for name, rgb in (("mobilenetv2", np.stack(pixels)), ("resnet20_cifar10", small), ("vit_cifar10", small)):
        model, preprocess, _ = kit_models.load(name)
        yield Network(name, model, (preprocess(torch.from_numpy(rgb).permute(0, 3, 1, 2) / 255),), {})
    model, tokenizer = kit_models.load_minilm_sst2()
    lines = (path / "text" / "sst2_dev.tsv").read_text().splitlines()
    yield Network("minilm", model, (), _tokens(tokenizer, (line.rpartition("\t")[0] for line in lines), count))
    ids = torch.randint(3, 512, (count, 12), generator=torch.Generator().manual_seed(0))
    yield Network("stories260k", kit_models.load_stories260k(use_cache=False), (), {"input_ids": ids}, -1)


def _tokens(tokenizer: Any, texts: Iterable[str], count: int) -> dict[str, Tensor]:
    """The first texts that are long enough, cut to one length, so that none is padded."""
    long = [t for t in texts if len(t.split()) > 12][:count]
    return dict(tokenizer(long, truncation=True, max_length=12, return_tensors="pt"))


def cast(thing: Any, dtype: torch.dtype) -> Any:
    """The float tensors among `thing` in another type."""
    return torch.utils._pytree.tree_map_only(Tensor, lambda t: t.to(dtype) if t.is_floating_point() else t, thing)


def explained(network: Network, model: nn.Module, rules: str, dtype: torch.dtype, target: Tensor) -> Tensor:
    args, kwargs = cast((network.args, network.kwargs), dtype)
    explainer = fxlrp.convert(model, rules=rules)
    found = explainer(*args, target=target, position=network.position, **kwargs).relevance
    several = found if isinstance(found, tuple) else (found,)  # ids, and the kinds of tokens
    return torch.cat([r.flatten(1) for r in several], 1).double()


def top(network: Network) -> Tensor:
    """The model's top class, or token to come, of each sample."""
    with torch.no_grad():
        out = network.model(*network.args, **network.kwargs)
    logits = getattr(out, "logits", out)
    return (logits if network.position is None else logits[:, network.position]).argmax(1)


def correlations(a: Tensor, b: Tensor) -> list[float]:
    """Of each sample's two maps; 0 where one is constant or not finite."""
    pairs = (torch.corrcoef(torch.stack(pair)) for pair in zip(a, b, strict=True))
    return [float(c[0, 1].nan_to_num(0)) for c in pairs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kit", type=Path)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--only", nargs="+")
    parser.add_argument("--rules", nargs="+", default=list(fxlrp.rulebooks()))
    args = parser.parse_args()
    print(f"{date.today()}, torch {torch.__version__}, {args.samples} samples a network\n")
    print(
        "| network | rulebook | type | finite | lost | mean | least | same weights |\n|---|---|---|---|---|---|---|---|"
    )
    start = time.perf_counter()
    for network in (*shipped(args.samples), *(kit(args.kit, args.samples) if args.kit else ())):
        if args.only and network.name not in args.only:
            continue
        target = top(network)
        for rules in args.rules:
            full = explained(network, network.model, rules, torch.float32, target)
            for dtype in DTYPES:
                half = copy.deepcopy(network.model).to(dtype)
                found = explained(network, half, rules, dtype, target)
                c, floor = correlations(full, found), ""
                if min(c) < 0.99:
                    rounded = network._replace(args=cast(network.args, dtype), kwargs=cast(network.kwargs, dtype))
                    same = explained(rounded, half.float(), rules, torch.float32, target)
                    floor = f"{min(correlations(full, same)):.4f}"
                lost = float(((found == 0) & (full != 0)).sum() / (full != 0).sum())
                row = (f"{sum(c) / len(c):.4f}", f"{min(c):.4f}", floor)
                about = (network.name, rules, str(dtype).removeprefix("torch."), bool(found.isfinite().all()))
                print(f"| {' | '.join(map(str, about))} | {lost:.1%} | {' | '.join(row)} |", flush=True)
    print(f"\n{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
