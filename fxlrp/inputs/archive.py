"""Read the files in an archive that torch wrote: a zip whose files are stored as they are, never compressed.

What is read from it is therefore no larger than the archive itself, however it is made.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from types import TracebackType

MOST = 100_000
"""The most files in an archive; a network has one for each weight and a few more."""


class Archive:
    """The files of a zip, by their path below its one folder.

    Raises ValueError, saying why, for a file that is no such archive.
    """

    def __init__(self, file: Path | bytes) -> None:
        size = len(file) if isinstance(file, bytes) else file.stat().st_size
        try:
            self._zip = zipfile.ZipFile(io.BytesIO(file) if isinstance(file, bytes) else file)
        except Exception as error:  # zipfile raises more than BadZipFile for damaged files
            raise ValueError(f"no zip archive that can be read, {error}") from error
        self._entries: dict[str, zipfile.ZipInfo] = {}
        entries = self._zip.infolist()
        if len(entries) > MOST:
            raise ValueError(f"{len(entries)} files")
        for entry in entries:
            name = entry.filename.partition("/")[2]
            if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
                raise ValueError(f"a compressed file {entry.filename[:80]!r}; torch stores them as they are")
            if name in self._entries:
                raise ValueError(f"two files {name[:80]!r}")
            self._entries[name] = entry
        if sum(e.file_size for e in entries) > size:
            raise ValueError("files that overlap")

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._zip.close()

    @property
    def names(self) -> list[str]:
        """Return the files there are."""
        return list(self._entries)

    def size(self, name: str) -> int:
        """Return how many bytes a file has.  Raises ValueError if there is none."""
        if name not in self._entries:
            raise ValueError(f"no file {name[:80]!r}")
        return self._entries[name].file_size

    def has_storage(self, key: str, count: int) -> bool:
        """Tell whether so many bytes lie under a key beside a pickle that torch.save wrote."""
        name = f"data/{key}"
        return name in self._entries and self._entries[name].file_size == count

    def read(self, name: str, limit: int | None = None) -> bytes:
        """Return the bytes of a file.  Raises ValueError if it is missing, longer than `limit` or damaged."""
        size = self.size(name)
        if limit is not None and size > limit:
            raise ValueError(f"a file {name!r} of {size} bytes, more than {limit}")
        try:
            data = self._zip.read(self._entries[name])
        except Exception as error:
            raise ValueError(f"a damaged file {name!r}, {error}") from error
        if len(data) != size:
            raise ValueError(f"a damaged file {name!r}")
        return data
