"""Tokenizers and tiny random models, made here: nothing is fetched."""

from __future__ import annotations

import pytest
import torch

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

CORPUS = [
    "The capital of France is Paris, and the capital of England is London.",
    "It isn't a gripping film, but it is unforgettably acted.",
    "A dull mess; nobody's favourite. Where does Ada live? Ada lives in Paris!",
    "once upon a time there was a little dog who lived in the forest",
]
SIZE = 300


def wordpiece():
    made = tokenizers.BertWordPieceTokenizer(lowercase=True)
    made.train_from_iterator(CORPUS, vocab_size=SIZE, min_frequency=1, show_progress=False)
    out = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made._tokenizer,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=64,
    )
    ids = {t: made.token_to_id(t) for t in ("[CLS]", "[SEP]")}
    out._tokenizer.post_processor = tokenizers.processors.BertProcessing(
        ("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"])
    )
    return out


def byte_level(bos: str | None = None, eos: str | None = None, pad: str | None = "<pad>"):
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>", "<mask>"]
    made.train_from_iterator(
        CORPUS,
        tokenizers.trainers.BpeTrainer(
            vocab_size=SIZE + 156,
            special_tokens=special,
            show_progress=False,
            initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    ends = " ".join(filter(None, (bos, "$A", eos)))
    known = [(t, special.index(t)) for t in (bos, eos) if t]
    made.post_processor = tokenizers.processors.Sequence(
        [
            tokenizers.processors.ByteLevel(trim_offsets=True),
            tokenizers.processors.TemplateProcessing(
                single=ends, pair=f"{ends} $B{' ' + eos if eos else ''}", special_tokens=known
            ),
        ]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token=pad, mask_token="<mask>"
    )


SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
T = transformers


def build(cls, config, **more):
    torch.manual_seed(0)
    config.update({"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, **more})
    config._attn_implementation = "eager"
    model = cls(config).eval()
    with torch.no_grad():  # transformers' weights are tiny: with these the answers differ, and padding would show
        for p in model.parameters():
            p.mul_(4.0) if p.ndim > 1 else p.add_(torch.randn_like(p) * 0.1)
    return model


def bert(head: str, tokenizer, **more):
    config = T.BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **SMALL)
    return build(getattr(T, f"BertFor{head}"), config, **more)


def decoder_only(kind: str, tokenizer):
    if kind == "gpt2":
        config = T.GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=4, n_positions=64)
        return build(T.GPT2LMHeadModel, config)
    config = T.LlamaConfig(vocab_size=len(tokenizer), num_key_value_heads=2, max_position_embeddings=64, **SMALL)
    return build(T.LlamaForCausalLM, config)


def encoder_decoder(kind: str, tokenizer):
    if kind == "t5":
        config = T.T5Config(vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
        return build(T.T5ForConditionalGeneration, config, decoder_start_token_id=0)
    config = T.BartConfig(
        vocab_size=len(tokenizer),
        d_model=32,
        max_position_embeddings=64,
        **{
            f"{side}_{what}": n
            for side in ("encoder", "decoder")
            for what, n in (("layers", 2), ("attention_heads", 4), ("ffn_dim", 48))
        },
    )
    return build(T.BartForConditionalGeneration, config, decoder_start_token_id=2, forced_eos_token_id=None)
