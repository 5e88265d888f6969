"""Are the words found relevant the ones that matter?  Rulebooks and baselines on a sentiment classifier.

    python -m benchmarks.text_faithfulness --kit PATH [--sentences 200] [--words 200] [--methods abslrp attnlrp …]

Removal: tokens are taken out of the sentence (no other token sees them) most relevant first (MoRF) or least relevant
first (LeRF), and the probability of the predicted class is averaged over the steps; the area between the curves says
how well a method orders the tokens.  Agreement: how well the relevance of words for "positive" ranks them as people did
who saw each word alone (Spearman's correlation within a sentence; AUROC of positive against negative words over all).
Human rationales: `fxlrp evaluate`.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fxlrp
from fxlrp.text import explain

STEPS = 10
RULEBOOKS = ("abslrp", "abslrp-hybrid", "attnlrp", "cp-lrp", "epsilon", "gradient-input")
Method = Callable[[str, int], Tensor]


def load(kit: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = str(kit / "models" / "minilm-sst2")
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    return model.eval(), AutoTokenizer.from_pretrained(folder)


def by_rulebook(model: Any, tokenizer: Any, rules: str) -> Method:
    explainer = fxlrp.convert(model, rules=rules)
    return lambda text, target: explain(explainer, tokenizer, text, target=target, truncate=True).scores


def integrated_gradients(model: Any, tokenizer: Any, steps: int = 20) -> Method:
    """captum's, at the word embeddings, from padding between [CLS] and [SEP]."""
    from captum.attr import LayerIntegratedGradients

    method = LayerIntegratedGradients(
        lambda ids, mask: model(input_ids=ids, attention_mask=mask).logits, model.get_input_embeddings()
    )

    def scores(text: str, target: int) -> Tensor:
        e = tokenizer(text, truncation=True, return_tensors="pt")
        ids, baseline = e["input_ids"], torch.full_like(e["input_ids"], tokenizer.pad_token_id)
        baseline[:, 0], baseline[:, -1] = ids[:, 0], ids[:, -1]
        found = method.attribute(
            ids, baseline, target=target, additional_forward_args=(e["attention_mask"],), n_steps=steps
        )
        return found[0].sum(-1).detach()

    return scores


def random(model: Any, tokenizer: Any) -> Method:
    generator = torch.Generator().manual_seed(0)
    return lambda text, target: torch.randn(len(tokenizer(text, truncation=True)["input_ids"]), generator=generator)


def removal(model: Any, tokenizer: Any, text: str, target: int, scores: Tensor) -> tuple[float, float]:
    """The mean probability of the target while tokens go, most relevant first and least relevant first."""
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    inside = torch.arange(1, ids.shape[1] - 1)  # [CLS] and [SEP] stay
    order = inside[scores[1:-1].argsort(descending=True)]
    masks = []
    for line in (order, order.flip(0)):
        for step in range(1, STEPS + 1):
            mask = torch.ones(ids.shape[1], dtype=torch.int64)
            mask[line[: round(step / STEPS * len(line))]] = 0
            masks.append(mask)
    with torch.no_grad():
        logits = model(input_ids=ids.expand(len(masks), -1), attention_mask=torch.stack(masks)).logits
    curves = logits.softmax(1)[:, target].view(2, STEPS).mean(1)
    return float(curves[0]), float(curves[1])


def spearman(a: Tensor, b: Tensor) -> float:
    """Rank correlation, ties at their mean rank."""
    ranks = [torch.stack([((x < v).sum() + (x <= v).sum()) / 2.0 for v in x]) for x in (a, b)]
    x, y = (r - r.mean() for r in ranks)
    return float((x * y).sum() / (x.norm() * y.norm()))


def auroc(positive: Tensor, negative: Tensor) -> float:
    difference = positive[:, None] - negative[None, :]
    return float((difference > 0).float().mean() + (difference == 0).float().mean() / 2)


def by_word(method: Method, tokenizer: Any, words: Sequence[str], target: int) -> Tensor:
    """Relevance of each word that the model sees, the sum over its tokens."""
    text = " ".join(words)
    ends = torch.tensor([len(word) + 1 for word in words]).cumsum(0)
    out, seen = torch.zeros(len(words)), 0
    spans = tokenizer(text, truncation=True, return_offsets_mapping=True)["offset_mapping"]
    for (start, end), r in zip(spans, method(text, target), strict=True):
        if end > start:
            place = int((ends <= start).sum())
            out[place] += float(r)
            seen = place + 1
    return out[:seen]


def agreement(method: Method, tokenizer: Any, sentences: list[dict]) -> tuple[float, float]:
    """Mean rank correlation with people's sentiment of each word, and the AUROC of positive against negative words."""
    correlations, positive, negative = [], [], []
    for sentence in sentences:
        words, human = sentence["tokens"], torch.tensor(sentence["leaf"], dtype=torch.float32)
        of_words = by_word(method, tokenizer, words, 1)
        correlations.append(spearman(of_words, human))
        unit = of_words / of_words.abs().max()
        positive.append(unit[human > 2])
        negative.append(unit[human < 2])
    return sum(correlations) / len(correlations), auroc(torch.cat(positive), torch.cat(negative))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kit", type=Path, required=True)
    parser.add_argument("--sentences", type=int, default=200)
    parser.add_argument("--words", type=int, default=200)
    parser.add_argument("--methods", nargs="*", default=[*RULEBOOKS, "integrated-gradients", "random"])
    args = parser.parse_args()
    torch.set_num_threads(1)
    model, tokenizer = load(args.kit)
    others = {"integrated-gradients": integrated_gradients, "random": random}

    def named(name: str) -> Method:
        return others[name](model, tokenizer) if name in others else by_rulebook(model, tokenizer, name)

    rows = [line.split("\t") for line in (args.kit / "text" / "sst2_dev.tsv").read_text().splitlines()]
    texts = [r[0] for r in rows][: args.sentences]
    trees = [json.loads(line) for line in (args.kit / "text" / "word_sentiment.jsonl").read_text().splitlines()]
    trees = [t for t in trees if len(set(t["leaf"])) > 1][: args.words]
    print(f"{date.today()}, torch {torch.__version__}, one thread of {platform.machine()}: {len(texts)} sentences for")
    print(f"removal in {STEPS} steps, {len(trees)} for agreement\n")
    print("| method | MoRF ↓ | LeRF ↑ | area between ↑ | rank correlation ↑ | AUROC ↑ | ms a sentence |")
    print("|---|---|---|---|---|---|---|")
    with torch.no_grad():
        targets = [int(model(**tokenizer(t, return_tensors="pt")).logits.argmax()) for t in texts]
    for name in args.methods:
        method = named(name)
        curves, spent = [], 0.0
        for i, (text, target) in enumerate(zip(texts, targets, strict=True)):
            begin = time.perf_counter()
            scores = method(text, target)
            spent += (time.perf_counter() - begin) * (i > 0)  # the first one captures
            curves.append(removal(model, tokenizer, text, target, scores))
        morf, lerf = torch.tensor(curves).mean(0).tolist()
        correlation, area = agreement(method, tokenizer, trees)
        each = spent / max(len(texts) - 1, 1) * 1000
        figures = " | ".join(f"{v:.3f}" for v in (morf, lerf, lerf - morf, correlation, area))
        print(f"| `{name}` | {figures} | {each:.0f} |", flush=True)


if __name__ == "__main__":
    main()
