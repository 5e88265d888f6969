"""How large an input may be, and the one way JSON is read: both are checked before anything large is allocated."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fxlrp.errors import FxlrpError

MOST_JSON = 8 * 2**20
"""Bytes of a JSON file. The configs and labels of ImageNet-21k are 2 MiB; what is parsed takes up to 40 times that."""
MOST_LABELS = 1_000_000
"""Class names. The largest classifiers have some tens of thousands of classes."""
MOST_PIXELS = 100_000_000
"""Pixels of a picture as it is stored. The largest cameras take 100 megapixels, which are 400 MB in colour."""
MOST_SIDE = 65_535
"""Pixels of a picture's side, the most that JPEG knows: PIL needs memory for each row, however short."""
MOST_INPUT = 4096 * 4096
"""Pixels that a picture is resized to, cropped or not. In float32 and colour these are 200 MB, before any network."""


def last_number(sizes: Sequence[int], strides: Sequence[int], first: int) -> int:
    """Return the place of the last of the numbers that a tensor with these sizes and strides takes, −1 for none."""
    return -1 if 0 in sizes else first + sum((n - 1) * s for n, s in zip(sizes, strides, strict=True))


def read_json(path: Path, limit: int = MOST_JSON) -> Any:
    """Return what a JSON file says. Raises FxlrpError for a file that is missing, larger than `limit` or no JSON."""
    if not path.is_file():  # a pipe or a device would be read for ever
        raise FxlrpError(f"{path} is a folder; give a file." if path.is_dir() else f"There is no file {path}.")
    with path.open("rb") as file:
        return parse_json(file.read(limit + 1), str(path), limit)


def parse_json(content: bytes, where: str, limit: int = MOST_JSON) -> Any:
    """Return what `content` says, in UTF-8. Raises FxlrpError, naming `where`, as `read_json` does."""
    if len(content) > limit:
        raise FxlrpError(f"{where} is larger than {limit:,} bytes, the most that is read of JSON; give a smaller file.")
    try:
        value = json.loads(content.decode("utf-8-sig"), object_pairs_hook=_each_once)
        json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair could not be printed later
    except RecursionError as error:
        raise FxlrpError(f"{where} is nested too deeply to be read; give a flatter file.") from error
    except ValueError as error:  # UnicodeDecodeError, and whatever json raises, are of this class
        raise FxlrpError(f"{where} is not JSON in UTF-8 ({error}); mend it, or write it anew.") from error
    return value


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a dict, but refuse a name that stands twice: no two readers agree on which of the values counts."""
    read: dict[str, Any] = {}
    for name, value in pairs:
        if name in read:
            raise ValueError(f"{name[:80]!r} stands there twice")
        read[name] = value
    return read
