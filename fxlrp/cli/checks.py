"""What can be told of options before a model is loaded, which takes the longer: those that can't be are refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fxlrp.errors import FxlrpError
from fxlrp.methods import DEFAULT


def check_options(options: Mapping[str, Any]) -> None:
    """Raise FxlrpError for an option of any command that can't be, whatever the model is."""
    for name, check in _CHECKS.items():
        if options.get(name) is not None:
            check(options[name])
    if not may_read_text(options.get("model") or ""):
        for given in filter(None, map(options.get, ("given", "example", "explain"))):
            _input(given)


def may_read_text(model: str) -> bool:
    """Tell whether a model may be one that reads text, by how it is named: then it is loaded before its inputs are."""
    return Path(model).is_dir() or model.startswith("hf:")


def _input(given: str) -> None:
    from fxlrp.inputs.calls import SUFFIXES
    from fxlrp.inputs.samples import one_picture

    if Path(given).suffix.lower() in SUFFIXES:
        _file(Path(given))
    else:
        one_picture(given)


def _file(path: Path) -> None:
    if not path.is_file():
        raise FxlrpError(f"There is no file {path}.")


def _folder(path: Path) -> None:
    if not path.is_dir():
        raise FxlrpError(f"There is no folder {path}.")


def _writable(path: Path) -> None:
    from fxlrp.inputs.pictures import check_writable

    check_writable([path])


def _page(path: Path) -> None:
    if path.suffix.lower() not in (".html", ".htm"):
        raise FxlrpError(f"--html {path}: a page is a file that ends in .html; figures and numbers are written by -o.")
    _writable(path)


def _rulebook(name: str) -> None:
    from fxlrp.rules.registry import find_rulebook

    if name != DEFAULT:
        find_rulebook(name)


def _colours(name: str) -> None:
    from fxlrp.show.colours import COLOURS, colour_map

    if name not in COLOURS:
        colour_map(name)


def _labels(path: Path) -> None:
    from fxlrp.inputs import load_labels

    load_labels(path)


def _size(text: str) -> None:
    from fxlrp.cli.loading import parse_size

    parse_size(text)


def _numbers(option: str) -> Callable[[str], None]:
    def check(text: str) -> None:
        from fxlrp.cli.loading import parse_numbers

        parse_numbers(text, option)

    return check


def _there(data: str) -> None:
    from fxlrp.data.sources import check_there

    check_there(data)


_CHECKS: dict[str, Callable[[Any], None]] = {
    "html": _page,
    "output": _writable,
    "text_file": _file,
    "masks": _folder,
    "rules": _rulebook,
    "colours": _colours,
    "labels": _labels,
    "size": _size,
    "mean": _numbers("mean"),
    "std": _numbers("std"),
    "data": _there,
}
