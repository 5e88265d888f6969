"""Tasks: what a model's output answers, seen from its names, its shape and what it depends on, never from a class."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn

from fxlrp.errors import FxlrpError, first_line
from fxlrp.graph.rewrite import Output
from fxlrp.text.encode import Encoded, accepted


class Task(Enum):
    """What is asked of a model, by what it returns for texts [B, T]."""

    CLASSES = "one score per class [B, K]"
    TOKEN_CLASSES = "one score per class at each token [B, T, K]"
    SPAN = "scores of where an answer starts and ends, both [B, T]"
    MASKED = "scores over the vocabulary at each token, which sees those on both sides [B, T, V]"
    NEXT = "scores over the vocabulary for the token behind each [B, T, V]"
    DECODED = "scores over the vocabulary for the next token of a second text [B, U, V]"


def run(model: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Run a model and return its float outputs by name; a bare tensor is named logits.

    Raises FxlrpError, with the model's message, if it refuses the inputs.
    """
    try:
        with torch.no_grad():
            returned = model(**{name: t.clone() for name, t in inputs.items()})
    except Exception as error:
        reason = first_line(error)
        raise FxlrpError(
            f"The model refuses this text ({reason}); does the tokenizer belong to it, and is the text short enough?"
        ) from error
    if isinstance(returned, Tensor):
        returned = {"logits": returned}
    elif not isinstance(returned, Mapping):
        parts = returned if isinstance(returned, tuple | list) else (getattr(returned, "logits", None),)
        returned = {"logits": next((t for t in parts if isinstance(t, Tensor)), None)}
    return {name: t for name, t in returned.items() if isinstance(t, Tensor) and t.is_floating_point()}


def start_of_decoder(model: nn.Module, tokenizer: Any) -> int:
    """Return the token that a decoder's text begins with.  Raises FxlrpError if neither model nor tokenizer says."""
    for source in (getattr(model, "generation_config", None), getattr(model, "config", None)):
        for name in ("decoder_start_token_id", "bos_token_id"):
            if isinstance(token := getattr(source, name, None), int):
                return token
    if tokenizer.bos_token_id is None:
        raise FxlrpError(
            "The model's config names no decoder_start_token_id; set it to the token its output begins with."
        )
    return int(tokenizer.bos_token_id)


def ends_of(model: nn.Module, tokenizer: Any) -> set[int]:
    """Return the tokens that end a text."""
    named = [getattr(getattr(model, "generation_config", None), "eos_token_id", None), tokenizer.eos_token_id]
    return {i for ids in named for i in (ids if isinstance(ids, list) else [ids]) if i is not None}


def decoder(model: nn.Module, inputs: Mapping[str, Tensor], ids: Sequence[int]) -> dict[str, Tensor]:
    """Return the model's inputs with `ids` as the decoder's text, the same for all texts."""
    x = inputs["input_ids"]
    return {**inputs, "decoder_input_ids": torch.tensor(ids, device=x.device).expand(len(x), -1).contiguous()}


def probe(
    model: nn.Module, tokenizer: Any, inputs: Mapping[str, Tensor], asked: Output
) -> tuple[Task, dict[str, Tensor], dict[str, Tensor]]:
    """Find out what a model is asked, by running it.

    asked: the name of the output that is explained, if it was named.

    Returns the task, the inputs with a decoder's beside them if it needs them, and the outputs.

    Raises FxlrpError for a model without scores in its output.
    """
    inputs = dict(inputs)
    decodes = "decoder_input_ids" in accepted(model)
    try:
        out = run(model, inputs)
    except FxlrpError:
        if not decodes:
            raise
        inputs = decoder(model, inputs, [start_of_decoder(model, tokenizer)])
        out = run(model, inputs)
    batch = len(inputs["input_ids"])
    if {"start_logits", "end_logits"} <= out.keys() and asked in (None, "start_logits", "end_logits"):
        return Task.SPAN, inputs, out
    name = asked if isinstance(asked, str) else next((n for n in out if n == "logits"), None)
    name = name or next((n for n in out if "logits" in n), None)
    if name not in out:
        raise FxlrpError(
            f"The model returns {', '.join(out) or 'nothing'}, no logits: load it with the head of its task "
            "(AutoModelForSequenceClassification, AutoModelForCausalLM, …)."
        )
    logits = out["logits"] = out[name]
    if logits.ndim == 2 and len(logits) == batch:
        return Task.CLASSES, inputs, out
    if logits.ndim != 3 or len(logits) != batch:
        raise FxlrpError(f"The model's {name} has shape {tuple(logits.shape)}: neither [B, K] nor [B, T, K].")
    if logits.shape[-1] not in vocabulary_sizes(model, tokenizer):
        return Task.TOKEN_CLASSES, inputs, out
    if decodes:
        if "decoder_input_ids" not in inputs:
            inputs = decoder(model, inputs, [start_of_decoder(model, tokenizer)])
            out = run(model, inputs)
            out["logits"] = out[name]
        return Task.DECODED, inputs, out
    mask = tokenizer.mask_token_id
    if mask is not None and bool((inputs["input_ids"] == mask).any()):
        return Task.MASKED, inputs, out
    return (Task.NEXT if _causal(model, inputs, logits, name) else Task.MASKED), inputs, out


