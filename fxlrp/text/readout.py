"""Readout: the text in the attribution of a model that reads more than text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fxlrp.attribution import Attribution
from fxlrp.errors import FxlrpError
from fxlrp.text.attribution import Asked, TextAttribution
from fxlrp.text.encode import spell
from fxlrp.text.words import Piece


def of_tokens(a: Attribution, tokenizer: Any, labels: Sequence[str] = ()) -> list[TextAttribution]:
    """Return an attribution of each text among the explained inputs of any call, beside pictures or sounds.

    The texts are the first input that is token ids [B, T]; padding at their end is left out.

    labels: names of the classes; without them, class 0, class 1, …  Of several texts that one sample read, as
      captions of a picture, the same was asked.

        a = explainer(pixel_values=picture, input_ids=ids, attention_mask=mask)
        a.heatmap(), of_tokens(a, tokenizer)[0].words

    Raises FxlrpError if no token ids were explained, or labels has no name for a class that was.
    """
    texts = [(x, r) for x, r in zip(a.inputs, a.named.values(), strict=True) if _are_ids(x)]
    if not texts:
        raise FxlrpError(f"No explained input is token ids [B, T]; relevance is of {', '.join(a.named)}.")
    ids, relevance = texts[0]
    several = a.target is not None and a.target.ndim == 2
    matrices = relevance if several else relevance[:, None]  # [B, K, T]
    out = []
    for i, row in enumerate(ids.tolist()):
        while len(row) > 1 and row[-1] == tokenizer.pad_token_id != row[-2]:
            row.pop()
        text, pieces = _spelled(tokenizer, row)
        names = ["a score"]
        if a.target is not None:
            classes = a.target[i if len(a.target) == len(ids) else 0].reshape(-1).tolist()
            if labels and max(classes) >= len(labels):
                raise FxlrpError(f"Class {max(classes)} was explained, and labels has {len(labels)} names.")
            names = [labels[k] if labels else f"class {k}" for k in classes]
        scores = matrices[i, :, : len(row)].detach().float().cpu()
        out.append(TextAttribution([text], pieces, scores, [Asked(name) for name in names], rules=a.rules))
    return out


def _are_ids(x: Tensor) -> bool:
    """Tell whether an input looks like token ids: whole numbers in rows."""
    return x.ndim == 2 and not x.is_floating_point() and not x.is_complex()


def _spelled(tokenizer: Any, ids: Sequence[int]) -> tuple[str, list[Piece]]:
    """Return the text that ids stand for, and their pieces; special ones stand for no text."""
    special = set(tokenizer.all_special_ids)
    written, text = spell(tokenizer, [], [i for i in ids if i not in special])
    pieces, rest, at = [], iter(written), 0
    for i, token in zip(ids, tokenizer.convert_ids_to_tokens(list(ids)), strict=True):
        piece = Piece(str(token), 0, at, at) if i in special else next(rest)
        pieces.append(piece)
        at = piece.end
    return text, pieces
