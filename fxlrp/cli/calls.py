"""What `explain` does with calls that files hold: arrays, named tensors, rows of a table, sound."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.markup import escape

from fxlrp.attribution import Attribution
from fxlrp.cli.answering import AnyExplainer, Reading
from fxlrp.cli.terminal import err
from fxlrp.errors import FxlrpError
from fxlrp.explaining import edges_in
from fxlrp.inputs import LoadedModel
from fxlrp.inputs.calls import SUFFIXES, Call, read_call
from fxlrp.inputs.hubs import loading


def are_calls(inputs: Sequence[str]) -> bool:
    """Whether all inputs are files that hold calls.  Raises FxlrpError where some are and others are not."""
    which = [Path(name).suffix.lower() in SUFFIXES for name in inputs]
    if any(which) and not all(which):
        raise FxlrpError(f"{inputs[which.index(False)]} is no {', '.join(SUFFIXES)}; explain pictures by themselves.")
    return any(which)


def calls(loaded: LoadedModel, spec: str, columns: Sequence[str] = (), row: int | None = None) -> Reading:
    """How files that hold calls are taken.

    spec: the model as it was typed, beside which Hugging Face's feature extractor may be.
    columns, row: of a table, as in `fxlrp.inputs.calls.read_call`.
    """

    def read(given: Path) -> Call:
        call = read_call(given, columns, row)
        err.print(f"[dim]{escape(str(given))}: {call.about}[/]", soft_wrap=True)
        return call

    def explain(
        explainer: AnyExplainer, held: Call, question: dict[str, Any]
    ) -> tuple[Attribution, tuple[tuple, dict]]:
        args, kwargs = call = as_taken(loaded, held, spec)
        a = explainer(*args, **kwargs, **question)
        about = {"labels": tuple(loaded.labels or ()), "features": held.features, "edges": edges_in(a, call)}
        return replace(a, **about), call

    return Reading("call", read, explain)


def as_taken(loaded: LoadedModel, call: Call, spec: str) -> tuple[tuple, dict[str, Any]]:
    """The arguments on the model's device, floats in its dtype; sound by the feature extractor beside the model, if
    there is one."""
    args, kwargs = call.args, call.kwargs
    folder = Path(spec.removeprefix("hf:"))
    if call.rate is not None and (folder / "preprocessor_config.json").is_file():
        args, kwargs = (), _extracted(folder, call)
    like = loaded.like(torch.empty(0))

    def moved(t: Any) -> Any:
        return loaded.like(t) if t.is_floating_point() else t.to(like.device)

    return tuple(map(moved, args)), {name: moved(t) for name, t in kwargs.items()}


def _extracted(folder: Path, call: Call) -> dict[str, Any]:
    """Sound as the feature extractor in a folder makes it.  Raises FxlrpError for another rate than it takes."""
    from transformers import AutoFeatureExtractor

    with loading(f"the feature extractor of {folder}", False):
        extractor = AutoFeatureExtractor.from_pretrained(folder, trust_remote_code=False)
    wanted = getattr(extractor, "sampling_rate", call.rate)
    if wanted != call.rate:
        raise FxlrpError(f"The model takes sound at {wanted} Hz, and this is at {call.rate} Hz; resample it first.")
    return dict(extractor(call.args[0][0].numpy(), sampling_rate=call.rate, return_tensors="pt"))
