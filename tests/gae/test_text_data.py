"""What people marked in a text, in every form that data sets have it; and texts of tables and of ERASER's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fxlrp import FxlrpError
from fxlrp.data.texts import open_texts
from fxlrp.gae.texts import Sample
from fxlrp.gae.texts.data import Texts, marked

TEXT = "it  is a dull film .\nnobody lives here"
WORDS = ["it", "is", "a", "dull", "film", ".", "nobody", "lives", "here"]


def words(rationale: Any) -> list[str] | None:
    marks = marked(rationale, TEXT)
    return None if marks is None else [w for w, m in zip(WORDS, marks, strict=True) if m]


FORMS: dict[str, tuple[Any, list[str] | None]] = {
    "marks": ([0, 0, 0, 1, 1, 0, 0, 0, 1], ["dull", "film", "here"]),
    "truth": ([True, *[False] * 8], ["it"]),
    "shares of people": ([0, 0, 0, 0.66, 0.33, 0, 0, 0, 0], ["dull"]),
    "ERASER's": (
        [[{"start_token": 3, "end_token": 5}], [{"start_token": 6, "end_token": 7}]],
        ["dull", "film", "nobody"],
    ),
    "characters": ([[9, 13]], ["dull"]),
    "a part of a word": ([[10, 11], [34, 38]], ["dull", "here"]),
    "a span by itself": ([9, 18], ["dull", "film"]),
    "named characters": ([{"start": 0, "end": 2}], ["it"]),
    "words": (["dull film", "here"], ["dull", "film", "here"]),
    "a word": ("nobody", ["nobody"]),
    "none": ([0] * 9, None),
    "no span": ([], None),
}


@pytest.mark.parametrize("form", FORMS)
def test_rationales_of_every_form(form: str) -> None:
    rationale, expected = FORMS[form]
    assert words(rationale) == expected


@pytest.mark.parametrize(
    ("rationale", "said"),
    [
        ([1, 0, 1], "3 marks for 9 words"),
        ([[9, 99]], "characters 9 to 99 are not among its 38"),
        ({"start_token": 8, "end_token": 10}, "words 8 to 10 are not among its 9"),
        ({"start_token": None, "end_token": 1}, "words None to 1 are no numbers of words"),
        ("boring", "'boring' is not in the text"),
        ("", "is not in the text"),
        ([{"from": 1}], "a dict is neither marks of words nor spans"),
        (3.5, "a float is neither"),
    ],
)
def test_odd_rationales(rationale: Any, said: str) -> None:
    with pytest.raises(FxlrpError, match=said):
        marked(rationale, TEXT)
    with pytest.raises(FxlrpError, match=f"The rationale of sample 1 can't be read: .*{said}"):
        Texts([TEXT, {"text": TEXT, "rationale": rationale}])[1]


def test_items() -> None:
    full = {"text": ["c", "d"], "label": "x", "continuation": " e", "rationale": [0, 1]}
    data = Texts(["a", ("b", 1), full, Sample("f")])
    assert list(map(data.__getitem__, range(4))) == [
        Sample("a"),
        Sample("b", label=1),
        Sample("c d", label="x", continuation=" e", rationale=(False, True)),
        Sample("f"),
    ]
    assert len(Texts(["a", "b", "c"], limit=2)) == 2
    for dataset, said in (([], "empty"), ("a text", "is a str"), ({"a"}, "is a set")):
        with pytest.raises(FxlrpError, match=said):
            Texts(dataset)
    for item, said in ((3, "text of sample 0 is a int"), ("  ", "Sample 0 is empty"), (("a", 0, 1), None)):
        if said:
            with pytest.raises(FxlrpError, match=said):
                Texts([item])[0]
    with pytest.raises(FxlrpError, match="pair of sample 0 is a int"):
        Texts([{"text": "a", "pair": 1}])[0]


ROWS = [
    {"review": "a dull film", "label": 0, "rationale": [[2, 6]], "id": "n1", "completion": None},
    {"review": 'so "gripping"', "label": 1, "rationale": [[3, 13]], "id": "p1", "completion": " it is"},
]
EXPECTED = [
    Sample("a dull film", label=0, rationale=(False, True, False), name="n1"),
    Sample('so "gripping"', label=1, rationale=(False, True), name="p1", continuation=" it is"),
]


def written(folder: Path, kind: str) -> Path:
    """A table of the rows."""
    file = folder / f"reviews.{kind}"
    if kind == "jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
        return file
    if kind == "csv":
        import csv

        with file.open("w", newline="") as opened:
            table = csv.DictWriter(opened, list(ROWS[0]))
            table.writeheader()
            table.writerows({**row, "rationale": json.dumps(row["rationale"])} for row in ROWS)
        return file
    pa = pytest.importorskip("pyarrow")
    made = pa.Table.from_pylist(ROWS)
    if kind == "parquet":
        import pyarrow.parquet

        pyarrow.parquet.write_table(made, file)
        return file
    file.mkdir()
    with pa.ipc.new_stream(str(file / "data.arrow"), made.schema) as stream:
        stream.write_table(made)
    (file / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data.arrow"}]}))
    return file


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet", "saved by datasets"])
def test_tables(kind: str, tmp_path: Path) -> None:
    data = Texts(open_texts(str(written(tmp_path, kind))))
    assert [data[i] for i in range(len(data))] == EXPECTED


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", b"", "a.jsonl has no rows"),
        ("a.jsonl", b"\n \n", "a.jsonl has no rows"),
        ("a.csv", b"text,label\n", "a.csv has no rows"),
        ("a.jsonl", b'{"text": "caf\xe9"}\n', "Row 0 of .*a.jsonl can't be read: 'utf-8' codec"),
        ("a.jsonl", b"hello\n", "Row 0 of .*a.jsonl can't be read: Expecting value"),
        ("a.csv", b'text,rationale\na dull film,"[[2, 6"\n', "The rationale of row 0 of .*a.csv is no JSON"),
    ],
)
def test_files_that_cannot_be_read(name: str, content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FxlrpError, match=said):
        Texts(open_texts(str(tmp_path / name)))[0]


def test_other_columns_and_odd_rows(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"said": ["a", "b"], "y": 1}\n{"said": 3}\n{"other": "c"}\n[1]\n{\n')
    data = Texts(open_texts(str(file), "said", "y"))
    assert data[0] == Sample("a b", label=1)
    odd = ("text of sample 1 is a int", "Row 2 of .* has no 'said'", "Row 3 is no", "Row 4 of .* can't be read")
    for i, said in enumerate(odd, 1):
        with pytest.raises(FxlrpError, match=said):
            data[i]
    with pytest.raises(FxlrpError, match="Which column"):
        open_texts(str(file))
    with pytest.raises(FxlrpError, match=r"There is no .*b\.jsonl"):
        open_texts(str(tmp_path / "b.jsonl"))
    (tmp_path / "texts" / "good").mkdir(parents=True)
    (tmp_path / "texts" / "good" / "a.txt").write_text("gripping\n")
    assert Texts(open_texts(str(tmp_path / "texts")))[0] == Sample("gripping", label="good", name="good/a.txt")
    (tmp_path / "made.py").write_text("def texts():\n    return [('a', 1)]\n")
    assert Texts(open_texts(f"{tmp_path / 'made.py'}:texts"))[0] == Sample("a", label=1)


def eraser(folder: Path, *entries: dict[str, Any]) -> Path:
    """A split in ERASER's format, two documents beside it."""
    (folder / "docs").mkdir()
    (folder / "docs" / "a.txt").write_text("it is a dull film .\nnobody lives here")
    (folder / "docs" / "b.txt").write_text("a gripping little dog")
    (folder / "secret.txt").write_text("secret")
    (folder / "val.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return folder / "val.jsonl"


def span(document: str, start: int, end: int) -> dict[str, Any]:
    return {"docid": document, "start_token": start, "end_token": end, "start_sentence": -1, "end_sentence": -1}


def test_erasers_format(tmp_path: Path) -> None:
    both = [[span("a.txt", 3, 5)], [span("b.txt", 1, 2)]]
    file = eraser(
        tmp_path,
        {"annotation_id": "a.txt", "classification": "NEG", "evidences": both[:1], "query": "Is it good?"},
        {"annotation_id": "two", "classification": "NEG", "evidences": both},
        {"annotation_id": "b.txt", "classification": "POS", "evidences": []},
        {"annotation_id": "c", "docids": ["b.txt"], "evidences": []},
    )
    data = Texts(open_texts(str(file)))
    one, two, three, four = (data[i] for i in range(4))
    marks = [False] * 9
    marks[3] = marks[4] = True
    assert one == Sample((tmp_path / "docs" / "a.txt").read_text(), label="NEG", rationale=tuple(marks), name="a.txt")
    assert two.text.split() == [*one.text.split(), "a", "gripping", "little", "dog"]
    assert two.rationale == (*marks, False, True, False, False)
    assert (three.text, three.rationale, three.label) == ("a gripping little dog", None, "POS")
    assert (four.text, four.label) == ("a gripping little dog", None)
    with pytest.raises(FxlrpError, match=r"has splits val; name one, as .*val\.jsonl"):
        open_texts(str(tmp_path))


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"annotation_id": "x", "evidences": [[span("c.txt", 0, 1)]]}, "speaks of .*c.txt, which is not there"),
        ({"annotation_id": "../secret.txt", "evidences": []}, "speaks of .*secret.txt, which is not there"),
        ({"annotation_id": "a.txt", "evidences": [[span("a.txt", 0, 99)]]}, "Line 1 of .*: words 0 to 99"),
        ({"annotation_id": "a.txt"}, "Line 1 of .* is no annotation of ERASER's: KeyError"),
        ({"evidences": [3]}, "Line 1 of .* is no annotation"),
    ],
)
def test_odd_annotations(entry: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(FxlrpError, match=said):
        open_texts(str(eraser(tmp_path, entry)))
