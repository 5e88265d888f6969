"""Ask: texts and what is asked about them → attributions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fxlrp.engine.seeds import Question
from fxlrp.errors import FxlrpError
from fxlrp.explainer import Explainer, convert
from fxlrp.rules.registry import Rulebook
from fxlrp.text.attribution import Asked, TextAttribution
from fxlrp.text.encode import Encoded, batched, encode, limit_of
from fxlrp.text.tasks import (
    Task,
    best_span,
    decoder,
    ends_of,
    find_label,
    find_vocabulary_word,
    labels_of,
    probe,
    run,
    start_of_decoder,
)
from fxlrp.text.words import words_of

RULES = "abslrp-hybrid"
BATCH = 16
IDS = ("input_ids", "decoder_input_ids")
WAYS = ("others", "softmax")
Name = str | int
Score = Callable[[Any], Tensor]


@dataclass(frozen=True)
class Row:
    """One question about one text: its target and contrast by index, the position in the output, and its names."""

    target: Any
    contrast: Any
    at: int | None
    asked: Asked
    output: str | None = None  # where the model has several


def explain(
    model: nn.Module,
    tokenizer: Any,
    text: str | Sequence[str],
    *,
    pair: str | Sequence[str] | None = None,
    target: Name | Score | Sequence[Name] | None = None,
    contrast: Name | None = "default",
    rules: str | Rulebook = RULES,
    position: Name | None = None,
    truncate: bool = False,
) -> Any:
    """What in a text, or in each of several, spoke for what the model says.

    model: a transformer of Hugging Face's in eval mode, or an `Explainer` of it, which keeps what it has captured (and
      its own rules).
    tokenizer: its fast tokenizer.
    pair: the second text of each (for question answering the context, `text` being the question).
    target: what is explained, without it what the model says itself; a list for several, all from one forward pass.
      A label or class number; for a language model a word or token of its vocabulary; for question answering words of
      the context; or a callable on the model's output that returns a score per text [B].
    contrast: what it is set against: another such, "others", "softmax", None, or "default": what suits `rules` best.
    position: for outputs with a score per token, the token that is asked about: its place, from the end if negative, or
      a word of the text.  Without it: every masked token, the end of the text (for what comes next), the first decoded
      token, or, for token classification, the first token of each word in turn.
    truncate: leave out what is over the model's limit, with a warning.

    Returns a TextAttribution, or a list of them for a list of texts.

    Raises FxlrpError: a tokenizer that isn't fast, a text that is empty or too long, names that the model does not
    know, a model without scores in its output, and what `convert` raises.
    """
    if isinstance(text, str):
        pairs: Sequence[str] | None = None if pair is None else [pair] if isinstance(pair, str) else list(pair)
        return _explain_all(model, tokenizer, [text], pairs, target, contrast, rules, position, truncate)[0]
    if not isinstance(text, Sequence) or not text:
        raise FxlrpError("Give a text or a list of at least one.")
    pairs = None if pair is None else [pair] * len(text) if isinstance(pair, str) else list(pair)
    return _explain_all(model, tokenizer, list(text), pairs, target, contrast, rules, position, truncate)


def _explain_all(
    model: nn.Module,
    tokenizer: Any,
    texts: list[str],
    pairs: Sequence[str | None] | None,
    target: Any,
    contrast: Any,
    rules: str | Rulebook,
    position: Name | None,
    truncate: bool,
) -> list[TextAttribution]:
    if pairs is not None and len(pairs) != len(texts):
        raise FxlrpError(f"There are {len(texts)} texts and {len(pairs)} pairs; give one for each text.")
    explainer = model if isinstance(model, Explainer) else convert(model, rules=rules)
    plain, contrast = explainer.model, _resolved(contrast, explainer)
    encoded = [
        encode(plain, tokenizer, t, p, truncate) for t, p in zip(texts, pairs or [None] * len(texts), strict=True)
    ]

    def some(encoded: list[Encoded]) -> list[TextAttribution]:
        """As many texts at once as can be."""
        inputs = batched(plain, tokenizer, encoded)
        task, inputs, found = probe(plain, tokenizer, inputs, explainer.output)
        if not _padding_is_ignored(explainer, tokenizer, encoded, found):
            return [a for e in encoded for a in some([e])]
        rows = [
            _rows(task, plain, tokenizer, e, {n: t[i] for n, t in found.items()}, target, contrast, position)
            for i, e in enumerate(encoded)
        ]
        alike = len({tuple(row.output for row in r) for r in rows}) == 1
        if len(encoded) > 1 and (not alike or task is Task.SPAN):  # a softmax over positions would see the padding
            return [a for e in encoded for a in some([e])]
        if task is Task.DECODED:
            encoded = [e.extended(tokenizer, (), [start_of_decoder(plain, tokenizer)]) for e in encoded]
        return _answers(explainer, inputs, encoded, rows)

    out: list[TextAttribution] = []
    while encoded:
        same = len(encoded)
        if "attention_mask" not in encoded[0].fields:  # nothing would tell the padding from the text
            same = next((i for i, e in enumerate(encoded) if len(e.ids) != len(encoded[0].ids)), same)
        count = min(same, BATCH)
        out += some(encoded[:count])
        encoded = encoded[count:]
    return out


def _padding_is_ignored(
    explainer: Explainer, tokenizer: Any, texts: Sequence[Encoded], found: Mapping[str, Tensor]
) -> bool:
    """Whether the model says the same of the shortest text alone as among the others, where it is padded."""
    lengths = [len(text.ids) for text in texts]
    i = lengths.index(min(lengths))
    if lengths[i] == max(lengths):
        return True
    inputs = batched(explainer.model, tokenizer, [texts[i]])
    alone = probe(explainer.model, tokenizer, inputs, explainer.output)[2]
    said = [(t[0], found[name][i][: len(t[0])]) for name, t in alone.items() if "logits" in name]
    return all(bool((a - b).abs().max() <= 1e-3 * a.abs().max()) for a, b in said)


def _answers(
    explainer: Explainer, inputs: Mapping[str, Tensor], texts: Sequence[Encoded], rows: Sequence[Sequence[Row]]
) -> list[TextAttribution]:
    """The attribution of each text for its rows, of which all texts have the same number, of the same outputs."""
    device = inputs["input_ids"].device
    found: list[Tensor] = [torch.empty(0)] * len(rows[0])
    for output in dict.fromkeys(row.output for row in rows[0]):
        places = [k for k, row in enumerate(rows[0]) if row.output == output]
        questions = [_question([r[k] for r in rows], device) for k in places]
        answers = explainer.of(output or explainer.output).ask(questions, **inputs)
        for k, answer in zip(places, answers, strict=True):
            relevance = answer.named
            sides = (relevance.get(name, torch.zeros_like(inputs[name])) for name in IDS if name in inputs)
            found[k] = torch.cat([side.detach().float().cpu() for side in sides], 1)
    every = torch.stack(found, 1)  # [B, R, T (+ U)]
    width, decoded = inputs["input_ids"].shape[1], every.shape[2]
    out = []
    for text, scores, asked in zip(texts, every, rows, strict=True):
        length = len(text.pieces) - (decoded - width)
        kept = torch.cat([scores[:, :length], scores[:, width:]], 1)
        out.append(TextAttribution(text.segments, text.pieces, kept, [row.asked for row in asked], text.dropped))
    return out


def _resolved(contrast: Any, explainer: Explainer) -> Any:
    return explainer.rulebook.default_contrast if contrast == "default" else contrast


def _question(rows: Sequence[Row], device: torch.device) -> Question:
    """The same question of a batch, its targets and positions beside each other."""
    first = rows[0]
    target = first.target if callable(first.target) else torch.tensor([r.target for r in rows], device=device)
    at = None if first.at is None else torch.tensor([r.at for r in rows], device=device)
    return Question(target, None if callable(first.target) else first.contrast, at)


def _rows(
    task: Task,
    model: nn.Module,
    tokenizer: Any,
    text: Encoded,
    out: Mapping[str, Tensor],
    target: Any,
    contrast: Any,
    position: Name | None,
) -> list[Row]:
    """What is asked about one text, by what the model says of it: `out` without the axis of the batch."""
    if callable(target):
        return [Row(target, None, None, Asked("a score", None, None))]
    targets = list(target) if isinstance(target, list | tuple) else [target]
    if not targets:
        raise FxlrpError("target is an empty list; give at least one, or None for what the model says itself.")
    if task is Task.SPAN:
        return [row for t in targets for row in _span_rows(text, out, t, contrast)]
    logits = out["logits"]
    places = [None] if task is Task.CLASSES else _places(task, tokenizer, text, position)
    size = logits.shape[-1]

    def index(wanted: Name) -> int:
        if task in (Task.CLASSES, Task.TOKEN_CLASSES):
            return find_label(wanted, labels_of(model, size))
        return find_vocabulary_word(wanted, tokenizer, size)

    def name(i: int) -> str:
        if task in (Task.CLASSES, Task.TOKEN_CLASSES):
            return labels_of(model, size)[i]
        return _word(tokenizer, i)

    found = []
    for at in places:
        scores = logits if at is None else logits[at]
        for wanted in targets:
            i = int(scores.argmax()) if wanted is None else index(wanted)
            against = contrast if contrast is None or contrast in WAYS else index(contrast)
            if isinstance(against, int) and against == i and wanted is None:  # "why not this?" when it is the top one
                i = int(scores.masked_fill(torch.arange(size, device=scores.device) == i, float("-inf")).argmax())
            asked = Asked(name(i), _said(against, name), _probability(scores, i), at if task in TOKENWISE else None)
            found.append(Row(i, against, at, asked))
    return found


TOKENWISE = (Task.TOKEN_CLASSES, Task.MASKED)


def _said(against: Any, name: Callable[[int], str]) -> str | None:
    return name(against) if isinstance(against, int) else against


def _word(tokenizer: Any, token: int) -> str:
    """What a token of the vocabulary stands for, or its name where that can't be seen."""
    word = str(tokenizer.decode([token])).strip()
    return word if word.isprintable() and word else str(tokenizer.convert_ids_to_tokens(token))


