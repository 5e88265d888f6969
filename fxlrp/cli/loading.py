"""What the options' values mean: a model on a device, sizes, numbers, contrasts; and what is said of a model."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.markup import escape
from torch import Tensor

from fxlrp.capture.precision import WIDER
from fxlrp.cli.terminal import err, out
from fxlrp.engine.seeds import Contrast
from fxlrp.errors import FxlrpError, counted
from fxlrp.inputs import LoadedModel, find_class, load_labels, load_model
from fxlrp.inputs.pictures import Preprocess, channels_of
from fxlrp.reports.report import Report


def load(
    model: str, arch: str | None, weights: str | None, trust: bool, random_weights: bool, device: str | None
) -> LoadedModel:
    """Load a model and move it to its device, on a CPU in single precision or better; print notes on it.

    Raises FxlrpError for a device that is not there, and what `load_model` raises.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.partition(":")[0] not in ("cpu", "cuda"):
        raise FxlrpError(f"--device is cpu or cuda, not {device}.")
    if device != "cpu" and not torch.cuda.is_available():
        raise FxlrpError("There is no GPU that torch can use; leave --device out.")
    loaded = load_model(model, arch=arch, weights=weights, trust=trust, pretrained=not random_weights)
    if device == "cpu" and any(p.dtype in WIDER for p in loaded.module.parameters()):
        loaded.notes.append("the model is in half precision, in which a CPU is slow; it is run in float32.")
        loaded.module.float()
    loaded.module.to(device)
    for note in loaded.notes:
        err.print(f"[yellow]note:[/] {escape(note)}", soft_wrap=True)
    return loaded


def named(loaded: LoadedModel, labels: Path | None) -> LoadedModel:
    """Give a model the class names in a file.  Raises FxlrpError for a model of texts, and a file that has none."""
    if loaded.reads_text:
        raise FxlrpError(f"{loaded.name} reads text; this command is for models of pictures and tensors.")
    return replace(loaded, labels=load_labels(labels)) if labels else loaded


def take_pictures(
    loaded: LoadedModel, size: str | None, mean: str | None, std: str | None, labels: Path | None
) -> LoadedModel:
    """Give a model the preprocessing and class names that were asked for, and print what its pictures become.

    Raises FxlrpError for a model of texts, numbers that are none, labels that can't be read, and a model whose first
    convolution takes no picture.
    """
    loaded = named(loaded, labels)
    prepare = loaded.preprocess.but(parse_size(size), parse_numbers(mean, "mean"), parse_numbers(std, "std"))
    loaded = replace(loaded, preprocess=prepare.but(channels=channels_of(loaded.module)))
    note_preprocessing(loaded.preprocess)
    return loaded


def example_call(loaded: LoadedModel) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """A call of a model, of one sample: eight token ids, or a picture of noise."""
    if loaded.reads_text:
        return (), {"input_ids": torch.arange(8, device=loaded.like(torch.empty(0)).device)[None]}
    return (loaded.like(torch.rand(1, loaded.preprocess.channels, *loaded.preprocess.size)),), {}


def split_names(text: str) -> list[str]:
    """Return the names in "gamma:gamma=0.1,epsilon=1,attnlrp": a comma in front of a parameter does not part them."""
    return [name.strip() for name in re.split(r",(?![^,:]*=)", text) if name.strip()]


def refuse_options(options: dict[str, Any], kind: str) -> None:
    """Raise FxlrpError if one of the options was given: they go with models that read `kind`."""
    if given := next((name for name, value in options.items() if value is not None), None):
        raise FxlrpError(f"--{given.replace('_', '-')} goes with models that read {kind}; this one does not.")


def parse_contrast(text: str, loaded: LoadedModel) -> Contrast:
    """Return a contrast as the library takes it: a class index, "default", "others", "softmax" or None.

    Raises FxlrpError for a class that the model does not have.
    """
    if text in ("none", "default", "others", "softmax"):
        return None if text == "none" else text
    return find_class(text, loaded.labels)


def parse_position(text: str) -> int | tuple[int, ...]:
    """Return the place of "3" in a sequence, or of "40,50" (row, column) in a map.  Raises FxlrpError for else."""
    if not re.fullmatch(r"-?[0-9]{1,9}(,-?[0-9]{1,9})*", text):
        raise FxlrpError(f"--position takes a place, as 3, or of a map its row and column, as 40,50, not {text}.")
    places = tuple(int(part) for part in text.split(","))
    return places if len(places) > 1 else places[0]


def parse_size(text: str | None) -> tuple[int, int] | None:
    """Return the height and width in pixels of "224" or "240x320".  Raises FxlrpError for anything else."""
    if text is None:
        return None
    if not (sides := re.fullmatch(r"([0-9]{1,9})(?:x([0-9]{1,9}))?", text)):
        raise FxlrpError(f"--size takes pixels, as in 224 or 240x320, not {text}.")
    return int(sides[1]), int(sides[2] or sides[1])


def parse_numbers(text: str | None, option: str) -> tuple[float, ...] | None:
    """Return the numbers of "0.5,0.5,0.5".  Raises FxlrpError, naming `option`, for anything else."""
    try:
        return None if text is None else tuple(float(part) for part in text.split(","))
    except ValueError:
        raise FxlrpError(f"--{option} takes numbers parted by commas, as in 0.5,0.5,0.5, not {text}.") from None


def print_counts(report: Report) -> None:
    """Print how many nodes were explained by which kind of rule, and warn of those without a rule of their own."""
    counts = report.counts
    by_rule = f"{counted(counts['rule'], 'node')} by rule, {counts['structural']} structural"
    out.print(f"rulebook {report.rulebook}: {by_rule}, {counts['generic']} by the generic rule", soft_wrap=True)
    warn_of_generic_ops(report)


def warn_of_generic_ops(report: Report) -> None:
    """Print a warning that names the ops without a rule of their own, if there are any."""
    if report.counts["generic"]:
        ops = ", ".join(sorted({node.op for node in report.nodes if node.kind == "generic"}))
        err.print(f"[yellow]warning:[/] these ops have no rule of their own: {escape(ops)}", soft_wrap=True)


def note_preprocessing(preprocess: Preprocess) -> None:
    """Print what a picture becomes, since the map depends on it, and whether that is a guess."""
    size = "x".join(map(str, preprocess.size))
    numbers = " ".join(f"{what} {','.join(f'{v:.3g}' for v in getattr(preprocess, what))}" for what in ("mean", "std"))
    if preprocess.guessed:
        err.print(
            f"[yellow]note:[/] the model does not say what pictures it takes: {size}, ImageNet's mean and std "
            "(--size, --mean, --std).",
            soft_wrap=True,
        )
    else:
        part = (
            f"{preprocess.crop_pct:.3g} of the shorter side" if preprocess.crop_pct != 1 else "cropped to their middle"
        )
        kept = "squashed" if preprocess.squash else part
        err.print(f"[dim]pictures: {size}, {kept}, {preprocess.interpolation}, {numbers}[/]", soft_wrap=True)
