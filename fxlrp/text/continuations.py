"""Continuations: why a language model writes each token that it does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from fxlrp.errors import FxlrpError
from fxlrp.explainer import Explainer, convert
from fxlrp.methods import DEFAULT
from fxlrp.rules.registry import Rulebook
from fxlrp.text.answers import answers
from fxlrp.text.attribution import Asked, TextAttribution
from fxlrp.text.encode import Encoded, batched, encode, limit_of
from fxlrp.text.questions import NOT_NAMED, Name, Row, contrast_name, word_of
from fxlrp.text.tasks import Task, decoder, ends_of, find_vocabulary_word, probe, run, start_of_decoder

WithTokens = Callable[[Sequence[int]], tuple[Encoded, dict[str, Tensor]]]


def generate(
    model: nn.Module,
    tokenizer: Any,
    prompt: str,
    *,
    continuation: str | None = None,
    max_new_tokens: int = 20,
    contrast: Name | None = "default",
    rules: str | Rulebook = DEFAULT,
    truncate: bool = False,
) -> TextAttribution:
    """Explain why each token of a continuation was written, all from one forward pass.

    There is a row for each token, over the prompt (and the source, for an encoder–decoder) and the tokens before it.

    continuation: the text whose tokens are explained; without it the model writes up to `max_new_tokens`, each its
      likeliest next token, until it ends.

    Raises FxlrpError as `explain` does, and for a model that writes no text.
    """
    if max_new_tokens < 1:
        raise FxlrpError(f"max_new_tokens={max_new_tokens} is not a number of tokens; give at least 1.")
    explainer = model if isinstance(model, Explainer) else convert(model, rules=rules)
    plain = explainer.model
    text = encode(plain, tokenizer, prompt, None, truncate)
    task, inputs, _ = probe(plain, tokenizer, batched(plain, tokenizer, [text]), explainer.settings.output)
    if task not in (Task.NEXT, Task.DECODED):
        raise FxlrpError(f"The model writes no text, its output is {task.value}; use fxlrp.text.explain.")
    begin = [start_of_decoder(plain, tokenizer)] if task is Task.DECODED else []

    def with_tokens(ids: Sequence[int]) -> tuple[Encoded, dict[str, Tensor]]:
        """Return the text and the model's inputs with `ids` written behind the prompt."""
        whole = text.extended(tokenizer, ids, begin)
        return whole, decoder(plain, inputs, [*begin, *ids]) if begin else batched(plain, tokenizer, [whole])

    if continuation is None:
        new = _written(plain, tokenizer, with_tokens, max_new_tokens)
    else:
        new = tokenizer(continuation, add_special_tokens=False, verbose=False)["input_ids"]
        if not new:
            raise FxlrpError("The continuation is empty; give at least one word, or leave it out to have one written.")
    whole, inputs_with_new = with_tokens(new)
    if task is Task.NEXT and len(whole.ids) > (most := limit_of(plain, tokenizer)):
        raise FxlrpError(
            f"Prompt and continuation have {len(whole.ids)} tokens, the model takes {most}; ask for fewer."
        )
    logits = run(plain, inputs_with_new)["logits"][0]
    rows = _rows(tokenizer, whole, new, logits.shape[-1], contrast)
    return answers(explainer, inputs_with_new, [whole], [rows])[0]


def _written(model: nn.Module, tokenizer: Any, with_tokens: WithTokens, most: int) -> list[int]:
    """Let the model write tokens, each its likeliest next one, until it ends or there are as many as `most`."""
    new: list[int] = []
    ends = ends_of(model, tokenizer)
    while len(new) < most and not ends.intersection(new):
        new.append(int(run(model, with_tokens(new)[1])["logits"][0, -1].argmax()))
    return new


def _rows(tokenizer: Any, whole: Encoded, new: Sequence[int], size: int, contrast: Any) -> list[Row]:
    """Ask why each of the new tokens was written, of a vocabulary of this size.

    Raises FxlrpError for a contrast that is no token, or among the new ones.
    """
    against = contrast
    if contrast not in NOT_NAMED:
        against = find_vocabulary_word(contrast, tokenizer, size)
        if against in new:
            raise FxlrpError(f"contrast={contrast!r} is among the tokens explained; set them against another.")
    against_name = contrast_name(against, lambda i: word_of(tokenizer, i))
    first = len(whole.pieces) - len(new)
    return [
        Row(token, against, k - len(new) - 1, Asked(whole.text_of(first + k), against_name, token=first + k))
        for k, token in enumerate(new)
    ]
