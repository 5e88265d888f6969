"""Writes attributions to files, each kind by its extension, and reads those that hold everything again."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fxlrp import __version__
from fxlrp.errors import FxlrpError
from fxlrp.show.figure import compare, plot
from fxlrp.show.fonts import not_said_again
from fxlrp.show.page import page, page_of
from fxlrp.show.parts import parts_of, samples_of
from fxlrp.show.words import against, headline, likeliest, maps_of, subject

if TYPE_CHECKING:
    from fxlrp.attribution import Attribution
    from fxlrp.text.attribution import TextAttribution

FIGURES = (".png", ".svg", ".pdf", ".jpg", ".jpeg", ".webp", ".tif", ".tiff")
SUFFIXES = (*FIGURES, ".html", ".json", ".csv", ".npz", ".safetensors")
FORMAT = "fxlrp attribution 1"


def save(a: Attribution, path: str | Path, *, index: int = 0, dpi: float = 100, **how: Any) -> Path:
    """Writes an attribution to a file and returns its path.

    .png, .svg, .pdf, .jpg, .webp: the figure of sample `index` (`Attribution.plot`, which takes `how`), which carries
    what was asked in its metadata.  .html: a page.  .json, .csv, .npz: its numbers.  .safetensors: all of it, which
    `fxlrp.load` reads again.

    Raises FxlrpError for another extension, a path that can't be written, and as `Attribution.plot` does.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise FxlrpError(f"{path} has no extension that is written; give a name that ends in {', '.join(SUFFIXES)}.")
    if suffix in FIGURES:
        content: bytes | str = drawn(plot(a, index=index, **how), suffix, dpi, summary(a))
    else:
        writers: dict[str, Callable[[], bytes | str]] = {
            ".html": lambda: page([a], index=index, **how),
            ".json": lambda: json.dumps(summary(a), indent=1, ensure_ascii=False) + "\n",
            ".csv": lambda: _csv(a),
            ".npz": lambda: _npz(a),
            ".safetensors": lambda: _safetensors(a),
        }
        content = writers[suffix]()
    return write(path, content)


def write(path: Path, content: bytes | str) -> Path:
    """Writes a file and the folders it is in.  Raises FxlrpError if that can't be done."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    except OSError as error:
        raise FxlrpError(f"{path} cannot be written, {str(error).split('] ')[-1]}; give another path.") from error
    return path


def write_pages(path: str | Path, calls: Sequence[Sequence[Attribution]], most: int = 64, model: str = "") -> Path:
    """Writes one page with every sample of several calls, at most so many of each, with the answers to it, and returns
    its path.  model: its name, for the title.

    Raises FxlrpError if the path can't be written.
    """
    shown = [(answers, i) for answers in calls for i in range(min(most, samples_of(answers[0])))]
    return write(Path(path), page_of(shown, model))


def save_comparison(maps: Mapping[str, Attribution], path: str | Path, *, dpi: float = 100, **how: Any) -> Path:
    """Writes one question, answered in several ways, to a file, and returns its path.

    .png, .svg, .pdf, .jpg, .webp: `fxlrp.show.figure.compare`, which takes `how`.  .html: a page with a button for
    each.  .json: what was found.  .npz: the maps of each, as NAME.relevance.INPUT.

    Raises FxlrpError for another extension, and a path that can't be written.
    """
    path = Path(path)
    check_comparison(path)
    suffix = path.suffix.lower()
    if suffix == ".html":
        return write_pages(path, [list(maps.values())])
    if suffix == ".json":
        return write(path, json.dumps({name: summary(a) for name, a in maps.items()}, indent=1, ensure_ascii=False))
    if suffix == ".npz":
        out = io.BytesIO()
        every = {f"{n}.{key}": v for n, a in maps.items() for key, v in _arrays(a).items()}
        np.savez_compressed(out, **every)  # type: ignore[arg-type]
        return write(path, out.getvalue())
    return write(path, drawn(compare(maps, **how), suffix, dpi, {name: summary(a) for name, a in maps.items()}))


def check_comparison(path: Path) -> None:
    """Raises FxlrpError for an extension that no comparison is written as."""
    if path.suffix.lower() not in (extensions := (*FIGURES, ".html", ".json", ".npz")):
        raise FxlrpError(
            f"{path} has no extension that a comparison is written as; give one of {', '.join(extensions)}."
        )


def summary(a: Attribution, most: int = 5) -> dict[str, Any]:
    """What was asked of each sample and found, as JSON takes it: its likeliest classes, and where relevance is."""
    samples: list[dict[str, Any]] = []
    for i in range(samples_of(a)):
        row: dict[str, Any] = {"explained": [], "against": against(a)}
        if best := likeliest(a, i, most):
            row["classes"] = [{"class": k, "name": n, "probability": p} for k, n, p in best]
        parts = parts_of(a, i)
        for k in range(maps_of(a, i)):
            inputs = {p.name: _sums(p.relevance[k]) for p in parts}
            row["explained"].append({"target": headline(a, i, k), "inputs": inputs})
        samples.append(row)
    return {"fxlrp": __version__, "rules": a.rules, "samples": samples}


def _sums(r: np.ndarray) -> dict[str, Any]:
    """The sums of a map's positive and negative relevance, and the place of the most."""
    place = np.unravel_index(int(np.abs(r).argmax()), r.shape) if r.size else ()
    return {
        "shape": list(r.shape),
        "positive": float(r[r > 0].sum()),
        "negative": float(r[r < 0].sum()),
        "strongest": {"at": [int(p) for p in place], "relevance": float(r[place]) if place else 0.0},
    }


