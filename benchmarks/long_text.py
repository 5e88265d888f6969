"""What a long text costs: BERT of base size with random weights, explained, against a forward and gradient.

    python -m benchmarks.long_text [--tokens 512] [--threads 1] [--rules abslrp-hybrid attnlrp]

Each row is a process of its own: seconds of CPU for one call, the best of three behind a first one that captures, and
the largest resident memory the process ever had.
"""

from __future__ import annotations

import argparse
import multiprocessing
import platform
import resource
import time
from datetime import date

import torch
from torch import nn

import fxlrp

GRADIENT = "forward + gradient"


def bert() -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(num_labels=2)).eval()


def measure(name: str, tokens: int, threads: int) -> tuple[float, float, float]:
    """Seconds of the first call and of a later one, and the peak of memory in GB."""
    torch.set_num_threads(threads)
    model, ids = bert(), torch.randint(1000, 20_000, (1, tokens))
    mask = torch.ones_like(ids)
    explainer = None if name == GRADIENT else fxlrp.convert(model, rules=name)

    def call() -> float:
        begin = time.process_time()
        if explainer is None:
            embedded = model.get_input_embeddings()(ids)
            logits = model(inputs_embeds=embedded, attention_mask=mask).logits
            torch.autograd.grad(logits.max(), embedded)
        else:
            explainer(input_ids=ids, attention_mask=mask)
        return (time.process_time() - begin) / threads

    first, *later = [call() for _ in range(4)]
    return first, min(later), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rules", nargs="*", default=["abslrp-hybrid", "attnlrp"])
    args = parser.parse_args()
    print(f"{date.today()}, torch {torch.__version__}, {args.threads} thread(s) of {platform.machine()}")
    print(f"\n| {args.tokens} tokens | first call, s | a call, s | × gradient | peak memory, GB | × gradient |")
    print("|---|---|---|---|---|---|")
    base = (0.0, 1.0, 1.0)
    for name in (GRADIENT, *args.rules):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            found = pool.apply(measure, (name, args.tokens, args.threads))
        base = found if name == GRADIENT else base
        first, each, peak = found
        print(
            f"| {name} | {first:.1f} | {each:.2f} | {each / base[1]:.2f} | {peak:.2f} | {peak / base[2]:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
