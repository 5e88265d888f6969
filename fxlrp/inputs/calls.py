"""Calls of a model as files hold them: arrays, named tensors, rows of a table, sound."""

from __future__ import annotations

import csv
import wave
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fxlrp.errors import FxlrpError, counted

SUFFIXES = (".npy", ".npz", ".safetensors", ".csv", ".wav")
MOST_BYTES = 2**30
"""Of a file: a call of a model is smaller."""
MOST_ROWS = 256
"""Rows of a table that are explained in one call."""
INTEGERS = {1: np.int8, 2: np.int16, 4: np.int32}
"""How many bytes a sample of sound takes, as WAV writes it."""


@dataclass(frozen=True)
class Call:
    """The arguments of one call of a model.

    args, kwargs: tensors, floats in single precision.  features: the names of a table's columns.
    rate: of sound, in Hz.  about: what was read, in words.
    """

    args: tuple[Tensor, ...]
    kwargs: dict[str, Tensor] = field(default_factory=dict)
    features: tuple[str, ...] = ()
    rate: int | None = None
    about: str = ""


def read_call(path: Path, columns: Sequence[str] = (), row: int | None = None) -> Call:
    """Read the arguments of a call from a file.

    .npy: the only argument, as the model takes it, samples first.  .npz, .safetensors: arguments by name, those named
    0, 1, … (or arr_0, …) by place.  .csv: numbers, a sample a row; a first line of words names them.  .wav: sound in
    one channel, [1, T] in −1…1, as it was recorded.

    columns: of a table, those that are taken, in this order.  row: the only one of a table, from 0.

    Raises FxlrpError for a file that is not there, too large, or holds something else; nothing in it is run.
    """
    suffix = path.suffix.lower()
    if not path.is_file():
        raise FxlrpError(f"There is no file {path}.")
    if path.stat().st_size > MOST_BYTES:
        raise FxlrpError(f"{path} is larger than {MOST_BYTES:,} bytes, the most that is read for a call.")
    if (columns or row is not None) and suffix != ".csv":
        raise FxlrpError(f"--columns and --row go with a table, .csv; {path} is none.")
    try:
        if suffix == ".csv":
            return _table(path, columns, row)
        if suffix == ".wav":
            return _sound(path)
        named = {"0": np.load(path, allow_pickle=False)} if suffix == ".npy" else _named(path, suffix)
    except FxlrpError:
        raise
    except (OSError, ValueError, KeyError, EOFError, wave.Error, zipfile.BadZipFile, csv.Error) as error:
        raise FxlrpError(f"{path} can't be read as {suffix}: {error}.") from error
    tensors = {name.removeprefix("arr_"): _tensor(value, f"{path}, {name}") for name, value in named.items()}
    places = sorted((name for name in tensors if name.isdigit()), key=int)
    if places != [str(i) for i in range(len(places))]:
        raise FxlrpError(f"{path} has arguments {', '.join(places)}; number those without a name 0, 1, 2, ….")
    args = tuple(tensors.pop(name) for name in places)
    shapes = [str(list(t.shape)) for t in args] + [f"{name} {list(t.shape)}" for name, t in tensors.items()]
    return Call(args, tensors, about=", ".join(shapes))


def _named(path: Path, suffix: str) -> dict[str, Any]:
    if suffix == ".npz":
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except SafetensorError as error:
        raise ValueError(str(error)) from error


def _tensor(value: Any, what: str) -> Tensor:
    """A tensor, floats in single precision and whole numbers in 64 bits.  Raises FxlrpError for what is no number."""
    t = value if isinstance(value, Tensor) else None
    if t is None:
        if value.dtype.kind not in "biufc":
            raise FxlrpError(f"{what} holds {value.dtype}, which is no number; give numbers.")
        t = torch.from_numpy(np.ascontiguousarray(value.astype(np.int64) if value.dtype.kind in "iu" else value))
    if t.is_floating_point():
        return t.float()
    return t if t.dtype == torch.bool or t.is_complex() else t.long()


def _table(path: Path, columns: Sequence[str], row: int | None) -> Call:
    with path.open(newline="", encoding="utf-8-sig") as file:
        lines = [line for line in csv.reader(file) if any(cell.strip() for cell in line)]
    if not lines:
        raise FxlrpError(f"{path} is empty.")
    names = () if all(map(_is_number, lines[0])) else tuple(cell.strip() for cell in lines.pop(0))
    numbered = list(enumerate(lines))
    if columns:
        if unknown := [name for name in columns if name not in names]:
            raise FxlrpError(f"{path} has no column {unknown[0]}; there are {', '.join(names) or 'none with a name'}.")
        places = [names.index(name) for name in columns]
        if short := next((n for n, line in numbered if len(line) <= max(places)), None):
            raise FxlrpError(f"{path}, row {short}: there are fewer cells than names.")
        numbered = [(n, [line[i] for i in places]) for n, line in numbered]
        names = tuple(columns)
    if row is not None:
        numbered = [(n, line) for n, line in numbered if n == row]
    if not numbered:
        there = counted(len(lines), "row")
        raise FxlrpError(f"{path} has {there}; there is no row {row}." if row is not None else f"{path} has no row.")
    if len(numbered) > MOST_ROWS:
        raise FxlrpError(f"{path} has {len(numbered)} rows, more than {MOST_ROWS}: say which, --row N.")
    wide = len(names) or len(numbered[0][1])
    for n, line in numbered:
        if len(line) != wide:
            raise FxlrpError(f"{path}, row {n}: {len(line)} cells, not {wide} as in the first.")
        wrong = next((i for i, cell in enumerate(line) if not _is_number(cell)), None)
        if wrong is not None:
            name = names[wrong] if names else wrong + 1
            raise FxlrpError(
                f"{path}, row {n}, column {name}: {line[wrong][:40]!r} is no number; name the columns that the model "
                "takes, --columns A,B,…, and put numbers for what is missing."
            )
    x = torch.tensor([[float(cell) for cell in line] for _, line in numbered])
    return Call((x,), features=names, about=f"{counted(len(x), 'row')} of {counted(wide, 'number')}")


def _is_number(cell: str) -> bool:
    try:
        return bool(np.isfinite(float(cell)))
    except ValueError:
        return False


def _sound(path: Path) -> Call:
    with wave.open(str(path)) as file:
        rate, channels, width = file.getframerate(), file.getnchannels(), file.getsampwidth()
        content = file.readframes(file.getnframes())
    if width not in INTEGERS:
        raise FxlrpError(f"{path} has {8 * width} bits a sample; write it with 8, 16 or 32.")
    samples: Any = np.frombuffer(content, np.uint8 if width == 1 else INTEGERS[width]).astype(np.float32)
    samples = (samples - 128) / 128 if width == 1 else samples / 2.0 ** (8 * width - 1)
    sound = samples.reshape(-1, channels).mean(1)
    if not sound.size:
        raise FxlrpError(f"{path} holds no sound.")
    about = f"{len(sound) / rate:.2f} s of sound, {counted(len(sound), 'sample')} at {rate} Hz"
    return Call((torch.from_numpy(sound)[None],), rate=rate, about=about)
