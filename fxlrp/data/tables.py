"""Tables: .parquet, .csv and .jsonl, and what Hugging Face's `datasets` saved, a row for each sample."""

from __future__ import annotations

import csv
import functools
import io
import json
import sys
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fxlrp.data.sources import Columns, Kind, Latest, decoded
from fxlrp.errors import FxlrpError
from fxlrp.inputs.limits import MOST_JSON, read_json

USUAL = {
    "texts": ("text", "sentence", "review", "content"),
    "pictures": ("image", "img", "picture", "pixel_values", "file", "path"),
    "label": ("label", "labels", "class", "target"),
    "key": ("key", "id", "__key__", "name"),
}
MOST_FIELD = 2**24


def arrow() -> Any:
    """Import pyarrow, with its readers.  Raises FxlrpError where it is not installed."""
    try:
        import pyarrow
        import pyarrow.dataset
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError as error:
        raise FxlrpError("Data sets need pyarrow: pip install 'fxlrp[data]'.") from error
    return pyarrow


class _Rows:
    """What tables have in common: columns by their usual names, and a row as key, label and value."""

    files: Sequence[Path]
    names: Sequence[str] = ()

    def _choose(self, present: Sequence[str], columns: Columns, texts: bool) -> None:
        """Choose the columns.  Raises FxlrpError for one that is not there."""
        self.kind: Kind = "texts" if texts else "pictures"
        self.latest, self.present = Latest(), tuple(present)
        asked = {"sample": columns.sample, "label": columns.label, "key": columns.key}
        for what, name in asked.items():
            if name is not None and name not in present:
                raise FxlrpError(f"{self.files[0]} has no column {name} for the {what}; it has {', '.join(present)}.")
        usual = {"sample": USUAL[self.kind], "label": USUAL["label"], "key": USUAL["key"]}
        names = {
            what: name or next((c for u in usual[what] for c in present if c.lower() == u), None)
            for what, name in asked.items()
        }
        if names["sample"] is None:
            listed = ", ".join(present)
            raise FxlrpError(f"Which column of {self.files[0]} holds the {self.kind}? Name it (--column): {listed}.")
        self.columns = {what: name for what, name in names.items() if name is not None}

    def _row(self, index: int) -> Mapping[str, Any]:
        raise NotImplementedError

    def _latest(self, index: int) -> Mapping[str, Any]:
        return self.latest.of(index, self._row)

    def key(self, index: int) -> tuple[str, str | int | None]:
        """Return the key, the row's number without a column for it, and the label."""
        row = self._latest(index)
        label = row.get(self.columns.get("label", ""))
        if isinstance(label, str) and label.isdigit():
            label = int(label)
        return str(row.get(self.columns.get("key", ""), index)), label if isinstance(label, str | int) else None

    def value(self, index: int) -> Any:
        """Return the picture, text or tensor of a row."""
        value = self._latest(index)[self.columns["sample"]]
        if self.kind == "texts":
            if not isinstance(value, str):
                raise FxlrpError(f"Row {index} holds {'nothing' if value is None else type(value).__name__}, no text.")
            return value
        if isinstance(value, Mapping):  # as datasets stores pictures
            value = value.get("bytes") or value.get("path")
        if isinstance(value, bytes):
            return decoded(value, "", f"The picture of row {index}")
        if isinstance(value, str):
            path = self.files[0].parent / value
            if not path.is_file():
                raise FxlrpError(f"There is no file {path}.")
            return decoded(path, path.suffix)
        if isinstance(value, list):
            return torch.from_numpy(np.asarray(value, dtype=np.float32))
        raise FxlrpError(f"Row {index} holds {'nothing' if value is None else type(value).__name__}, no picture.")


class Table(_Rows):
    """Rows of .parquet files; one row group at a time is held, of the columns that are needed."""

    def __init__(self, files: Sequence[Path], columns: Columns, texts: bool) -> None:
        parquet = arrow().parquet
        self.files, self.groups = files, []
        counts = []
        for number, file in enumerate(files):
            try:
                about = parquet.read_metadata(file)
            except Exception as error:
                raise FxlrpError(f"{file} is no Parquet file that can be read ({error}).") from error
            self.groups += [(number, g) for g in range(about.num_row_groups)]
            counts += [about.row_group(g).num_rows for g in range(about.num_row_groups)]
        self.starts = array("q", accumulate(counts, initial=0))
        schema = parquet.read_schema(files[0])
        self._choose(schema.names, columns, texts)
        self.names = _class_names((schema.metadata or {}).get(b"huggingface"), self.columns.get("label"))

    groups: list[tuple[int, int]]

    def __len__(self) -> int:
        return self.starts[-1]

    def _row(self, index: int) -> Mapping[str, Any]:
        at = bisect_right(self.starts, index) - 1
        number, group = self.groups[at]
        table = _row_group(self.files[number], group, tuple(self.columns.values()))
        return {name: table[name][index - self.starts[at]].as_py() for name in self.columns.values()}


@functools.lru_cache(2)
def _row_group(file: Path, group: int, columns: tuple[str, ...]) -> Any:
    return arrow().parquet.ParquetFile(file).read_row_group(group, columns=list(columns))


