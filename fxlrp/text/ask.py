"""Ask what spoke for a model's output: texts and what is asked about them → attributions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from fxlrp.errors import FxlrpError
from fxlrp.explainer import Explainer, convert
from fxlrp.methods import DEFAULT
from fxlrp.rules.registry import Rulebook
from fxlrp.text.answers import answers
from fxlrp.text.attribution import TextAttribution
from fxlrp.text.encode import Encoded, batched, encode
from fxlrp.text.questions import Name, Score, rows_of
from fxlrp.text.tasks import Task, probe, start_of_decoder

BATCH = 16


def explain(
    model: nn.Module,
    tokenizer: Any,
    text: str | Sequence[str],
    *,
    pair: str | Sequence[str] | None = None,
    target: Name | Score | Sequence[Name] | None = None,
    contrast: Name | None = "default",
    rules: str | Rulebook = DEFAULT,
    position: Name | None = None,
    truncate: bool = False,
) -> Any:
    """Explain what in a text, or in each of several, spoke for what the model says.

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

    Returns a TextAttribution, of relevance [R, N] for R things asked and N tokens, or a list of them for a list.

    Raises FxlrpError: a tokenizer that isn't fast, a text that is empty or too long, names that the model does not
    know, a model without scores in its output, and what `convert` raises.
    """
    if not isinstance(text, Sequence) or (not isinstance(text, str) and not text):
        raise FxlrpError("Give a text or a list of at least one.")
    texts = [text] if isinstance(text, str) else list(text)
    pairs = [pair] * len(texts) if pair is None or isinstance(pair, str) else list(pair)
    if len(pairs) != len(texts):
        raise FxlrpError(f"There are {len(texts)} texts and {len(pairs)} pairs; give one for each text.")
    explainer = model if isinstance(model, Explainer) else convert(model, rules=rules)
    encoded = [encode(explainer.model, tokenizer, t, p, truncate) for t, p in zip(texts, pairs, strict=True)]
    attributions: list[TextAttribution] = []
    while encoded:
        count = len(encoded)
        if "attention_mask" not in encoded[0].fields:  # nothing would tell the padding from the text
            count = next((i for i, e in enumerate(encoded) if len(e.ids) != len(encoded[0].ids)), count)
        count = min(count, BATCH)
        attributions += explain_encoded(explainer, tokenizer, encoded[:count], target, contrast, position)
        encoded = encoded[count:]
    return attributions[0] if isinstance(text, str) else attributions


def explain_encoded(
    explainer: Explainer,
    tokenizer: Any,
    texts: list[Encoded],
    target: Any,
    contrast: Any,
    position: Name | None,
) -> list[TextAttribution]:
    """Explain texts together if each is answered as it would be alone, else one by one."""

    def one_by_one() -> list[TextAttribution]:
        return [a for t in texts for a in explain_encoded(explainer, tokenizer, [t], target, contrast, position)]

    model = explainer.model
    task, inputs, outputs = probe(model, tokenizer, batched(model, tokenizer, texts), explainer.settings.output)
    if not padding_is_ignored(explainer, tokenizer, texts, outputs):
        return one_by_one()
    rows = [
        rows_of(task, model, tokenizer, text, {n: t[i] for n, t in outputs.items()}, target, contrast, position)
        for i, text in enumerate(texts)
    ]
    alike = len({tuple(row.output for row in of_text) for of_text in rows}) == 1
    if len(texts) > 1 and (not alike or task is Task.SPAN):  # a softmax over positions would see the padding
        return one_by_one()
    if task is Task.DECODED:
        texts = [text.extended(tokenizer, (), [start_of_decoder(model, tokenizer)]) for text in texts]
    return answers(explainer, inputs, texts, rows)


def padding_is_ignored(
    explainer: Explainer, tokenizer: Any, texts: Sequence[Encoded], outputs: Mapping[str, Tensor]
) -> bool:
    """Tell whether the model says the same of the shortest text alone as among the others, where it is padded."""
    lengths = [len(text.ids) for text in texts]
    i = lengths.index(min(lengths))
    if lengths[i] == max(lengths):
        return True
    inputs = batched(explainer.model, tokenizer, [texts[i]])
    alone = probe(explainer.model, tokenizer, inputs, explainer.settings.output)[2]
    pairs = [(t[0], outputs[name][i][: len(t[0])]) for name, t in alone.items() if "logits" in name]
    return all(bool((a - b).abs().max() <= 1e-3 * a.abs().max()) for a, b in pairs)