def _probability(scores: Tensor, i: int) -> float:
    scores = scores.detach().float()
    return float(scores.sigmoid()[0] if len(scores) == 1 else scores.softmax(0)[i])


def _places(task: Task, tokenizer: Any, text: Encoded, position: Name | None) -> list[int | None]:
    """The positions in the output that are asked about."""
    n = len(text.ids)
    if task is Task.DECODED:
        if position is not None:
            raise FxlrpError("position is for outputs with a score per token of the text; the decoder has only begun.")
        return [0]
    if isinstance(position, str):
        found = text.find(position, range(len(text.segments)))
        if found is None:
            raise FxlrpError(f"position={position!r} is not in the text.")
        return [found[0]]
    if position is not None:
        if not -n <= position < n:
            raise FxlrpError(f"position={position} is out of range: the text has {n} tokens.")
        return [position % n]
    if task is Task.NEXT:
        return [n - 1]
    if task is Task.MASKED:
        masked = [i for i, token in enumerate(text.ids) if token == tokenizer.mask_token_id]
        if not masked:
            raise FxlrpError(
                f"The model fills in masked words and the text has no {tokenizer.mask_token or 'mask'}: write it where "
                "the word in question stands, or give position."
            )
        return list(masked)
    words = words_of(text.segments, text.pieces)
    return [i for i, word in enumerate(words) if word is not None and word not in words[:i]]


