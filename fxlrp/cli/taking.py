"""How the files that a command was given are taken: as calls of the model, or as pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fxlrp.cli.answering import Asked, Reading
from fxlrp.cli.calls import are_calls, as_taken, calls
from fxlrp.cli.loading import example_call, named, refuse_options, split_names, take_pictures
from fxlrp.cli.pictures import pictures
from fxlrp.inputs import LoadedModel
from fxlrp.inputs.calls import read_call
from fxlrp.inputs.samples import sample_of
from fxlrp.inside.references import call_of


def example_of(
    loaded: LoadedModel,
    spec: str,
    given: str | None,
    *,
    size: str | None,
    mean: str | None,
    std: str | None,
    columns: str | None,
    row: int | None,
) -> tuple[tuple, dict[str, Any]]:
    """A call of the model: of what was given, a file of a call, a picture or a text; else of noise."""
    of_pictures: dict[str, Any] = {"size": size, "mean": mean, "std": std}
    as_call = given is not None and not loaded.reads_text and are_calls([given])
    if loaded.reads_text or as_call:
        refuse_options(of_pictures, "pictures")
    if given is not None and as_call:
        return as_taken(loaded, read_call(Path(given), split_names(columns or ""), row), spec)
    refuse_options({"columns": columns, "row": row}, "tables")
    loaded = loaded if loaded.reads_text else take_pictures(loaded, size, mean, std, None)
    return example_call(loaded) if given is None else call_of(sample_of(spec, loaded, given)[0])


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
