"""What many questions about one call cost: classes of a picture, rows of a text, by one forward pass.

    python -m benchmarks.questions [--models timm:vit_base_patch16_224,config:llama] [--rules abslrp,abslrp-hybrid]

CPU seconds on one thread, the least of two; a picture's in gradients (forward + input gradient of the untouched model),
and both as a share of as many calls with one question each.  `config:TYPE` is a model that writes, of that type in
transformers, asked about its last 16 tokens of 128.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from functools import partial

import torch
import transformers

import fxlrp
from benchmarks.speed import CONFIGS, TOKENS, gradient, prepared
from fxlrp.engine.seeds import Question


def seconds(run: Callable[[], object]) -> float:
    """The least CPU time of two runs, after one that captures."""
    run()
    times = []
    for _ in range(2):
        began = time.process_time()
        run()
        times.append(time.process_time() - began)
    return min(times)


def of_picture(spec: str, rules: list[str], count: int) -> None:
    """Classes 0, 1, … of one picture."""
    model, x = prepared(spec, 1, "cpu")
    unit = seconds(partial(gradient, model, x))
    for name in rules:
        explainer = fxlrp.convert(model, x, rules=name)
        one = seconds(partial(explainer, x, target=0, contrast=None))
        many = seconds(partial(explainer, x, target=list(range(count)), contrast=None))
        print(f"| {spec} | {name} | {count} classes | {many / unit:.1f} | {many / one / count:.2f} |", flush=True)


def of_text(kind: str, rules: list[str], count: int) -> None:
    """The last tokens that a model writes."""
    config = transformers.AutoConfig.for_model(kind, **CONFIGS.get(kind, {}))
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    ids = torch.randint(1, 1000, (1, TOKENS))
    places = range(TOKENS - count, TOKENS)
    for name in rules:
        explainer = fxlrp.convert(model, (ids,), rules=name)
        each = sum(seconds(partial(explainer, ids, position=i)) for i in places)
        many = seconds(partial(explainer.ask, [Question(position=i) for i in places], ids))
        print(f"| config:{kind} | {name} | {count} rows | | {many / each:.2f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="timm:resnet50,timm:vit_base_patch16_224,config:llama")
    parser.add_argument("--rules", default=f"{fxlrp.DEFAULT},abslrp,attnlrp")
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    print("| model | rulebook | questions | gradients | of single passes |\n|---|---|---|---|---|")
    for spec in args.models.split(","):
        kind, _, name = spec.partition(":")
        if kind == "config":
            of_text(name, args.rules.split(","), 16)
        else:
            of_picture(spec, args.rules.split(","), 10)


if __name__ == "__main__":
    main()
