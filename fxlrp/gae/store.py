"""Results on disk that survive SIGKILL: one line for each finished piece of work, in one file for each process.

A line is written by one append and fsync; one that a kill cut short is cut off at the next start.  Everybody reads
everybody's lines, so that a run goes on with another number of processes.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from fxlrp.errors import FxlrpError

Piece = tuple[int, str]  # chunk, method


class Store:
    """The pieces of a run.  Without a folder they are kept in memory.

    Raises FxlrpError if the folder holds a run of another kind, or another process writes its part of it.
    """

    def __init__(self, folder: Path | None, manifest: dict[str, Any], rank: int = 0) -> None:
        self.folder, self.rank, self.kept = folder, rank, {}
        self._offsets: dict[Path, int] = {}
        if folder is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        _agree(folder / "manifest.json", manifest)
        self._file = (folder / f"part-{rank:04d}.jsonl").open("ab")
        _lock(self._file)
        path = Path(self._file.name)
        whole = path.read_bytes()
        self._file.truncate(whole.rfind(b"\n") + 1)
        self.read()

    kept: dict[Piece, dict[str, Any]]

    def __contains__(self, piece: object) -> bool:
        return piece in self.kept

    def add(self, chunk: int, method: str, **found: Any) -> None:
        """Keep a finished piece."""
        self.kept[chunk, method] = found
        if self.folder is not None:
            line = json.dumps({"chunk": chunk, "method": method, **found}, separators=(",", ":")) + "\n"
            self._file.write(line.encode())
            self._file.flush()
            os.fsync(self._file.fileno())

    def read(self) -> None:
        """Take in what any process has written since."""
        if self.folder is None:
            return
        for path in sorted(self.folder.glob("part-*.jsonl")):
            with path.open("rb") as file:
                file.seek(self._offsets.get(path, 0))
                whole = file.read()
            end = whole.rfind(b"\n") + 1
            self._offsets[path] = self._offsets.get(path, 0) + end
            for line in whole[:end].splitlines():
                row = json.loads(line)
                self.kept.setdefault((row.pop("chunk"), row.pop("method")), row)

    def wait(self, pieces: set[Piece]) -> None:
        """Until all of these are there, whoever computes them."""
        while pieces - self.kept.keys():
            time.sleep(0.2)
            self.read()

    def close(self) -> None:
        if self.folder is not None:
            self._file.close()


def write(path: Path, content: bytes) -> None:
    """A file that is there whole or not at all."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with draft.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def _agree(path: Path, manifest: dict[str, Any]) -> None:
    if not path.exists():
        write(path, json.dumps(manifest, indent=1).encode())
    found = json.loads(path.read_text())
    other = [key for key in manifest if found.get(key) != json.loads(json.dumps(manifest[key]))]
    if other:
        said = ", ".join(f"{key} {found.get(key)} there, {manifest[key]} here" for key in other)
        raise FxlrpError(f"{path.parent} holds another evaluation ({said}); give another folder, or delete it.")


def _lock(file: Any) -> None:
    try:
        import fcntl
    except ImportError:  # Windows: no lock, nothing else changes
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise FxlrpError(f"Another process is writing {file.name}; wait for it, or give another folder.") from error
