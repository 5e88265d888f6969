"""How the files that a command was given are taken: as calls of the model, or as pictures."""

from __future__ import annotations

from pathlib import Path

from fxlrp.cli.answering import Asked, Reading
from fxlrp.cli.calls import calls
from fxlrp.cli.loading import named, split_names, take_pictures
from fxlrp.cli.pictures import pictures
from fxlrp.inputs import LoadedModel


def taken(
    loaded: LoadedModel,
    spec: str,
    as_calls: bool,
    asked: Asked,
    labels: Path | None,
    *,
    box: int | None,
    size: str | None,
    mean: str | None,
    std: str | None,
    columns: str | None,
    row: int | None,
) -> tuple[LoadedModel, Reading]:
    """The model with what was said of its inputs and classes, and how files are taken: as calls, or as pictures."""
    if as_calls:
        loaded = named(loaded, labels)
        return loaded, calls(loaded, spec, split_names(columns or ""), row)
    loaded = take_pictures(loaded, size, mean, std, labels)
    return loaded, pictures(loaded, asked, box=box, check_labels=labels is not None)
