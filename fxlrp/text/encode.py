"""Encoding: texts → token ids, each token with its place in the text, padded to batches."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from fxlrp.errors import FxlrpError
from fxlrp.text.words import Piece

UNLIMITED = 10**6  # tokenizers that know no limit name one beyond any


@dataclass
class Encoded:
    """One text (or pair) as a model takes it.

    segments: the text, then the pair or continuation.
    ids: the token ids.  pieces: where each token stands in the segments.
    fields: what the tokenizer made beside the ids, of the same length, by name.
    dropped: how many tokens were left out to fit the model.
    """

    segments: list[str]
    ids: list[int]
    pieces: list[Piece]
    fields: dict[str, list[int]] = field(default_factory=dict)
    dropped: int = 0

    def find(self, words: str, segments: Sequence[int]) -> tuple[int, int] | None:
        """Find words in these segments, in any case of letters: the first and last token of the first place."""
        for s in segments:
            at = self.segments[s].lower().find(words.lower().strip())
            until = at + len(words.strip())
            if at >= 0 and (
                inside := [
                    i for i, p in enumerate(self.pieces) if p.segment == s and max(p.start, at) < min(p.end, until)
                ]
            ):
                return inside[0], inside[-1]
        return None

    def extended(self, tokenizer: Any, ids: Sequence[int], begin: Sequence[int] = ()) -> Encoded:
        """Return the text with tokens behind it.

        ids: the tokens, which go on where the text ends.  begin: tokens that stand for no text; with them `ids` are a
          segment by themselves, behind them.
        """
        *before, last = [*self.segments, ""] if begin else self.segments
        segment, at = len(before), len(last)
        pieces, written = spell(tokenizer, list(begin) or self.ids[-1:], ids)
        pieces = [Piece(p.token, segment, at + p.start, at + p.end) for p in pieces]
        pieces = [Piece(str(t), segment, 0, 0) for t in tokenizer.convert_ids_to_tokens(list(begin))] + pieces
        return replace(
            self,
            segments=[*before, last + written],
            ids=[*self.ids, *begin, *ids],
            pieces=[*self.pieces, *pieces],
            fields={name: [*values, *(values[-1:] * len(pieces))] for name, values in self.fields.items()},
        )

    def text_of(self, token: int) -> str:
        """Return the characters a token stands for, or its name in the tokenizer where there are none to see."""
        p = self.pieces[token]
        text = self.segments[p.segment][p.start : p.end]
        if text.isspace():
            return "↵" if "\n" in text else "␣"
        shown = text.strip() if text.strip().isprintable() and text else p.token
        return shown if shown.isprintable() else ascii(shown)  # a terminal would obey it


def spell(tokenizer: Any, before: Sequence[int], ids: Sequence[int]) -> tuple[list[Piece], str]:
    """Return the pieces of `ids` written behind `before`, and the text they make together."""

    def written(count: int) -> str:
        return tokenizer.decode([*before, *ids[:count]], clean_up_tokenization_spaces=False)

    start, pieces = len(written(0)), []
    whole = written(len(ids))[start:]
    at = 0
    for i, token in enumerate(tokenizer.convert_ids_to_tokens(list(ids))):
        so_far = written(i + 1)[start:]
        end = len(whole) if i + 1 == len(ids) else at if so_far.endswith("\ufffd") else min(len(so_far), len(whole))
        pieces.append(Piece(str(token), 0, at, max(at, end)))
        at = max(at, end)
    return pieces, whole


def encode(model: nn.Module, tokenizer: Any, text: str, pair: str | None, truncate: bool) -> Encoded:
    """Cut a text (and its pair) into tokens for a model.

    Raises FxlrpError for a tokenizer that does not say which characters its tokens stand for, an empty text, and one
    over the model's limit unless `truncate`, which leaves out what is too much, with a warning.
    """
    if not isinstance(text, str) or not (pair is None or isinstance(pair, str)):
        raise FxlrpError(f"A text is a str, not {type(text if not isinstance(text, str) else pair).__name__}.")
    if not getattr(tokenizer, "is_fast", False):
        raise FxlrpError(
            f"{type(tokenizer).__name__} does not say which characters its tokens stand for; load the fast tokenizer "
            "of this model (AutoTokenizer.from_pretrained(…, use_fast=True))."
        )
    if not text.strip():
        raise FxlrpError("The text is empty; give at least one word.")
    limit = limit_of(model, tokenizer)
    options: dict[str, Any] = {"return_offsets_mapping": True, "verbose": False}
    tokenized = tokenizer(text, pair, **options)
    dropped = len(tokenized["input_ids"]) - limit
    if dropped > 0:
        if not truncate:
            raise FxlrpError(
                f"The text has {limit + dropped} tokens, the model takes {limit}: shorten it, or truncate it "
                "(truncate=True, --truncate)."
            )
        tokenized = tokenizer(text, pair, **options, truncation=True, max_length=limit)
        warnings.warn(f"the last {dropped} tokens are left out: the model takes {limit}.", stacklevel=3)
    offsets, sequences = tokenized["offset_mapping"], tokenized.sequence_ids(0)
    tokens = tokenizer.convert_ids_to_tokens(tokenized["input_ids"])
    pieces = [
        Piece(str(token), sequence or 0, *(span if sequence is not None else (0, 0)))
        for token, sequence, span in zip(tokens, sequences, offsets, strict=True)
    ]
    if not any(p.end > p.start for p in pieces):
        raise FxlrpError("The tokenizer makes no token of this text.")
    takes = accepted(model)
    fields = {
        name: list(values)
        for name, values in tokenized.items()
        if name in takes and name not in ("input_ids", "offset_mapping") and len(values) == len(pieces)
    }
    segments = [text] if pair is None else [text, pair]
    return Encoded(segments, list(tokenized["input_ids"]), pieces, fields, max(dropped, 0))


def limit_of(model: nn.Module, tokenizer: Any) -> int:
    """Return how many tokens the model takes, as far as it or its tokenizer says."""
    config = getattr(model, "config", None)
    limits = [getattr(tokenizer, "model_max_length", None), getattr(config, "max_position_embeddings", None)]
    return min((n for n in limits if isinstance(n, int) and 0 < n < UNLIMITED), default=UNLIMITED)


def accepted(model: nn.Module) -> set[str]:
    """Return the names of the arguments that the model's forward takes."""
    return set(inspect.signature(model.forward).parameters)


def batched(model: nn.Module, tokenizer: Any, texts: Sequence[Encoded]) -> dict[str, Tensor]:
    """Make the model's keyword arguments [B, T] of texts, the shorter ones padded on the right."""
    weight = next(model.parameters(), torch.empty(0))
    length = max(len(t.ids) for t in texts)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0

    def rows(values: list[list[int]], fill: int) -> Tensor:
        padded = [[*v, *[fill] * (length - len(v))] for v in values]
        return torch.tensor(padded, dtype=torch.int64, device=weight.device)

    out = {"input_ids": rows([t.ids for t in texts], pad)}
    for name in texts[0].fields:
        out[name] = rows([t.fields[name] for t in texts], 0)
    return out
