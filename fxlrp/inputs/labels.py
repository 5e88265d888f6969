"""Read class names from files, and find a class by its name."""

from __future__ import annotations

import difflib
import re
import reprlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fxlrp.errors import FxlrpError
from fxlrp.inputs.limits import MOST_JSON, MOST_LABELS, read_json


def load_labels(path: Path) -> list[str]:
    """Read class names from a text file, one a line, or JSON: a list, or a dict from index to name.

    Raises FxlrpError for a file that is not there, is huge or holds no names.
    """
    if path.is_dir():
        raise FxlrpError(f"{path} is a folder; class names are in a file, one a line, or JSON.")
    if path.suffix == ".json":
        return class_names(read_json(path), str(path))
    if not path.is_file():
        raise FxlrpError(f"There is no file {path}.")
    with path.open("rb") as file:
        content = file.read(MOST_JSON + 1)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FxlrpError(f"{path} holds no labels in UTF-8 ({error}); save it as UTF-8, one name a line.") from error
    if len(content) > MOST_JSON:
        raise FxlrpError(
            f"{path} is larger than {MOST_JSON:,} bytes, more than class names take; give a list of names."
        )
    return class_names([line.strip() for line in text.splitlines() if line.strip()], str(path))


def class_names(names: Any, where: str) -> list[str]:
    """Return class names given as a list, or a dict from index to name; an index without one is called by its number.

    Raises FxlrpError, naming `where`, for anything else, and for more than MOST_LABELS.
    """

    def wrong(why: str) -> FxlrpError:
        return FxlrpError(f"{where} holds no labels ({why}); give a list of names, or a dict from index to name.")

    if isinstance(names, dict):
        odd = [index for index in names if not re.fullmatch(r"[0-9]{1,9}", str(index))]
        if odd:
            raise wrong(f"{reprlib.repr(odd[0])} is no index of a class")
        by_index = {int(index): name for index, name in names.items()}
        if len(by_index) < len(names):
            raise wrong("an index stands there twice")
        if (last := max(by_index, default=0)) >= MOST_LABELS:
            raise wrong(f"{last} is over {MOST_LABELS:,}")
        names = [by_index.get(i, str(i)) for i in range(last + 1)] if by_index else []
    if not isinstance(names, list | tuple):
        raise wrong(f"it is {reprlib.repr(names)}")
    if not 0 < len(names) <= MOST_LABELS:
        raise wrong(f"there are {len(names):,} names, and from 1 to {MOST_LABELS:,} can be")
    # ImageNet's usual file: {"0": ["n01440764", "tench"]}
    names = [name[-1] if isinstance(name, list | tuple) and name else name for name in names]
    if odd := [name for name in names if not isinstance(name, str | int) or not _can_be_shown(str(name))]:
        raise wrong(f"{reprlib.repr(odd[0])} is no name")
    return [str(name) for name in names]


def _can_be_shown(name: str) -> bool:
    """Tell whether a name is text: half a surrogate pair stops whatever prints it, a terminal obeys other controls."""
    return not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]", name)


def imagenet_labels() -> list[str] | None:
    """Return the names of ImageNet's 1000 classes in their usual order, or None without timm."""
    try:
        from timm.data import ImageNetInfo
    except ImportError:
        return None
    info = ImageNetInfo()
    return [info.index_to_description(i) for i in range(info.num_classes())]


def find_class(name: str, labels: Sequence[str] | None) -> int:
    """Return the index of a class given by number, by its label, or by one of the names that commas part in its label.

    Raises FxlrpError, with the closest names, if there is none.
    """
    if re.fullmatch(r"[0-9]{1,18}", name):  # more would be no index of torch's
        return int(name)
    if not labels:
        raise FxlrpError(f"{name}: the model came without class names; give a number, or --labels FILE.")
    wanted = name.strip().lower()
    parts = [[part.strip().lower() for part in label.split(",")] for label in labels]
    for hits in ([label.lower() == wanted for label in labels], [wanted in names for names in parts]):
        if any(hits):
            return hits.index(True)
    every = [part for names in parts for part in names]
    close = difflib.get_close_matches(wanted, every, 3) or [part for part in every if wanted in part][:3]
    few = f" or one of {', '.join(labels)}" if len(labels) <= 20 else ""
    hint = f"did you mean {' or '.join(close)}?" if close else f"give a number{few}, or other names with --labels FILE."
    raise FxlrpError(f"There is no class {name}; {hint}")
