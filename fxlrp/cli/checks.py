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


def _page(path: Path) -> None:
    from fxlrp.inputs.pictures import check_writable

    if path.suffix.lower() not in (".html", ".htm"):
        raise FxlrpError(f"--html {path}: a page is a file that ends in .html; figures and numbers are written by -o.")
    check_writable([path])


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
    "rules": _rulebook,
    "colours": _colours,
    "labels": _labels,
    "size": _size,
    "mean": _numbers("mean"),
    "std": _numbers("std"),
    "data": _there,
}