def drawn(figure: Any, suffix: str, dpi: float, found: dict[str, Any]) -> bytes:
    """A figure as a file, which carries what was asked and found in its metadata."""
    kind = {".jpg": "jpeg", ".tif": "tiff"}.get(suffix, suffix.removeprefix("."))
    about = json.dumps(found, ensure_ascii=False)
    keys = {"png": {"Software": f"fxlrp {__version__}", "fxlrp": about}, "svg": {"Description": about}}
    metadata: Any = keys.get(kind, {"Keywords": about} if kind == "pdf" else None)
    written = io.BytesIO()
    with not_said_again():
        figure.savefig(written, format=kind, dpi=dpi, metadata=metadata)
    return written.getvalue()


def _csv(a: Attribution) -> str:
    """A row for each entry of each map: sample, class, input, its place, value and relevance."""
    out = io.StringIO()
    rows = csv.writer(out)
    rows.writerow(["sample", "class", "input", "place", "name", "value", "relevance"])
    for i in range(samples_of(a)):
        asked = a.given if isinstance(a.given, tuple) else [subject(a, i, k) for k in range(maps_of(a, i))]
        for part in parts_of(a, i):
            for name, r in zip(asked, part.relevance, strict=True):
                for place in np.ndindex(*r.shape):
                    at = " ".join(map(str, place))
                    value = "" if part.kind in ("picture", "nodes", "edges") else f"{part.values[place]:.6g}"
                    label = part.labels[place[0]] if part.labels else ""
                    rows.writerow([i, name, part.name, at, label, value, f"{r[place]:.6g}"])
    return out.getvalue()


def _arrays(a: Attribution) -> dict[str, np.ndarray]:
    """The relevance of each input under its name, and the logits and classes."""
    arrays = {f"relevance.{name}": r.detach().float().cpu().numpy() for name, r in a.named.items()}
    arrays |= {f"latent.{name}": r.detach().float().cpu().numpy() for name, r in a.latent.items()}
    arrays["logits"] = a.logits.detach().float().cpu().numpy()
    if a.target is not None:
        arrays["target"] = a.target.cpu().numpy()
    return arrays


