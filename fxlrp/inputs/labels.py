"""Class names: read from files, found by name, and ImageNet's."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Sequence
from pathlib import Path

from fxlrp.errors import FxlrpError


def load_labels(path: Path) -> list[str]:
    """Class names from a text file, one a line, or JSON: a list, or a dict from index to name."""
    if path.is_dir():
        raise FxlrpError(f"{path} is a folder; class names are in a file, one a line, or JSON.")
    if not path.is_file():
        raise FxlrpError(f"There is no file {path}.")
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix != ".json":
            return [line.strip() for line in text.splitlines() if line.strip()]
        found = json.loads(text)
        if isinstance(found, dict):
            names = {int(index): name for index, name in found.items()}
            found = [names.get(i, str(i)) for i in range(max(names) + 1)]
        # ImageNet's usual file: {"0": ["n01440764", "tench"]}
        return [name[-1] if isinstance(name, list) else str(name) for name in found]
    except (ValueError, TypeError) as error:
        raise FxlrpError(f"{path} holds no labels: one a line, or JSON, a list or index to name ({error}).") from error


def imagenet_labels() -> list[str] | None:
    """The names of ImageNet's 1000 classes in their usual order, if timm is installed."""
    try:
        from timm.data import ImageNetInfo
    except ImportError:
        return None
    info = ImageNetInfo()
    return [info.index_to_description(i) for i in range(info.num_classes())]


def find_class(name: str, labels: Sequence[str] | None) -> int:
    """The index of a class given by number, by its label, or by one of the names that commas part in its label.

    Raises FxlrpError, with the closest names, if there is none.
    """
    if re.fullmatch(r"\d+", name):
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
