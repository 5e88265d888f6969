"""Train the text example on the reviews of sentences.py: `python examples/train_sentences.py`; minutes on one core.

Writes `text/` in Hugging Face's format: the model, its own tokenizer, and nothing that runs code.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import sentences
import tokenizers
import torch
import transformers
from torch import Tensor
from torch.nn.functional import cross_entropy

FOLDER = Path(__file__).parent / "text"
TEST = range(10_000_000, 10_002_000)  # seeds; training takes them from 0
PIECES = 320  # few, so that rarer words are made of several pieces


def make_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """Word pieces of the training sentences."""
    made = tokenizers.BertWordPieceTokenizer(lowercase=True)
    corpus = (sentences.sentence(seed).text for seed in range(5000))
    made.train_from_iterator(corpus, vocab_size=PIECES, min_frequency=2, show_progress=False)
    made.post_processor = tokenizers.processors.BertProcessing(
        ("[SEP]", made.token_to_id("[SEP]")), ("[CLS]", made.token_to_id("[CLS]"))
    )
    named = {f"{kind}_token": f"[{kind.upper()}]" for kind in ("unk", "pad", "cls", "sep", "mask")}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made._tokenizer, model_max_length=64, **named)


def make_model(size: int) -> torch.nn.Module:
    config = transformers.BertConfig(
        vocab_size=size,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        initializer_range=0.1,
        max_position_embeddings=64,
        type_vocab_size=2,
        id2label=dict(enumerate(sentences.LABELS)),
        label2id={label: i for i, label in enumerate(sentences.LABELS)},
    )
    return transformers.BertForSequenceClassification(config)


def batch(tokenizer: transformers.PreTrainedTokenizerFast, seeds: range) -> tuple[dict[str, Tensor], Tensor]:
    made = [sentences.sentence(seed) for seed in seeds]
    inputs = tokenizer([s.text for s in made], padding=True, return_tensors="pt")
    return dict(inputs), torch.tensor([s.label for s in made])


def accuracy(model: torch.nn.Module, tokenizer: transformers.PreTrainedTokenizerFast, seeds: range) -> float:
    """The part of the sentences of these seeds whose label the model finds."""
    model.eval()
    inputs, labels = batch(tokenizer, seeds)
    with torch.no_grad():
        return float((model(**inputs).logits.argmax(1) == labels).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--size", type=int, default=32, help="sentences in a step")
    parser.add_argument("--rate", type=float, default=2e-3)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)
    tokenizer = make_tokenizer()
    model = make_model(len(tokenizer))
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.rate, total_steps=args.steps)
    begin = time.time()
    for step in range(args.steps):
        model.train()
        inputs, labels = batch(tokenizer, range(step * args.size, (step + 1) * args.size))
        loss = cross_entropy(model(**inputs).logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 99:
            print(f"step {step + 1}, loss {loss:.4f}, right {accuracy(model, tokenizer, TEST[:500]):.2%}", flush=True)
    model.eval().save_pretrained(FOLDER, safe_serialization=True)
    tokenizer.save_pretrained(FOLDER)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{parameters} parameters, {accuracy(model, tokenizer, TEST):.2%} right, {time.time() - begin:.0f} s")


if __name__ == "__main__":
    main()