def _span_rows(text: Encoded, out: Mapping[str, Tensor], target: Any, contrast: Any) -> list[Row]:
    """Why the answer starts where it does, and why it ends there."""
    segments = [*range(1, len(text.segments)), 0]  # the context first

    def place(wanted: Any) -> tuple[int, int]:
        if isinstance(wanted, int):
            if not 0 <= wanted < len(text.ids):
                raise FxlrpError(f"There is no token {wanted}: the text has {len(text.ids)}.")
            return wanted, wanted
        if (found := text.find(str(wanted), segments)) is None:
            raise FxlrpError(f"The answer {wanted!r} is not in the text.")
        return found

    ends = best_span(out["start_logits"], out["end_logits"], text) if target is None else place(target)
    against = (contrast,) * 2 if contrast is None or contrast in WAYS else place(contrast)
    rows = []
    for side, i, other in zip(("start", "end"), ends, against, strict=True):
        scores = out[f"{side}_logits"]
        if isinstance(other, int) and other == i:
            raise FxlrpError(f"The answer and what it is set against {side} at the same token; give others.")
        said = _said(other, text.text_of)
        asked = Asked(f"{side}: {text.text_of(i)}", said, _probability(scores[: len(text.ids)], i), i)
        rows.append(Row(i, other, None, asked, f"{side}_logits"))
    return rows


