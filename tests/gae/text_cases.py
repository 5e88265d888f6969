"""A bag of words whose answer is known, texts for it, and what people would mark in them."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from tests.text.models import wordpiece

WORTH = {"gripping": 2.0, "unforgettably": 1.5, "dull": -2.0, "mess": -1.0, "nobody": -0.5}
TEXTS: list[Any] = [
    {"text": "it is a gripping film, but a mess.", "label": 1, "rationale": [0, 0, 0, 1, 0, 0, 0, 0]},
    {"text": "a dull mess", "label": 0, "rationale": ["dull mess"]},
    {"text": "It isn't unforgettably acted, nobody lives in Paris", "rationale": {"start_token": 2, "end_token": 4}},
    {"text": "the dog lived in the forest; dull", "label": 0, "rationale": [[29, 33]]},
    {"text": "unforgettably gripping", "label": 1},
]


def legrads(model: nn.Module, case: Any, final_norm: nn.Module) -> Tensor:
    """LeGrad by its formula: what the final norm and the head would say of each block's tokens."""
    out = model(**case.inputs, output_attentions=True, output_hidden_states=True)
    total = torch.zeros(len(case.free), dtype=torch.float64)
    for layer, weights in enumerate(out.attentions):
        tokens = out.hidden_states[layer + 1]
        tokens = tokens if layer + 1 == len(out.attentions) else final_norm(tokens)
        (g,) = torch.autograd.grad(case.score(model.lm_head(tokens)).sum(), weights, retain_graph=True)
        total += g[0].relu().mean((0, 1))
    return total


class Bag(nn.Module):
    """The sum of the worth of the words that are attended to, as the logit of the second of two classes."""

    def __init__(self, tokenizer: Any) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(len(tokenizer), 2), nn.Linear(2, 2, bias=False)
        with torch.no_grad():
            self.words.weight.zero_()
            self.head.weight.copy_(torch.tensor([[-0.5, 0.0], [0.5, 0.0]]))
            for word, worth in WORTH.items():
                first = tokenizer(word, add_special_tokens=False)["input_ids"][0]
                self.words.weight[first, 0] = worth

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        return {"logits": self.head((self.words(input_ids) * attention_mask[..., None]).sum(1))}


@functools.cache
def words() -> Any:
    """The tokenizer, which is trained once: it is another each time."""
    return wordpiece()


def bag() -> tuple[nn.Module, Any]:
    """The model, in float64, and its tokenizer."""
    return Bag(words()).double().eval(), words()
