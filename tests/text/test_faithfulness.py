"""The benchmark of text: data in the ERASER benchmark's format, and the area it is scored by."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import fxlrp
from benchmarks import text_faithfulness as bench

from .models import bert, wordpiece

DOCUMENTS = {
    "a.txt": "it is a dull film .\nnobody lives in the forest",
    "b.txt": "a gripping little dog " + "was " * 100,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("eraser")
    (place / "docs").mkdir()
    for name, text in DOCUMENTS.items():
        (place / "docs" / name).write_text(text)

    def span(name: str, start: int, end: int) -> dict:
        return {"docid": name, "start_token": start, "end_token": end, "start_sentence": -1, "end_sentence": -1}

    entries = [
        {
            "annotation_id": "a.txt",
            "classification": "NEG",
            "evidences": [[span("a.txt", 3, 5)], [span("a.txt", 6, 7)]],
        },
        {
            "annotation_id": "b.txt",
            "classification": "POS",
            "evidences": [[span("b.txt", 1, 2), span("b.txt", 90, 92)]],
        },
        {"annotation_id": "c.txt", "classification": "POS", "evidences": [[span("b.txt", 100, 101)]]},  # out of sight
        {"annotation_id": "d.txt", "classification": "POS", "evidences": []},
    ]
    (place / "val.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return place


def test_evidence_by_word(folder: Path) -> None:
    documents = bench.read_eraser(folder, "val")
    assert [[w for w, e in zip(words, marks, strict=True) if e] for words, marks in documents] == [
        ["dull", "film", "nobody"],
        ["gripping", "was", "was"],
        ["was"],
    ]
    with pytest.raises(fxlrp.FxlrpError, match=r"There is no .*test\.jsonl"):
        bench.read_eraser(folder, "test")


def test_area() -> None:
    truth = torch.tensor([True, False, True, False])
    assert bench.auprc(torch.tensor([4.0, 1, 3, 2]), truth) == 1
    assert bench.auprc(torch.tensor([3.0, 4, 1, 2]), truth) == pytest.approx(0.5 * 0.25 + 0.5 * (1 / 3 + 0.5) / 2)
    assert bench.auprc(torch.ones(4), truth) == pytest.approx(0.75)  # all in one step, from (0, 1) to (1, ½)


def test_documents_are_scored_as_far_as_the_model_sees(folder: Path) -> None:
    tokenizer = wordpiece()
    model = bert("SequenceClassification", tokenizer, id2label={0: "bad", 1: "good"})
    documents = bench.read_eraser(folder, "val")

    def told(text: str, target: int) -> torch.Tensor:
        """The evidence itself, token by token."""
        words, marks = next((w, m) for w, m in documents if " ".join(w) == text)
        spans = tokenizer(text, truncation=True, return_offsets_mapping=True)["offset_mapping"]
        ends = torch.tensor([len(w) + 1 for w in words]).cumsum(0)
        return torch.tensor([float(marks[int((ends <= s).sum())]) if e > s else 9.0 for s, e in spans])

    assert bench.rationales(told, model, tokenizer, documents) == [1, 1]
    found = bench.rationales(bench.by_rulebook(model, tokenizer, "attnlrp"), model, tokenizer, documents)
    assert len(found) == 2
    assert all(0 < area <= 1 for area in found)
