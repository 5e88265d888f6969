"""WebDataset: .tar files in which the files of a sample stand beside each other under one name."""

from __future__ import annotations

import json
import tarfile
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fxlrp.data.sources import TENSORS, TEXTS, Kind, decoded
from fxlrp.errors import FxlrpError
from fxlrp.inputs.pictures import SUFFIXES

LABELS = (".cls", ".txt", ".json")
MOST_LABEL = 2**16
"""Bytes of a label's file; what is larger is none."""


class Tars:
    """The samples of .tar files, whose headers are read once; a sample is read from where it stands.

    A sample is a picture, .npy or, for a model of texts, .txt; its label is in NAME.cls, the `label` of NAME.json or,
    beside a picture, NAME.txt.
    """

    names: Sequence[str] = ()

    def __init__(self, files: Sequence[Path], texts: bool) -> None:
        self.files, self.texts, self.kind = files, texts, "tensors"
        self.keys: list[str] = []
        self.places = array("q")  # for each sample: file, start and size of its own, start and size of its label's
        self.suffixes: list[str] = []
        for number, file in enumerate(files):
            try:
                self._index(number, file)
            except (tarfile.TarError, OSError, EOFError) as error:
                raise FxlrpError(f"{file} is no plain .tar that can be read ({error}).") from error
        if not self.keys:
            raise FxlrpError(f"{files[0]} holds no sample that this model reads.")

    kind: Kind

    def _index(self, number: int, file: Path) -> None:
        """Note where the samples of a file stand."""
        group: dict[str, tuple[int, int]] = {}
        stem = ""
        with tarfile.open(file, "r:") as tar:
            for member in tar:
                tar.members = []  # type: ignore[attr-defined]  # it would keep all of them
                if not member.isfile():
                    continue
                folder, slash, base = member.name.rpartition("/")
                name, _, suffix = base.partition(".")
                name = f"{folder}{slash}{name}"
                if name != stem:
                    self._add(number, stem, group)
                    stem, group = name, {}
                group[f".{suffix.lower()}"] = member.offset_data, member.size
        self._add(number, stem, group)

    def _add(self, number: int, stem: str, group: dict[str, tuple[int, int]]) -> None:
        wanted = (*TEXTS, *TENSORS) if self.texts else (*sorted(SUFFIXES), *TENSORS)
        suffix = next((s for s in wanted if s in group), None)
        if suffix is None:
            return
        label = next((s for s in LABELS if s in group and s != suffix), "")
        self.keys.append(stem if len(self.files) == 1 else f"{self.files[number].stem}/{stem}")
        self.places.extend((number, *group[suffix], *group.get(label, (0, 0))))
        self.suffixes.append(f"{suffix} {label}")
        if suffix not in TENSORS:
            self.kind = "texts" if self.texts else "pictures"

    def __len__(self) -> int:
        return len(self.keys)

    def _read(self, index: int, second: int) -> bytes:
        number, *places = self.places[5 * index : 5 * index + 5]
        start, size = places[second : second + 2]
        with self.files[number].open("rb") as file:
            file.seek(start)
            return file.read(size)

    def key(self, index: int) -> tuple[str, str | int | None]:
        suffix = self.suffixes[index].partition(" ")[2]
        if not suffix or self.places[5 * index + 4] > MOST_LABEL:
            return self.keys[index], None
        label: Any = self._read(index, 2).decode("utf-8").strip()
        if suffix == ".json":
            content = json.loads(label)
            label = content.get("label") if isinstance(content, dict) else content
        elif label.isdigit():
            label = int(label)
        return self.keys[index], label if isinstance(label, str | int | None) else None

    def value(self, index: int) -> Any:
        suffix = self.suffixes[index].partition(" ")[0]
        return decoded(self._read(index, 0), suffix, f"{self.keys[index]}{suffix}")
