"""AttnLRP by LXT and by fxlrp on BERT, GPT-2 and LLaMA (three layers, random weights, float64).

LXT 2.1 patches transformers 4.52, fxlrp is tried with the newest: each side runs in an environment of its own.

    python -m benchmarks.lxt_text theirs DIR    # with lxt==2.1 transformers==4.52.4
    python -m benchmarks.lxt_text ours DIR      # with fxlrp
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import torch
import transformers as T
from torch import nn

KINDS = {"bert": "BertForSequenceClassification", "gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM"}


def build(kind: str, place: Any) -> nn.Module:
    """A model of the class that `place` has now, patched or not."""
    sizes = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 128}
    if kind == "gpt2":
        config = T.GPT2Config(vocab_size=200, n_embd=64, n_layer=3, n_head=4, n_positions=64, eos_token_id=1)
    elif kind == "bert":
        config = T.BertConfig(vocab_size=200, num_labels=3, **sizes)
    else:
        config = T.LlamaConfig(vocab_size=200, num_key_value_heads=2, **sizes)
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    model = getattr(place, KINDS[kind])(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(3.0) if p.ndim > 1 else p.add_(torch.randn_like(p) * 0.1)
    return model.double()


def theirs(kind: str) -> dict[str, Any]:
    from lxt.efficient import monkey_patch

    module = importlib.import_module(f"transformers.models.{kind}.modeling_{kind}")
    monkey_patch(module, importlib.import_module(f"lxt.efficient.models.{kind}").attnLRP)
    model, ids = build(kind, module), torch.randint(5, 200, (4, 12), generator=torch.Generator().manual_seed(2))
    targets, relevance = [], []
    for row in ids:
        embedded = model.get_input_embeddings()(row[None]).detach().requires_grad_()
        logits = model(inputs_embeds=embedded).logits[0]
        logits = logits[-1] if logits.ndim == 2 else logits
        targets.append(int(logits.argmax()))
        logits.max().backward()
        relevance.append((embedded * embedded.grad).sum(-1)[0].detach())
    return {"weights": model.state_dict(), "ids": ids, "target": torch.tensor(targets), "R": torch.stack(relevance)}


def ours(kind: str, found: dict[str, Any]) -> str:
    import fxlrp

    model = build(kind, T)
    model.load_state_dict(found["weights"])
    call = {"input_ids": found["ids"], "attention_mask": torch.ones_like(found["ids"])}
    position = None if kind == "bert" else -1
    a = fxlrp.convert(model, rules="attnlrp")(**call, target=found["target"], contrast=None, position=position)
    mine, other = a.named["input_ids"], found["R"]
    least = min(float(torch.corrcoef(torch.stack(pair))[0, 1]) for pair in zip(mine, other, strict=True))
    worst = ((mine - other).abs().amax(1) / other.abs().amax(1)).max()
    return f"{kind}: least correlation {least:.12f}, largest difference / largest |R| {float(worst):.1e}"


def main() -> None:
    side, folder = sys.argv[1], Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    for kind in KINDS:
        file = folder / f"{kind}.pt"
        if side == "theirs":
            torch.save(theirs(kind), file)
        else:
            print(ours(kind, torch.load(file)))


if __name__ == "__main__":
    main()