def _npz(a: Attribution) -> bytes:
    out = io.BytesIO()
    np.savez_compressed(out, **_arrays(a))  # type: ignore[arg-type]
    return out.getvalue()


def _safetensors(a: Attribution) -> bytes:
    """Everything but the model's own output: tensors by safetensors, the rest as JSON in its metadata."""
    from safetensors.torch import save as as_bytes

    tensors = {f"relevance.{i}": r for i, r in enumerate(a.each)}
    tensors |= {f"input.{i}": x for i, x in enumerate(a.inputs)}
    tensors |= {f"latent.{name}": r for name, r in a.latent.items()}
    tensors |= {f"picture.{i}": torch.from_numpy(np.array(p)) for i, p in enumerate(a.pictures)}
    tensors["logits"] = a.logits
    tensors |= {name: t for name, t in (("target", a.target), ("edges", a.edges)) if t is not None}
    about = {
        "format": FORMAT, "fxlrp": __version__, "names": a.names, "rules": a.rules, "labels": a.labels,
        "contrast": a.contrast, "given": a.given, "several": isinstance(a.relevance, tuple), "latent": list(a.latent),
        "asked": a.asked, "features": a.features, "independent": a.independent,
        "position": None if a.position is None else torch.as_tensor(a.position).tolist(),
    }  # fmt: skip
    held = {key: t.detach().cpu().contiguous() for key, t in tensors.items()}
    return as_bytes({key: t.clone() for key, t in held.items()}, {"fxlrp": json.dumps(about, ensure_ascii=False)})


def load(path: str | Path) -> Attribution | TextAttribution:
    """Reads an attribution that `Attribution.save` wrote as .safetensors, whose `output` is the logits then, or
    `TextAttribution.save` as .json.

    Raises FxlrpError for a file that is not there or holds something else.
    """
    from safetensors import SafetensorError, safe_open

    from fxlrp.attribution import Attribution

    path = Path(path)
    if not path.is_file():
        raise FxlrpError(f"There is no file {path}.")
    if path.suffix.lower() == ".json":
        return _text(path)
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {}).get("fxlrp", "{}"))
            if about.get("format") != FORMAT:
                raise FxlrpError(f"{path} holds no attribution; Attribution.save(…safetensors) writes one.")
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118

        def numbered(kind: str) -> tuple[Tensor, ...]:
            return tuple(tensors[f"{kind}.{i}"] for i in range(sum(key.startswith(f"{kind}.") for key in tensors)))

        every = numbered("relevance")
        return Attribution(
            every if about["several"] else every[0],
            tensors["logits"],
            tensors["logits"],
            tensors.get("target"),
            tuple(about["names"]),
            numbered("input"),
            {name: tensors[f"latent.{name}"] for name in about["latent"]},
            rules=about["rules"],
            contrast=about["contrast"],
            given=tuple(given) if isinstance(given := about.get("given", ""), list) else given,
            labels=tuple(about["labels"]),
            pictures=tuple(p.numpy() for p in numbered("picture")),
            position=about.get("position"),
            asked=about.get("asked", ""),
            features=tuple(about.get("features", ())),
            edges=tensors.get("edges"),
            independent=about.get("independent", False),
        )
    except (SafetensorError, KeyError, IndexError, TypeError, ValueError) as error:
        raise FxlrpError(f"{path} holds no attribution that can be read: {error}.") from error


def _text(path: Path) -> TextAttribution:
    from fxlrp.text.attribution import FORMAT as TEXT
    from fxlrp.text.attribution import TextAttribution

    try:
        held = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise FxlrpError(f"{path} is not JSON in UTF-8 ({error}).") from error
    if not isinstance(held, dict) or held.get("format") != TEXT:
        raise FxlrpError(f"{path} holds no attribution of a text; TextAttribution.save(….json) writes one.")
    return TextAttribution.from_dict(held)