class Lines(_Rows):
    """Rows of .csv and .jsonl files, which are read through once to know where each row stands."""

    def __init__(self, files: Sequence[Path], columns: Columns, texts: bool) -> None:
        self.files, self.is_csv = files, files[0].suffix.lower() == ".csv"
        self.offsets, counts, self.headers = array("q"), [], []
        for file in files:
            before = len(self.offsets)
            with file.open("rb") as opened:
                self.headers.append(next(_csv_rows(opened), []) if self.is_csv else [])
                where = opened.tell()
                ends = _csv_ends(opened) if self.is_csv else _line_ends(opened)
                for end, is_empty in ends:
                    if not is_empty:
                        self.offsets.extend((where, end))
                    where = end
            counts.append((len(self.offsets) - before) // 2)
        self.starts = array("q", accumulate(counts, initial=0))
        if not len(self):
            raise FxlrpError(f"{files[0]} has no rows.")
        try:
            first = self.headers[0] if self.is_csv else list(self._parsed(0))
        except ValueError as error:  # of json, and of bytes that are no text
            raise FxlrpError(f"Row 0 of {files[0]} can't be read: {error}.") from error
        self._choose(first, columns, texts)

    headers: list[list[str]]

    def __len__(self) -> int:
        return self.starts[-1]

    def _parsed(self, index: int) -> Mapping[str, Any]:
        number = bisect_right(self.starts, index) - 1
        start, end = self.offsets[2 * index : 2 * index + 2]
        with self.files[number].open("rb") as file:
            file.seek(start)
            line = file.read(end - start)
        if self.is_csv:
            values = next(csv.reader(io.StringIO(line.decode("utf-8"), newline="")))
            if len(values) != len(self.headers[number]):
                raise FxlrpError(f"Row {index} has {len(values)} fields, the header {len(self.headers[number])}.")
            return dict(zip(self.headers[number], values, strict=True))
        row = json.loads(line)
        if not isinstance(row, dict):
            raise FxlrpError(f"Row {index} is no JSON object.")
        return row

    _row = _parsed


def _line_ends(file: Any) -> Iterator[tuple[int, bool]]:
    """Yield where each line ends, and whether it is empty."""
    where = file.tell()
    for line in iter(lambda: file.readline(), b""):
        where += len(line)
        yield where, not line.strip()


def _csv_rows(file: Any, ends: list[int] | None = None) -> Iterator[list[str]]:
    """Yield the rows of a CSV file, which may go over several lines, from where it stands."""
    csv.field_size_limit(min(MOST_FIELD, sys.maxsize))

    def lines() -> Iterator[str]:
        where = file.tell()
        for line in iter(lambda: file.readline(), b""):
            where += len(line)
            if ends is not None:
                ends[0] = where
            yield line.decode("utf-8-sig" if where == len(line) else "utf-8", "replace")

    yield from csv.reader(lines())


def _csv_ends(file: Any) -> Iterator[tuple[int, bool]]:
    ends = [file.tell()]
    for row in _csv_rows(file, ends):
        yield ends[0], not row


def is_saved_by_datasets(folder: Path) -> bool:
    """Tell whether Hugging Face's `datasets` saved a folder."""
    return any((folder / name).is_file() for name in ("state.json", "dataset_info.json", "dataset_dict.json"))


class ArrowFolder(_Rows):
    """A data set that Hugging Face's `datasets` saved: arrow files, mapped into memory, as state.json lists them."""

    def __init__(self, folder: Path, columns: Columns, texts: bool) -> None:
        if (folder / "dataset_dict.json").is_file():
            splits = ", ".join(read_json(folder / "dataset_dict.json").get("splits", ()))
            raise FxlrpError(f"{folder} has splits {splits}; name one, as {folder}/{splits.partition(',')[0]}.")
        state = read_json(folder / "state.json", MOST_JSON)
        named = [f.get("filename", "") for f in state.get("_data_files", ()) if isinstance(f, dict)]
        self.files = [folder / Path(name).name for name in named]
        if not self.files or not all(f.is_file() for f in self.files):
            raise FxlrpError(f"{folder} lacks the arrow files that its state.json names.")
        self.starts = array("q", accumulate(map(len, self._batches()), initial=0))
        self._choose(next(self._batches()).schema.names, columns, texts)
        info = read_json(folder / "dataset_info.json") if (folder / "dataset_info.json").is_file() else {}
        self.names = _class_names(json.dumps({"info": info}).encode(), self.columns.get("label"))

    def _batches(self) -> Iterator[Any]:
        for file in self.files:
            yield from _mapped(file)

    def __len__(self) -> int:
        return self.starts[-1]

    def _row(self, index: int) -> Mapping[str, Any]:
        at = bisect_right(self.starts, index) - 1
        for file in self.files:
            batches = _mapped(file)
            if at < len(batches):
                break
            at -= len(batches)
        start = self.starts[bisect_right(self.starts, index) - 1]
        return {name: batches[at][name][index - start].as_py() for name in self.columns.values()}


@functools.lru_cache(256)
def _mapped(file: Path) -> list[Any]:
    """Return the record batches of an arrow file, which stay on the disk until they are read."""
    pa = arrow()
    try:
        return list(pa.ipc.open_stream(pa.memory_map(str(file))))
    except pa.ArrowInvalid as error:
        raise FxlrpError(f"{file} is no arrow file that can be read ({error}).") from error


def _class_names(about: bytes | None, column: str | None) -> list[str]:
    """Return the names of classes that a data set's features give for a column."""
    try:
        features = json.loads(about or b"{}")["info"]["features"]
        names: Iterable[Any] = features[column].get("names") or ()
        return [str(name) for name in names]
    except (ValueError, KeyError, TypeError, AttributeError):
        return []