def generate(
    model: nn.Module,
    tokenizer: Any,
    prompt: str,
    *,
    continuation: str | None = None,
    max_new_tokens: int = 20,
    contrast: Name | None = "default",
    rules: str | Rulebook = RULES,
    truncate: bool = False,
) -> TextAttribution:
    """Why each token of a continuation: one row per token, over the prompt (and the source, for an encoder–decoder)
    and the tokens before it; all rows from one forward pass.

    continuation: the text whose tokens are explained; without it the model writes up to `max_new_tokens`, each its
      likeliest next token, until it ends.

    Raises FxlrpError as `explain` does, and for a model that writes no text.
    """
    if max_new_tokens < 1:
        raise FxlrpError(f"max_new_tokens={max_new_tokens} is not a number of tokens; give at least 1.")
    explainer = model if isinstance(model, Explainer) else convert(model, rules=rules)
    plain = explainer.model
    text = encode(plain, tokenizer, prompt, None, truncate)
    task, inputs, _ = probe(plain, tokenizer, batched(plain, tokenizer, [text]), explainer.output)
    if task not in (Task.NEXT, Task.DECODED):
        raise FxlrpError(f"The model writes no text, its output is {task.value}; use fxlrp.text.explain.")
    begin = [start_of_decoder(plain, tokenizer)] if task is Task.DECODED else []

    def with_text(ids: Sequence[int]) -> tuple[Encoded, dict[str, Tensor]]:
        whole = text.extended(tokenizer, ids, begin)
        return whole, decoder(plain, inputs, [*begin, *ids]) if begin else batched(plain, tokenizer, [whole])

    new: list[int] = []
    if continuation is not None:
        new = tokenizer(continuation, add_special_tokens=False, verbose=False)["input_ids"]
        if not new:
            raise FxlrpError("The continuation is empty; give at least one word, or leave it out to have one written.")
    ends = ends_of(plain, tokenizer)
    while continuation is None and len(new) < max_new_tokens and not ends.intersection(new):
        new.append(int(run(plain, with_text(new)[1])["logits"][0, -1].argmax()))
    whole, inputs = with_text(new)
    behind = len(whole.pieces) - len(new)  # the first of the new tokens
    if task is Task.NEXT and len(whole.ids) > (most := limit_of(plain, tokenizer)):
        raise FxlrpError(
            f"Prompt and continuation have {len(whole.ids)} tokens, the model takes {most}; ask for fewer."
        )
    scores = run(plain, inputs)["logits"][0]
    scores = scores[len(scores) - len(new) - 1 :]
    against = contrast = _resolved(contrast, explainer)
    if contrast is not None and contrast not in WAYS:
        against = find_vocabulary_word(contrast, tokenizer, scores.shape[-1])
        if against in new:
            raise FxlrpError(f"contrast={contrast!r} is among the tokens explained; set them against another.")
    said = _said(against, lambda i: _word(tokenizer, i))
    rows = [
        Row(
            token, against, k - len(new) - 1, Asked(whole.text_of(behind + k), said, _probability(s, token), behind + k)
        )
        for k, (token, s) in enumerate(zip(new, scores, strict=False))
    ]
    return _answers(explainer, inputs, [whole], [rows])[0]
