"""Answers: the rows asked about a batch of texts → an attribution of each text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fxlrp.attribution import Attribution
from fxlrp.engine.seeds import Question
from fxlrp.explainer import Explainer
from fxlrp.show.words import chance_of, scores_of
from fxlrp.text.attribution import Asked, TextAttribution
from fxlrp.text.encode import Encoded
from fxlrp.text.questions import Row

IDS = ("input_ids", "decoder_input_ids")


def answers(
    explainer: Explainer, inputs: Mapping[str, Tensor], texts: Sequence[Encoded], rows: Sequence[Sequence[Row]]
) -> list[TextAttribution]:
    """Return the attribution of each text for its rows.

    inputs: the model's, ids [B, T] and, for a decoder, [B, U].  rows: as many for each text, of the same outputs.
    """
    device = inputs["input_ids"].device
    by_row: list[Tensor] = [torch.empty(0)] * len(rows[0])
    asked = [[row.asked for row in of_text] for of_text in rows]
    for output in dict.fromkeys(row.output for row in rows[0]):
        places = [k for k, row in enumerate(rows[0]) if row.output == output]
        questions = [_question([of_text[k] for of_text in rows], device) for k in places]
        attributions = explainer.of(output or explainer.settings.output).ask(questions, **inputs)
        for k, attribution in zip(places, attributions, strict=True):
            relevance = attribution.named
            sides = (relevance.get(name, torch.zeros_like(inputs[name])) for name in IDS if name in inputs)
            by_row[k] = torch.cat([side.detach().float().cpu() for side in sides], 1)
            for i, of_text in enumerate(rows):
                asked[i][k] = _answered(of_text[k].asked, attribution, i)
    relevance_of_all = torch.stack(by_row, 1)  # [B, R, T (+ U)]
    width, total = inputs["input_ids"].shape[1], relevance_of_all.shape[2]
    out = []
    for text, scores, answered in zip(texts, relevance_of_all, asked, strict=True):
        length = len(text.pieces) - (total - width)  # without padding
        matrix = torch.cat([scores[:, :length], scores[:, width:]], 1)
        rules = explainer.rulebook.name
        out.append(TextAttribution(text.segments, text.pieces, matrix, answered, text.dropped, rules))
    return out


def _answered(asked: Asked, a: Attribution, index: int) -> Asked:
    """What was asked of a text, with what the model says of it and the contrast that was meant."""
    contrast = None if a.contrast is None else asked.contrast if asked.contrast != "default" else str(a.contrast)
    chance, scores = chance_of(a, index), scores_of(a)
    score = float(scores[index, 0]) if chance is None and scores is not None else None
    return replace(asked, contrast=contrast, probability=chance, score=score)


def _question(rows: Sequence[Row], device: torch.device) -> Question:
    """Make one question of the same row of each text, its targets and positions [B] beside each other."""
    first = rows[0]
    target = first.target if callable(first.target) else torch.tensor([r.target for r in rows], device=device)
    at = None if first.at is None else torch.tensor([r.at for r in rows], device=device)
    return Question(target, None if callable(first.target) else first.contrast, at)
