"""Reading: the maps of a data set as rows, as a pyarrow data set, or as torch takes them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fxlrp.data.settings import Settings, part, read_settings, rows_folder
from fxlrp.data.tables import arrow
from fxlrp.data.writing import Row, is_zarr, open_zarr, whole_shards
from fxlrp.errors import FxlrpError, counted


class Maps(Sequence[Row]):
    """The rows that `fxlrp.data.explain` wrote: a sequence of dicts, `relevance` in them an array (None of errors).

    Also a data set for torch's DataLoader (`torch()`), a pyarrow data set (`arrow()`), and a table (`table()`).
    """

    def __init__(self, out: Path) -> None:
        self.out, self.settings = out, read_settings(out)
        self.done = whole_shards(out, self.settings)
        self._shards = sorted(self.done)
        self._held: tuple[int, list[Row]] = (-1, [])

    settings: Settings

    @property
    def errors(self) -> int:
        """How many rows are errors."""
        return sum(self.done.values())

    @property
    def complete(self) -> bool:
        """Whether every sample of the data set has its row."""
        return len(self.done) == self.settings.shards

    def __len__(self) -> int:
        return sum(len(self.settings.range_of(k)) for k in self._shards)

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        at = i + len(self) if i < 0 else i
        for shard in self._shards:
            if at < (count := len(self.settings.range_of(shard))) and at >= 0:
                return self.shard(shard)[at]
            at -= count
        raise IndexError(f"row {i} of {len(self)}")

    def __iter__(self) -> Iterator[Row]:
        for shard in self._shards:
            yield from self.shard(shard)

    def shard(self, number: int, columns: Sequence[str] | None = None) -> list[Row]:
        """Return the rows of a shard, of all columns or of these."""
        if columns is not None:
            return self._rows(number, columns)
        if self._held[0] != number:
            self._held = number, self._rows(number, None)
        return self._held[1]

    def _rows(self, number: int, columns: Sequence[str] | None) -> list[Row]:
        asked = None if columns is None else [c for c in columns if not (c == "relevance" and is_zarr(self.out))]
        table = arrow().parquet.read_table(part(self.out, number), columns=asked)
        dense: Any = None
        names = [name for name in table.column_names if name != "relevance"]
        rows = table.select(names).to_pylist()
        if columns is not None and "relevance" not in columns:
            return rows
        if is_zarr(self.out):
            of = self.settings.range_of(number)
            dense = open_zarr(self.out)[of.start : of.stop]
        elif self.settings.kind == "texts" or self.settings.keep.startswith("top"):
            relevance = table["relevance"].to_pylist()
            dense = [None if r is None else np.array(r, dtype=self.settings.dtype) for r in relevance]
        else:
            storage = table["relevance"].combine_chunks().storage
            dense = storage.values.to_numpy(zero_copy_only=False)
            size = int(np.prod(self.settings.shape))
            dense = dense[storage.offset * size :].reshape(-1, *self.settings.shape)
        errors = table["error"].to_pylist() if "error" in names else [None] * len(rows)
        for row, r, error in zip(rows, dense, errors, strict=True):
            row["relevance"] = None if error is not None else r
        return rows

    def map(self, row: Row) -> np.ndarray:
        """Return a row's relevance as a map, zero where `keep=top` kept nothing."""
        if "places" not in row:
            return row["relevance"]
        whole = np.zeros(self.settings.shape, dtype=self.settings.dtype)
        whole.reshape(-1)[row["places"]] = row["relevance"]
        return whole

    def arrow(self) -> Any:
        """Return a pyarrow data set of the rows, which other tools read too (of a .zarr: without its maps)."""
        return arrow().dataset.dataset([str(part(self.out, k)) for k in self._shards], format="parquet")

    def table(self, columns: Sequence[str] | None = None) -> Any:
        """Return the rows as one pyarrow table, of all columns or of these."""
        return self.arrow().to_table(columns=None if columns is None else list(columns))

    def torch(self) -> torch.utils.data.Dataset[tuple[Tensor, int]]:
        """Return (relevance, class) of each sample that has them, for a DataLoader."""
        return _OfTensors(self)

    def __repr__(self) -> str:
        return (
            f"<{counted(len(self), 'map')} of {counted(self.settings.samples, 'sample')} of {self.settings.data}, "
            f"{counted(self.errors, 'error')}>"
        )


class _OfTensors(torch.utils.data.IterableDataset[tuple[Tensor, int]]):
    """Relevance and class of each row without an error; a DataLoader's workers share the shards."""

    def __init__(self, maps: Maps) -> None:
        self.maps = maps

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        about = torch.utils.data.get_worker_info()
        mine = self.maps._shards[about.id :: about.num_workers] if about else self.maps._shards
        for shard in mine:
            for row in self.maps.shard(shard):
                if row["error"] is None:
                    yield torch.from_numpy(np.array(self.maps.map(row))), -1 if row["target"] is None else row["target"]


def read(out: str | Path) -> Maps:
    """Return the maps that a run has written so far.

    Raises FxlrpError if there are none, or a shard is damaged.
    """
    out = Path(out)
    if not rows_folder(out).is_dir():
        raise FxlrpError(f"There is no folder {out}; `fxlrp map MODEL DATA -o {out}` makes one.")
    return Maps(out)


def metadata(file: Path) -> dict[str, Any]:
    """Return the settings in a shard's own metadata."""
    return json.loads((arrow().parquet.read_schema(file).metadata or {})[b"fxlrp"])