def vocabulary_sizes(model: nn.Module, tokenizer: Any) -> set[int]:
    """Return how many scores an output over the vocabulary may have."""
    config = getattr(model, "config", None)
    text = config.get_text_config() if config is not None and hasattr(config, "get_text_config") else config
    return {len(tokenizer), *(n for c in (config, text) if isinstance(n := getattr(c, "vocab_size", None), int))}


def _causal(model: nn.Module, inputs: Mapping[str, Tensor], logits: Tensor, name: str) -> bool:
    """Tell whether what the model says of the first token stays the same when the later ones change."""
    ids = inputs["input_ids"][:1]
    if ids.shape[1] < 2:
        return True
    other = ids.clone()
    other[:, 1:] = torch.where(ids[:, 1:] > 0, ids[:, 1:] - 1, ids[:, 1:] + 1)
    alone = {n: t[:1] for n, t in inputs.items()}
    changed = run(model, {**alone, "input_ids": other})[name]
    kept = run(model, alone)[name]
    return bool(torch.allclose(changed[:, 0], kept[:, 0], rtol=1e-4, atol=1e-5))


def labels_of(model: nn.Module, count: int) -> list[str]:
    """Return the names of `count` classes by the model's config, or class 0, class 1, …"""
    named = {int(i): str(n) for i, n in (getattr(getattr(model, "config", None), "id2label", None) or {}).items()}
    return [named.get(i, f"class {i}") for i in range(count)]


def find_label(wanted: str | int, labels: Sequence[str]) -> int:
    """Return the index of a class by its name (in any case) or number.  Raises FxlrpError naming those there are."""
    if isinstance(wanted, int):
        if not 0 <= wanted < len(labels):
            raise FxlrpError(f"There is no class {wanted}: the model has {len(labels)}, 0 to {len(labels) - 1}.")
        return wanted
    low = [label.lower() for label in labels]
    if wanted in labels:
        return list(labels).index(wanted)
    if wanted.strip().lower() in low:
        return low.index(wanted.strip().lower())
    if wanted.strip().isdigit():
        return find_label(int(wanted), labels)
    close = difflib.get_close_matches(wanted.lower(), low, 3)
    hint = f" (did you mean {' or '.join(labels[low.index(c)] for c in close)}?)" if close else ""
    some_labels = ", ".join(labels[:20]) + (f" and {len(labels) - 20} more" if len(labels) > 20 else "")
    raise FxlrpError(f"There is no label {wanted!r}{hint}; the model knows {some_labels}.")


def find_vocabulary_word(wanted: str | int, tokenizer: Any, size: int) -> int:
    """Return the id of one token of the vocabulary.

    wanted: an id, a token as the tokenizer writes it, or a word, as it is behind a space if that is one token.

    Raises FxlrpError for one that is several tokens, or none.
    """
    if isinstance(wanted, int):
        if not 0 <= wanted < size:
            raise FxlrpError(f"There is no token {wanted}: the vocabulary has {size}.")
        return wanted
    spellings = [wanted] if wanted != wanted.strip() or not wanted else [f" {wanted}", wanted]
    cut = [tokenizer(s, add_special_tokens=False, verbose=False)["input_ids"] for s in spellings]
    unknown = tokenizer.unk_token_id
    if one := next((ids[0] for ids in cut if len(ids) == 1 and ids[0] != unknown), None):
        return int(one)
    exact = tokenizer.convert_tokens_to_ids(wanted)
    if isinstance(exact, int) and exact != unknown and 0 <= exact < size:
        return exact
    shown = " ".join(map(str, tokenizer.convert_ids_to_tokens(cut[-1]))) or "nothing"
    raise FxlrpError(
        f"{wanted!r} is not one token of this vocabulary (it becomes {shown}); give one of its tokens, or a token's id."
    )


def best_span(start: Tensor, end: Tensor, text: Encoded, longest: int = 30) -> tuple[int, int]:
    """Return the tokens at which the likeliest answer starts and ends, inside the last segment (the context).

    start, end: the scores of each token [T].  longest: the most tokens between them.
    """
    last = len(text.segments) - 1
    inside = torch.tensor([p.segment == last and p.end > p.start for p in text.pieces], device=start.device)
    n = len(text.pieces)
    scores = start[:n, None] + end[None, :n]
    allowed = inside[:, None] & inside[None, :] & torch.ones_like(scores, dtype=torch.bool).triu().tril(longest)
    first, last = divmod(int(scores.masked_fill(~allowed, float("-inf")).argmax()), n)
    return first, last
