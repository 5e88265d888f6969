"""Sources: what DATA names, as samples that are known by number, key and, where there is one, label.

A source lists what there is once and reads a sample when it is taken, so that it costs memory for names alone, and goes
to other processes by pickle.  A sample that can't be read holds the error; nothing stops at it.
"""

from __future__ import annotations

import glob
import hashlib
import io
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fxlrp.errors import FxlrpError
from fxlrp.gae.data import call_factory
from fxlrp.inputs.pictures import SUFFIXES, open_picture

Kind = Literal["pictures", "texts", "tensors"]
TEXTS, TENSORS = (".txt",), (".npy",)


@dataclass(frozen=True)
class Sample:
    """One sample: a picture, a text, a tensor, or a dict of tensors by argument; or why it can't be read."""

    index: int
    key: str
    label: str | int | None = None
    value: Image.Image | str | Tensor | Mapping[str, Tensor] | None = None
    error: str | None = None


@dataclass(frozen=True)
class Columns:
    """Which columns of a table hold the sample, its label and its key; None: found by their usual names."""

    sample: str | None = None
    label: str | None = None
    key: str | None = None


class Latest(threading.local):
    """The item that a thread read last: its key and its value are asked one after the other."""

    index, item = -1, None

    def of(self, index: int, read: Callable[[int], Any]) -> Any:
        """Return an item, read if it is another than the last."""
        if self.index != index:
            self.index, self.item = -1, None
            self.item = read(index)
            self.index = index
        return self.item

    def __reduce__(self) -> tuple:
        return Latest, ()


class Source(Protocol):
    """A list of samples.

    kind: what the samples are.  files: those that it was made of, whose size and time of change tell it from another.
    names: of the classes, where labels are numbers and the data set names them.
    """

    @property
    def kind(self) -> Kind: ...
    @property
    def files(self) -> Sequence[Path]: ...
    @property
    def names(self) -> Sequence[str]: ...
    def __len__(self) -> int: ...

    def key(self, index: int) -> tuple[str, str | int | None]:
        """Return the key and label of a sample."""
        ...

    def value(self, index: int) -> Any:
        """Return a sample's picture, text or tensors.  Whatever it raises is that sample's error."""
        ...


def take(source: Source, index: int) -> Sample:
    """Read one sample of a source; one that can't be read holds the error."""
    key, label = str(index), None
    try:
        key, label = source.key(index)
        if isinstance(label, int) and 0 <= label < len(source.names):
            label = source.names[label]
        return Sample(index, key, label, source.value(index))
    except Exception as error:  # whatever a reader or a user's data set raises is that sample's
        return Sample(index, key, label, error=one_line(error))


def one_line(error: BaseException) -> str:
    """Say in a line what went wrong."""
    message, kind = " ".join(str(error).split()), type(error).__name__
    return message if isinstance(error, FxlrpError) else f"{kind}: {message}" if message else kind


