"""Texts with what is known of them: tables whose columns have usual names, and the ERASER benchmark's data sets."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fxlrp.data.sources import Columns, Files, Items, Source, open_source, take
from fxlrp.errors import FxlrpError
from fxlrp.gae.texts.data import Sample, marked

USUAL = {
    "pair": ("pair", "text_pair", "sentence2", "hypothesis"),
    "continuation": ("continuation", "completion", "target_text"),
    "rationale": ("rationale", "rationales", "evidence", "evidences", "spans", "highlights"),
    "name": ("name", "key", "id", "annotation_id"),
}


def open_texts(spec: str, column: str | None = None, label: str | None = None) -> Any:
    """Open the texts that `spec` names, as a data set for `fxlrp.gae.texts.evaluate`.

    spec: a .jsonl, .csv or .parquet, a folder that Hugging Face's `datasets` saved, or one of .txt files; a split of a
      data set in ERASER's format (movies/val.jsonl, with the documents beside it in movies/docs); or `module:factory`.
    column, label: the columns of a table that hold texts and labels, if they have no usual name.  A pair, a
      continuation, a rationale (of what kinds says `fxlrp.gae.texts.data.marked`) and a name have columns so called.

    Raises FxlrpError if there is none such, and for a data set in ERASER's format that lacks documents.
    """
    path = Path(spec)
    if path.is_dir() and (path / "docs").is_dir():
        splits = sorted(path.glob("*.jsonl"))
        named = ", ".join(f.stem for f in splits) or "none"
        raise FxlrpError(f"{path} has splits {named}; name one, as {splits[0] if splits else path / 'val.jsonl'}.")
    if path.suffix == ".jsonl" and (path.parent / "docs").is_dir() and path.is_file():
        return _eraser(path)
    source = open_source(spec, Columns(column, label), texts=True)
    if isinstance(source, Items):
        return source.dataset
    return _Taken(source) if isinstance(source, Files) else _Rows(source)


class _Taken:
    """Texts of files, each with the label that its folder is."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, i: int) -> Mapping[str, Any]:
        sample = take(self.source, i)
        if sample.error is not None:
            raise FxlrpError(f"{sample.key} can't be read: {sample.error}")
        return {"text": sample.value, "label": sample.label, "name": sample.key}


class _Rows:
    """Rows of a table."""

    def __init__(self, source: Any) -> None:
        self.source = source
        source.columns |= {what: name for what in USUAL if (name := _usual(what, source.present)) is not None}

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, i: int) -> Mapping[str, Any]:
        try:
            row = self.source._latest(i)
            label = self.source.key(i)[1]
            text = row[self.source.columns["sample"]]
        except KeyError as error:
            raise FxlrpError(f"Row {i} of {self.source.files[0]} has no {error}.") from error
        except ValueError as error:  # of json, and of bytes that are no text
            raise FxlrpError(f"Row {i} of {self.source.files[0]} can't be read: {error}.") from error
        if isinstance(label, int) and 0 <= label < len(self.source.names):
            label = self.source.names[label]
        values = {what: row[name] or None for what in USUAL if (name := _usual(what, list(row))) is not None}
        rationale = values.get("rationale")
        if isinstance(rationale, str) and rationale[:1] in ("[", "{"):  # in a CSV
            try:
                rationale = json.loads(rationale)
            except ValueError as error:
                raise FxlrpError(f"The rationale of row {i} of {self.source.files[0]} is no JSON: {error}.") from error
        return {**values, "text": text, "label": label, "rationale": rationale}


def _usual(what: str, present: Sequence[str]) -> str | None:
    return next((c for usual in USUAL[what] for c in present if c.lower() == usual), None)


def _eraser(file: Path) -> list[Sample]:
    """Read a split in ERASER's format (DeYoung et al. 2020, 1911.03429): its documents, classes and evidences.

    What is asked about a document, its `query`, is left out: in the reviews it is one sentence for all.
    """
    return [_annotated(file, number, line) for number, line in enumerate(_lines(file))]


def _lines(file: Path) -> list[str]:
    try:
        return [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise FxlrpError(f"{file} is not text in UTF-8 ({error.reason}); save it as that.") from error


def _annotated(file: Path, number: int, line: str) -> Sample:
    """Return one annotation as a sample, several documents one behind the other.  Raises FxlrpError if it is odd."""
    try:
        entry = json.loads(line)
        spans = [span for group in entry["evidences"] for span in group]
        named = [span["docid"] for span in spans] + list(entry.get("docids") or ())
        documents = list(dict.fromkeys(map(str, named))) or [str(entry["annotation_id"])]
        texts = [_document(file, name) for name in documents]
        marks: list[bool] = []
        for name, text in zip(documents, texts, strict=True):
            mine = [s for s in spans if str(s["docid"]) == name]
            marks += (marked(mine, text) if mine else None) or [False] * len(text.split())
    except FxlrpError as error:
        raise FxlrpError(f"Line {number + 1} of {file} can't be read: {error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FxlrpError(f"Line {number + 1} of {file} is no annotation of ERASER's: {error!r}.") from error
    label, name = entry.get("classification"), entry.get("annotation_id")
    rationale = tuple(marks) if any(marks) else None
    return Sample("\n".join(texts), None, None if label is None else str(label), None, rationale, name)


def _document(file: Path, name: str) -> str:
    folder = (file.parent / "docs").resolve()
    document = (folder / name).resolve()
    if not document.is_file() or not document.is_relative_to(folder):
        raise FxlrpError(f"it speaks of {document}, which is not there.")
    return document.read_text(encoding="utf-8", errors="replace")
