"""Keep results on disk so that they survive SIGKILL: one line for each finished piece of work.

A line is written by one append and fsync; one that a kill cut short is cut off at the next start.  It ends in a
checksum of itself and of the run it belongs to, and says which method it is of by that method's digest: what was
changed since, or comes from elsewhere, is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fxlrp.errors import FxlrpError
from fxlrp.inputs.limits import read_json
from fxlrp.whole_files import written_whole

Piece = tuple[int, str]  # chunk, method
Kept = dict[Piece, dict[str, Any]]
PIECES = "pieces.jsonl"


class Store:
    """The pieces of a run.  Without a folder they are kept in memory.

    manifest: all that makes one run's results another's.
    methods: gives the digest of a method for its name, None if it is not of this run.

    Raises FxlrpError if the folder holds a run of another kind, or of another method under a name of these, or damaged
    results, or cannot be written, or another process writes to it.
    """

    def __init__(self, folder: Path | None, manifest: dict[str, Any], methods: Callable[[str], str | None]) -> None:
        self.folder, self.kept, self.methods = folder, {}, methods
        if folder is None:
            return
        self._run = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
        path = folder / PIECES
        with usable(folder):
            folder.mkdir(parents=True, exist_ok=True)
            _agree(folder / "manifest.json", manifest)
            self._file = path.open("ab", buffering=0)  # a buffer would be written again after a full disk
            try:
                lock(self._file)
                lines = path.read_bytes()
                self._file.truncate(lines.rfind(b"\n") + 1)
                for line in lines.split(b"\n")[:-1]:
                    self._take(line, path)
            except BaseException:
                self._file.close()
                raise

    kept: Kept

    def __contains__(self, piece: object) -> bool:
        return piece in self.kept

    def add(self, chunk: int, method: str, **results: Any) -> None:
        """Keep a finished piece.  Raises FxlrpError, leaving the file as it was, where the disk is full."""
        self.kept[chunk, method] = results
        if self.folder is None:
            return
        record = {"chunk": chunk, "method": method, "by": self.methods(method), **results}
        body = json.dumps(record, separators=(",", ":"))[:-1].encode()
        line = body + b',"sum":"' + self._sum(body) + b'"}\n'
        before = os.fstat(self._file.fileno()).st_size
        with usable(self.folder):
            try:
                while line:  # a disk that is nearly full takes a part
                    line = line[self._file.write(line) :]
                os.fsync(self._file.fileno())
            except OSError:
                self._file.truncate(before)
                raise

    def _take(self, line: bytes, path: Path) -> None:
        """Take in one line.  Raises FxlrpError if its checksum or its method is another."""
        body, separator, rest = line.rpartition(b',"sum":"')
        if not separator or rest != self._sum(body) + b'"}':
            start = line[:40].decode(errors="replace")
            raise FxlrpError(
                f"A line of {path} was changed since it was written, or is of another run ({start}…); delete that "
                "line, and what it held is computed again, or give another folder."
            )
        row = json.loads(body + b"}")
        chunk, method, by = row.pop("chunk"), row.pop("method"), row.pop("by")
        if self.methods(method) not in (None, by):
            raise FxlrpError(
                f"{self.folder} holds results of another method called {method!r}; give this one another name, or "
                "give another folder."
            )
        self.kept.setdefault((chunk, method), row)

    def _sum(self, body: bytes) -> bytes:
        """Return the checksum of a line, which is another in another run."""
        return hashlib.sha256(self._run.encode() + body).hexdigest().encode()

    def close(self) -> None:
        if self.folder is not None:
            self._file.close()


@contextmanager
def usable(folder: Path, what: str = "Results") -> Iterator[None]:
    """Turn an OSError within it into FxlrpError, which says why something can't be kept in the folder."""
    try:
        yield
    except OSError as error:
        if folder.exists() and not folder.is_dir():
            raise FxlrpError(f"{folder} is a file; {what.lower()} are kept in a folder, give another.") from error
        raise FxlrpError(
            f"{what} cannot be kept in {folder} ({error.strerror or error}); make room there or make it writable, and "
            "run again: what is finished is kept, or give another folder."
        ) from error


def write(path: Path, content: bytes) -> None:
    """Write a file that is there whole or not at all.  Raises FxlrpError if it can't be written."""
    with usable(path.parent), written_whole(path) as file:
        file.write(content)


def _agree(path: Path, manifest: dict[str, Any]) -> None:
    """Write a run's manifest, or compare it with what is there.  Raises FxlrpError if that is another, or damaged."""
    if not path.exists():
        write(path, json.dumps(manifest, indent=1).encode())
    try:
        there = read_json(path)
    except FxlrpError:
        there = None
    if not isinstance(there, dict):
        raise FxlrpError(
            f"{path} is damaged, so that nobody knows what the results beside it are of; delete the folder, or give "
            "another."
        )
    here = json.loads(json.dumps(manifest))
    different = [key for key in {**here, **there} if there.get(key) != here.get(key)]
    if different:
        differences = ", ".join(_difference(key, there.get(key), here.get(key)) for key in different)
        raise FxlrpError(f"{path.parent} holds another evaluation ({differences}); give another folder, or delete it.")


def _difference(key: str, there: Any, here: Any) -> str:
    """Put in words how a setting differs."""
    long = max(len(str(there)), len(str(here))) > 60
    return f"another {key}" if long else f"{key} {there} there, {here} here"


def lock(file: Any) -> None:
    """Lock a file for this process.  Raises FxlrpError if another process has it."""
    try:
        import fcntl
    except ImportError:  # Windows: no lock, nothing else changes
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise FxlrpError(f"Another process is writing {file.name}; wait for it, or give another folder.") from error
