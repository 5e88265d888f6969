"""Transformers of many families through one path: a padded batch says what each text alone does, by every kind of rule.

The models are those of benchmarks/zoo_transformers.py: tiny, of random weights.
"""

from __future__ import annotations

import pytest

import fxlrp
from fxlrp.text import explain

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

from benchmarks import zoo_transformers as zoo  # noqa: E402

TEXTS = ["ada lives in paris", "it is not a dull film but it is so long"]
RULES = ("abslrp-hybrid", "attnlrp", "abslrp")  # by turns, for time; all were tried with all
SLOW = ("gpt2", "opt", "mixtral", "mamba", "xlnet")  # by abslrp, which takes a graph for each length here
SINGLE = ("mixtral",)  # torch multiplies by experts in single precision alone
# fmt: off
FAMILIES = {
    "sequence-classification": ["bert", "roberta", "distilbert", "albert", "electra", "deberta-v2", "xlm-roberta",
                                "mpnet", "modernbert", "xlnet"],
    "masked-lm": ["bert", "nomic_bert"],
    "causal-lm": ["gpt2", "opt", "gpt_neox", "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi",
                  "olmo", "falcon", "mixtral", "mamba", "bloom", "smollm3"],
    "decoded": ["t5", "bart"],
}
# fmt: on
NAMES = [f"{head}/{kind}" for head, kinds in FAMILIES.items() for kind in kinds]


def whole_words():
    """A tokenizer with a token for each word of the texts."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted({w for t in TEXTS for w in t.split()})]
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    made.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    named = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, **named)


def model_of(name: str, tokenizer):
    head, kind = name.split("/")
    if head == "decoded":
        from .models import encoder_decoder

        model = encoder_decoder(kind, tokenizer)
    else:
        model, _, _ = zoo.build(name)
        for part in zoo._parts(model.config):  # classifiers of decoders look for the last token that is not padding
            part.pad_token_id = tokenizer.pad_token_id
    return model if kind in SINGLE else model.double()


@pytest.mark.every(2)
@pytest.mark.parametrize("name", NAMES)
def test_padded_batch_equals_each_alone(name: str) -> None:
    tokenizer = whole_words()
    model = model_of(name, tokenizer)
    texts = [f"{t} [MASK]" if name.startswith("masked") else t for t in TEXTS]
    rules = RULES[0] if name.split("/")[1] in SLOW else RULES[NAMES.index(name) % 3]
    explainer = fxlrp.convert(model, rules=rules, strict=True)
    for text, a in zip(texts, explain(explainer, tokenizer, texts), strict=True):
        alone = explain(explainer, tokenizer, text)
        assert alone.asked[0].target == a.asked[0].target
        assert alone.scores.isfinite().all()
        assert alone.scores.count_nonzero() > 1
        assert (a.scores - alone.scores).abs().max() <= 1e-5 * alone.scores.abs().max()