def listing(source: Source) -> str:
    """Return a digest of the names, sizes and times of change of a source's files."""
    total = hashlib.sha256(f"{source.kind} {len(source)}\n".encode())
    root = _root(source.files)
    for file in source.files:
        status = file.stat()
        total.update(f"{os.path.relpath(file, root)}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return total.hexdigest()


def changed_since(source: Source, when: float) -> Path | None:
    """Return a file of a source that was changed after a time in seconds, if there is one."""
    return next((file for file in source.files if file.stat().st_mtime > when), None)


def open_source(spec: Any, columns: Columns = Columns(), texts: bool = False) -> Source:
    """Open the data set that `spec` names.

    spec: a folder of pictures, texts (.txt) or tensors (.npy), or of arrow files that Hugging Face's `datasets` saved;
      a glob; a .tar of WebDataset, .parquet, .csv or .jsonl, or a glob of several; `module:factory`, a function that
      returns a data set; or such a data set: anything with a length and items x, (x, label) or dicts.
    columns: of tables.  texts: whether the model reads texts.

    Raises FxlrpError if there is none such, or it is empty.
    """
    source = _open(spec, columns, texts)
    if not len(source):
        raise FxlrpError(f"The data set {spec} is empty.")
    wanted = "texts" if texts else "pictures or tensors"
    if source.kind != "tensors" and (source.kind == "texts") != texts:
        raise FxlrpError(f"The model reads {wanted}, and {spec} holds {source.kind}; name another column or data set.")
    return source


def check_there(spec: Any) -> None:
    """Raise FxlrpError if a data set is named that is not there, as far as that is known without a model."""
    text = str(spec)
    there = not isinstance(spec, str | Path) or Path(spec).exists() or bool(glob.glob(text, recursive=True))
    if not there and (glob.has_magic(text) or ":" not in text):
        raise FxlrpError(
            f"There is no {text}; DATA is a folder, a glob, a .tar, .parquet, .csv or .jsonl, or module:factory."
        )


def _open(spec: Any, columns: Columns, texts: bool) -> Source:
    from fxlrp.data.tables import ArrowFolder, Lines, Table, is_saved_by_datasets
    from fxlrp.data.tars import Tars

    check_there(spec)
    if not isinstance(spec, str | Path):
        return Items(spec)
    text, path = str(spec), Path(spec)
    if path.is_dir():
        return ArrowFolder(path, columns, texts) if is_saved_by_datasets(path) else Files(_within(path), path, texts)
    files = [path] if path.is_file() else sorted(Path(p) for p in glob.glob(text, recursive=True) if Path(p).is_file())
    if not files:
        module, _, factory = text.rpartition(":")
        return Made(module, factory)
    suffixes = {"".join(f.suffixes[-2:]) if f.suffix == ".gz" else f.suffix.lower() for f in files}
    kinds: dict[str, Callable[[], Source]] = {
        ".tar": lambda: Tars(files, texts),
        ".parquet": lambda: Table(files, columns, texts),
        ".csv": lambda: Lines(files, columns, texts),
        ".jsonl": lambda: Lines(files, columns, texts),
    }
    if len(suffixes) == 1 and (kind := next(iter(suffixes))) in kinds:
        return kinds[kind]()
    return Files(files, _root(files), texts)


class Files:
    """A file for each sample: pictures, texts or tensors; the folder it is in, if there are several, is its label."""

    names: Sequence[str] = ()

    def __init__(self, files: Sequence[Path], root: Path, texts: bool) -> None:
        wanted: tuple[tuple[Kind, Iterable[str]], ...] = (
            ("texts" if texts else "pictures", TEXTS if texts else SUFFIXES),
            ("tensors", TENSORS),
        )
        for kind, suffixes in wanted:
            chosen = [f for f in files if f.suffix.lower() in suffixes and not f.name.endswith("_fxlrp.png")]
            if chosen:
                self.kind, self.files, self.root = kind, chosen, root
                return
        readable = ", ".join(sorted({*wanted[0][1], *TENSORS}))
        raise FxlrpError(f"{root} holds no sample that this model reads ({readable}).")

    def __len__(self) -> int:
        return len(self.files)

    def key(self, index: int) -> tuple[str, str | None]:
        key = os.path.relpath(self.files[index], self.root).replace(os.sep, "/")
        folder, slash, _ = key.partition("/")
        return key, folder if slash else None

    def value(self, index: int) -> Any:
        return decoded(self.files[index], self.files[index].suffix)


class Items:
    """A data set with a length and items by number: x, (x, label), or dicts with x and perhaps label and key.

    x: a picture (PIL, a path, uint8 [H, W, 3]), a text, a tensor as the model takes one sample, or a dict of such.
    """

    names: Sequence[str] = ()

    def __init__(self, dataset: Any, files: Sequence[Path] = ()) -> None:
        if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
            raise FxlrpError(f"The data set is a {type(dataset).__name__}; give one with a length and items by number.")
        self.dataset, self.files, self.latest = dataset, files, Latest()
        self.kind: Kind = "tensors"
        for i in range(min(len(dataset), 16)):  # what the first that can be read is, all are
            try:
                value = self.value(i)
            except Exception:
                continue
            kinds: dict[type, Kind] = {Image.Image: "pictures", str: "texts"}
            self.kind = next((kind for cls, kind in kinds.items() if isinstance(value, cls)), "tensors")
            return

    def __len__(self) -> int:
        return len(self.dataset)

    def _item(self, index: int) -> dict[str, Any]:
        item = self.latest.of(index, self.dataset.__getitem__)
        if isinstance(item, Mapping) and "x" in item:
            return dict(item)
        return dict(zip(("x", "label"), item if isinstance(item, tuple | list) else (item,), strict=False))

    def key(self, index: int) -> tuple[str, str | int | None]:
        item = self._item(index)
        label = item.get("label")
        return str(item.get("key", index)), label if isinstance(label, str | None) else int(label)

    def value(self, index: int) -> Any:
        x = self._item(index)["x"]
        if isinstance(x, Path):
            return decoded(x, x.suffix)
        if isinstance(x, np.ndarray) and x.dtype == np.uint8 and x.ndim == 3 and x.shape[2] == 3:
            return Image.fromarray(x)
        if isinstance(x, Mapping):
            return {str(name): torch.as_tensor(t) for name, t in x.items()}
        return x if isinstance(x, str | Image.Image) else torch.as_tensor(x)


class Made(Items):
    """The data set that a function returns; another process calls it anew, and may have none of its classes."""

    def __init__(self, module: str, factory: str) -> None:
        self.made_by = module, factory
        super().__init__(call_factory(module, factory), [Path(module)] if module.endswith(".py") else [])

    def __reduce__(self) -> tuple:
        return Made, self.made_by


def decoded(content: Path | bytes, suffix: str, name: str = "") -> Any:
    """Return the picture, text or tensor that a file or its bytes hold.  Raises FxlrpError if it is damaged."""
    suffix = suffix.lower()
    if suffix in TEXTS:
        return (content.read_bytes() if isinstance(content, Path) else content).decode("utf-8").strip()
    opened = io.BytesIO(content) if isinstance(content, bytes) else content
    if suffix in TENSORS:
        array = np.load(opened, allow_pickle=False)
        return torch.from_numpy(array.astype(np.float32) if array.dtype.kind == "f" else array)
    return open_picture(opened, name)


def _within(folder: Path) -> list[Path]:
    """List the files in a folder, however deep, by name, without what is hidden."""
    files = []
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        files += [Path(place, name) for name in names if not name.startswith(".")]
    return sorted(files)


def _root(files: Sequence[Path]) -> Path:
    """Return the folder that all files are in."""
    return Path(os.path.commonpath([f.parent for f in files])) if files else Path()
