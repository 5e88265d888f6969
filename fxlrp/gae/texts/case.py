"""One text as a model takes it, and what is asked about it: why this class, or why this continuation."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from fxlrp.errors import FxlrpError
from fxlrp.gae.texts.data import Sample, word_spans
from fxlrp.text.encode import Encoded, batched, encode, limit_of
from fxlrp.text.tasks import Task, decoder, labels_of, probe, start_of_decoder


@dataclass(frozen=True, eq=False)
class Case:
    """One text as a method is asked about it.

    inputs: the model's arguments, of one sample; `input_ids` [1, T].
    target: the class [1], or the tokens of the continuation [m].  at: where in the output each of them is said [m],
      None where it says classes.
    free: bool [T], the tokens that stand for the text, which relevance is measured on: no special ones, and none of a
      continuation.
    words [T]: which word of the text each token begins in, −1 if in none; of a pair's, they go on counting.
    key: a name that no other case of the run has, nor this one of a changed copy of the model.
    truth [T]: 1 where people marked the text, if they did.
    text: with the tokens' places.  predicted: what is explained, in words.
    blank: the token that stands for no text at all.  mask: the tokenizer's, if it has one.
    """

    inputs: dict[str, Tensor]
    target: Tensor
    at: Tensor | None
    free: Tensor
    words: Tensor
    key: str
    text: Encoded
    predicted: str
    blank: int
    mask: int | None = None
    truth: Tensor | None = None

    @property
    def decodes(self) -> bool:
        """Whether the continuation is said by a decoder, not behind the text."""
        return "decoder_input_ids" in self.inputs

    def score(self, logits: Tensor) -> Tensor:
        """Return what is explained [B]: the class's logit, or the continuation's log-probability, of logits [B, …]."""
        if self.at is None:
            return logits[:, self.target[0]]
        return self._said(logits.log_softmax(-1)).sum(1)

    def worth(self, logits: Tensor) -> Tensor:
        """Return what removal is measured by [B]: the class's probability, or the continuation's log-probability."""
        logits = logits.double()
        if self.at is not None:
            return self._said(logits.log_softmax(-1)).sum(1)
        return logits[:, 0].sigmoid() if logits.shape[1] == 1 else logits.softmax(1)[:, self.target[0]]

    def questions(self) -> list[tuple[Tensor, Tensor | None]]:
        """Return what an explainer is asked, target [1] and position [1], for each class or token explained."""
        places = [None] * len(self.target) if self.at is None else list(self.at[:, None])
        return list(zip(self.target[:, None], places, strict=True))

    def moved(self, shift: int) -> Case:
        """Return the case of a text whose continuation stands so many places earlier."""
        return self if self.at is None or not shift else replace(self, at=self.at - shift)

    def _said(self, rows: Tensor) -> Tensor:
        assert self.at is not None
        return rows[:, self.at].gather(2, self.target[None, :, None].expand(len(rows), -1, -1))[..., 0]


def said(returned: Any) -> Tensor:
    """Return the logits in what a model returned."""
    if isinstance(returned, Mapping):
        name = next((n for n in returned if n == "logits"), None) or next(n for n in returned if "logits" in n)
        return returned[name]
    if isinstance(returned, tuple | list):
        return returned[0]
    return returned if isinstance(returned, Tensor) else returned.logits


def make_case(model: nn.Module, tokenizer: Any, sample: Sample, index: int) -> Case:
    """Return a sample as a case: why its top class or, for a model that writes, why its continuation, or without one
    why the likeliest next token.

    A text over the model's limit is cut off there; `text.dropped` says by how much.

    Raises FxlrpError for a model that does neither, and for a text that it can't take.
    """
    try:
        return _made(model, tokenizer, sample, index)
    except FxlrpError as error:
        raise FxlrpError(f"Sample {index}: {error}") from error


def _made(model: nn.Module, tokenizer: Any, sample: Sample, index: int) -> Case:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is cut off, which the report says
        text = encode(model, tokenizer, sample.text, sample.pair, truncate=True)
    task, inputs, out = probe(model, tokenizer, batched(model, tokenizer, [text]), None)
    device, length = inputs["input_ids"].device, len(text.ids)
    stands = [p.end > p.start for p in text.pieces]
    if task is Task.CLASSES:
        if sample.continuation is not None:
            raise FxlrpError("it has a continuation, and the model writes none: it gives a score per class.")
        logits = out["logits"][0]
        target, at = logits.argmax()[None], None
        predicted = labels_of(model, len(logits))[int(target)]
    elif task in (Task.NEXT, Task.DECODED):
        text, inputs, target, at = _written(model, tokenizer, sample, text, inputs, out, task)
        stands += [False] * (inputs["input_ids"].shape[1] - length)
        predicted = str(tokenizer.decode(target.tolist()))
    else:
        raise FxlrpError(f"the model's output is {task.value}; texts are evaluated by classes, or by what is written.")
    words, marks = _words(text, sample, len(stands), length)
    truth = None if sample.rationale is None else marks.to(device)
    free = torch.tensor(stands, device=device)
    if not free.any():
        raise FxlrpError("no token stands for the text.")
    special = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.mask_token_id)
    blank, mask = next((i for i in special if i is not None), 0), tokenizer.mask_token_id
    target, words = target.to(device), words.to(device)
    return Case(inputs, target, at, free, words, str(index), text, predicted, blank, mask, truth)


def _written(
    model: nn.Module, tokenizer: Any, sample: Sample, text: Encoded, inputs: dict, out: dict, task: Task
) -> tuple[Encoded, dict[str, Tensor], Tensor, Tensor]:
    """Return a text with its continuation behind it or in the decoder: text, inputs, target [m] and places [m]."""
    decodes = task is Task.DECODED
    begin = [start_of_decoder(model, tokenizer)] if decodes else []
    if sample.continuation is None:
        new = [int(out["logits"][0, 0 if decodes else -1].argmax())]
    else:
        new = tokenizer(sample.continuation, add_special_tokens=False, verbose=False)["input_ids"]
        if not new:
            raise FxlrpError("the continuation is empty.")
    before = len(text.ids)
    whole = text.extended(tokenizer, new)
    if not decodes and len(whole.ids) > (most := limit_of(model, tokenizer)):
        raise FxlrpError(f"text and continuation have {len(whole.ids)} tokens, the model takes {most}; shorten it.")
    first = 0 if decodes else before - 1
    at = torch.arange(first, first + len(new), device=inputs["input_ids"].device)
    target = torch.tensor(new, device=at.device)
    if decodes:
        return text, decoder(model, inputs, [*begin, *new[:-1]]), target, at
    return whole, batched(model, tokenizer, [whole]), target, at


def _words(text: Encoded, sample: Sample, count: int, length: int) -> tuple[Tensor, Tensor]:
    """Return which word each of `count` tokens begins in, 1 where it was marked; none from `length` on."""
    spans = [word_spans(sample.text), word_spans(sample.pair or "")]
    segments = [sample.text, sample.pair or ""]
    words, marks = torch.full((count,), -1), torch.zeros(count)
    for i, p in enumerate(text.pieces[:length]):
        if p.end <= p.start:
            continue
        written = segments[p.segment][p.start : p.end]
        start = p.start + len(written) - len(written.lstrip())
        word = next((k for k, (a, b) in enumerate(spans[p.segment]) if a <= start < b), None)
        if word is None:
            continue
        words[i] = word + p.segment * len(spans[0])
        if p.segment == 0 and sample.rationale is not None:
            marks[i] = float(sample.rationale[word])
    return words, marks
