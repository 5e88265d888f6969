"""Settings: all that the rows of an OUT depend on, kept beside them and in every shard, so that no two runs are mixed.

OUT is a folder of shards `part-00000000.parquet`, each the rows of a fixed range of samples, and `_settings.json`.  A
name that ends in .zarr is a zarr group with the maps in its array `relevance`, and the shards of rows in `rows/`.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from fxlrp.errors import FxlrpError
from fxlrp.gae.store import lock, usable
from fxlrp.inputs.limits import read_json

NAME = "_settings.json"
FORMAT = "fxlrp maps 1"
TOLD_ONLY = ("data", "model", "labels")
"""What is kept for people to read: the same files and weights may be elsewhere, or called otherwise."""
WORDS = {
    "weights": "the model (its weights or code)",
    "files": "the files of the data set",
    "samples": "the number of samples",
    "book": "the rulebook",
    "code": "fxlrp's code",
}
MOST_SETTINGS = 2**26


@dataclass(frozen=True)
class Settings:
    """What rows depend on.

    data, model: as they were named.  kind: of the samples.  samples: how many.  files: a digest of the data set's.
    columns: of a table.  weights: a digest of the model.  labels: the names of its classes.
    rules, book: the rulebook's name and digest.  target, contrast: as the explainer takes them.
    keep: heat, full, top:N or latent:NAME.  dtype: float16 or float32.  shape: of a sample's relevance; () of texts.
    batch: samples in one call.  shard: samples in one file.  threads: of each worker.  device: cpu or cuda.
    preprocess: how a picture becomes an input.  thumbnails: whether rows hold a small picture of what was seen.
    truncate: whether texts are cut to what the model takes.  versions: of the packages that numbers or bytes depend on.
    """

    data: str
    model: str
    kind: str
    samples: int
    files: str
    columns: list[str | None]
    weights: str
    labels: list[str]
    rules: str
    book: str
    target: int | str | None
    contrast: int | str | None
    keep: str
    dtype: str
    shape: list[int]
    batch: int
    shard: int
    threads: int
    device: str
    preprocess: dict[str, Any]
    thumbnails: bool
    truncate: bool
    together: bool
    code: str
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def shards(self) -> int:
        """How many shards there are when all is done."""
        return -(-self.samples // self.shard)

    def range_of(self, shard: int) -> range:
        """Return the samples of a shard."""
        return range(shard * self.shard, min((shard + 1) * self.shard, self.samples))

    def as_json(self) -> bytes:
        """Return them as JSON, the same bytes for the same settings."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1, ensure_ascii=False).encode()


def rows_folder(out: Path) -> Path:
    """Return the folder of the shards of rows in an OUT."""
    return out / "rows" if out.suffix == ".zarr" else out


def part(out: Path, shard: int) -> Path:
    """Return the file of a shard."""
    return rows_folder(out) / f"part-{shard:08d}.parquet"


def read_settings(out: Path) -> Settings:
    """Return the settings of an OUT.  Raises FxlrpError if it is none, or they are damaged."""
    if not (out / NAME).is_file():
        raise FxlrpError(f"{out} holds no maps of a data set; `fxlrp map MODEL DATA -o {out}` makes them.")
    written = read_json(out / NAME, MOST_SETTINGS)
    if not isinstance(written, dict) or written.get("format") != FORMAT:
        raise FxlrpError(f"{out / NAME} is of another version of fxlrp; make the maps again, in another folder.")
    try:
        settings = Settings(**{f.name: written[f.name] for f in fields(Settings)})
        if min(settings.samples, settings.shard, settings.batch, *settings.shape, 1) < 1:
            raise ValueError("numbers below 1")
    except (KeyError, TypeError, ValueError) as error:
        raise FxlrpError(f"{out / NAME} is damaged ({type(error).__name__}: {error}); make the maps again.") from error
    return settings


def agree(out: Path, here: Settings, changed: Path | None) -> None:
    """Raise FxlrpError, naming what differs, if an OUT was made by other settings.

    changed: a file of the data set that was changed since, if one is known.
    """
    there = read_settings(out)
    kept = json.loads(here.as_json())
    differ = [
        f"{WORDS.get(name, name)} {_both(name, getattr(there, name), kept[name], changed)}"
        for name in (f.name for f in fields(Settings))
        if name not in TOLD_ONLY and getattr(there, name) != kept[name]
    ]
    if differ:
        differences = "; ".join(differ)
        raise FxlrpError(f"{out} was made otherwise: {differences}. Give another folder with -o, or delete this one.")


def _both(name: str, there: Any, here: Any, changed: Path | None) -> str:
    """Say how a setting differs: digests are only others."""
    if name == "files":
        return "changed" + (f", as {changed}" if changed else "")
    if name in ("weights", "book", "code"):
        return "changed"
    if isinstance(there, dict) and isinstance(here, dict):
        keys = [k for k in {**there, **here} if there.get(k) != here.get(k)]
        return ", ".join(f"{k} {_shown(there.get(k))} there, {_shown(here.get(k))} here" for k in keys)
    return f"{_shown(there)} there, {_shown(here)} here"


def _shown(value: Any) -> str:
    return "none" if value is None else str(value)


@contextmanager
def locked(out: Path, settings: Settings) -> Iterator[None]:
    """Write the settings of an OUT, unless they are there, and keep other runs from writing to it.

    Raises FxlrpError if another run writes to it now, or it can't be written to.
    """
    file = out / NAME
    with usable(out, "Maps"):
        rows_folder(out).mkdir(parents=True, exist_ok=True)
        draft = out / f".{NAME}.{os.getpid()}"
        try:
            draft.write_bytes(settings.as_json())
            if not file.exists():
                os.link(draft, file)  # unlike a rename, it takes nobody's place
        except FileExistsError:
            pass
        finally:
            draft.unlink(missing_ok=True)
        opened = file.open("rb")
    try:
        lock(opened)
        for left in (*out.glob(".*"), *rows_folder(out).glob(".*")):  # by runs that were killed
            if left.is_file():
                left.unlink(missing_ok=True)
        yield
    finally:
        opened.close()


@functools.cache
def versions() -> dict[str, str]:
    """Return the versions of the packages that numbers or bytes depend on."""
    from importlib.metadata import PackageNotFoundError, version

    installed = {}
    for name in ("fxlrp", "torch", "torchvision", "transformers", "numpy", "pillow", "pyarrow"):
        try:
            installed[name] = version(name)
        except PackageNotFoundError:
            continue
    return installed
