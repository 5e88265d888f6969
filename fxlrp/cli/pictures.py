"""What `explain`, `compare` and `demo` do with pictures once their options are parsed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL.Image import Image
from rich.markup import escape
from rich.progress import track
from rich.table import Table
from torch import Tensor

from fxlrp import __version__
from fxlrp.attribution import Attribution, save_comparison
from fxlrp.cli.loading import load, parse_contrast, print_counts, take_pictures
from fxlrp.cli.terminal import err, out, print_json
from fxlrp.errors import FxlrpError
from fxlrp.explainer import Explainer, convert
from fxlrp.explaining import every_side, explain_images
from fxlrp.export.artifact import ExportedExplainer
from fxlrp.inputs import LoadedModel, find_class, open_picture
from fxlrp.methods import DEFAULT
from fxlrp.rules.registry import Rulebook
from fxlrp.show.files import FIGURES, save, summary, write_pages
from fxlrp.show.words import against, likeliest, probabilities


def explain_pictures(
    loaded: LoadedModel,
    pictures: list[Path],
    files: list[Path],
    *,
    target: str | None,
    contrast: str,
    rules: str,
    strict: bool,
    shifts: int,
    check_labels: bool,
    at: Sequence[str],
    html: Path | None,
    as_json: bool,
    colours: str,
) -> None:
    """Explain pictures by one class and contrast, and write each explanation to the file beside it in `files`.

    target, contrast: as they are typed.  check_labels: whether the class names must be as many as the classes.
    html: a page of all pictures, each from every side.  at: the modules whose maps it shows.
    as_json: print JSON instead of tables.  colours: of figures.

    Raises FxlrpError for a class that the model does not have, and as `fxlrp.convert` and its explainer do.
    """
    explainer, question = _explainer_and_question(loaded, target, contrast, rules, strict, shifts)
    question |= {"at": tuple(at)} if at else {}
    pages: list[list[Attribution]] = []
    found: list[dict[str, Any]] = []
    several = len(pictures) > 1
    shown = track(pictures, "explaining", console=err, transient=True) if several else pictures
    for picture, file in zip(shown, files, strict=True):
        try:
            image = open_picture(picture)
        except FxlrpError as error:
            if not several:
                raise
            found.append({"picture": str(picture), "error": str(error)})
            continue
        a, x = explain_image(explainer, loaded, image, check_labels=check_labels, **question)
        how: dict[str, Any] = {"colours": colours} if file.suffix.lower() in FIGURES else {}
        written = save(a, file, **how)
        found.append({"picture": str(picture), "wrote": str(written), **summary(a)["samples"][0]})
        if not several and not as_json:
            print_answer(a, loaded, picture)
            out.print(f"  wrote [bold]{escape(str(written))}[/]", soft_wrap=True)
        if html is not None:
            is_ours = isinstance(explainer, Explainer)
            pages.append(every_side(explainer, a, ((x,), {}), at) if is_ours else [a])  # type: ignore[arg-type]
    if html is not None:
        write_pages(html, pages)
    if as_json:
        print_json({"fxlrp": __version__, "rules": rules, "pictures": found, "page": html and str(html)})
    else:
        if several:
            print_table(found)
        if html is not None:
            out.print(f"  wrote [bold]{escape(str(html))}[/]", soft_wrap=True)
        if isinstance(explainer, Explainer) and any("wrote" in row for row in found):
            print_counts(explainer.report())
    if failed := [row["error"] for row in found if "error" in row]:
        raise FxlrpError(f"{len(failed)} of {len(found)} pictures were left out: {failed[0]}")


def _explainer_and_question(
    loaded: LoadedModel, target: str | None, contrast: str, rules: str, strict: bool, shifts: int
) -> tuple[Explainer | ExportedExplainer, dict[str, Any]]:
    """The explainer of a model, and the question as it takes it.

    Raises FxlrpError for a class that the model does not have, and what an exported explainer can't be asked.
    """
    target_class = None if target is None else find_class(target, loaded.labels)
    if not isinstance(loaded.module, ExportedExplainer):
        explainer = convert(loaded.module, rules=rules, strict=strict, shifts=shifts)
        return explainer, {"target": target_class, "contrast": parse_contrast(contrast, loaded, explainer.rulebook)}
    about = loaded.module.about
    if rules not in (DEFAULT, about.get("rulebook")) or strict or shifts > 1:
        raise FxlrpError(
            f"{loaded.name} was exported by {about.get('rulebook')}, which can't be changed: leave out --rules, "
            "--strict and --shifts, or export another."
        )
    against = about["contrast"] if contrast == "default" else parse_contrast(contrast, loaded)
    return loaded.module, {"target": target_class, "contrast": against}


def explain_image(
    explainer: Explainer | ExportedExplainer,
    loaded: LoadedModel,
    image: Image,
    *,
    check_labels: bool = False,
    **question: Any,
) -> tuple[Attribution, Tensor]:
    """Explain one picture; returns the attribution, which knows its classes and the picture, and the model's input.

    Raises FxlrpError for class names that are not as many as the classes, if `check_labels`.
    """
    a, x = explain_images(explainer, loaded, [image], **question)
    if check_labels and loaded.labels and len(loaded.labels) != a.logits.shape[1]:
        raise FxlrpError(f"--labels has {len(loaded.labels)} names, but the model has {a.logits.shape[1]} classes.")
    return a, x


def print_table(found: Sequence[Mapping[str, Any]]) -> None:
    """Print a row for each of many pictures: what was explained, what else was likely, and where the map is."""
    table = Table(box=None)
    for column in ("picture", "explained", "likeliest", "wrote"):
        table.add_column(column, overflow="fold")  # a path that is cut is no path
    for row in found:
        if "error" in row:
            table.add_row(escape(row["picture"]), "[red]can't be read[/]", "", "")
            continue
        best = row["classes"][0]
        explained = row["explained"][0]["target"]
        likeliest = f"{best['name']}, {100 * best['probability']:.1f} %"
        other = "" if explained == likeliest else likeliest
        table.add_row(*map(escape, (row["picture"], explained, other, row["wrote"])))
    out.print(table)
    against = next((row["against"] for row in found if "against" in row), "")
    out.print(f"explained {against or 'without a contrast'}; red spoke for the class, blue against it")


def compare_rulebooks(
    loaded: LoadedModel, picture: Path, books: list[Rulebook], output: Path, *, target: str | None, contrast: str
) -> None:
    """Explain one picture by several rulebooks and write all maps, side by side, to `output`.

    target, contrast: as they are typed.

    Raises FxlrpError as `explain_pictures` does.
    """
    target_class = None if target is None else find_class(target, loaded.labels)
    x, seen = loaded.preprocess(open_picture(picture))
    maps: dict[str, Attribution] = {}
    explainer = convert(loaded.module, loaded.like(x[None]))
    for book in track(books, "explaining", console=err, transient=True):
        question = {"target": target_class, "contrast": parse_contrast(contrast, loaded, book)}
        a = explainer.by(book)(loaded.like(x[None]), **question)
        maps[book.name] = replace(a, labels=tuple(loaded.labels or ()))
    print_answer(next(iter(maps.values())), loaded, picture)
    kept: dict[str, Attribution] = {}
    for name, a in maps.items():
        if not any(_are_alike(a, other) for other in kept.values()):
            kept[name] = a
    if same := [name for name in maps if name not in kept]:
        out.print(f"  left out, being equal to one before: {', '.join(same)}")
    out.print(f"  wrote [bold]{escape(str(save_comparison(kept, output, seen)))}[/]", soft_wrap=True)


def _are_alike(a: Attribution, b: Attribution) -> bool:
    """Whether two maps are the same but for their scale and rounding."""
    one, other = (heat / heat.abs().max().clamp(min=1e-30) for heat in (a.heatmap(), b.heatmap()))
    return bool((one - other).abs().max() < 1e-4)


def print_answer(a: Attribution, loaded: LoadedModel, picture: Path) -> None:
    """Print the likeliest classes of a picture, and which of them was explained, against what."""
    assert a.target is not None
    out.print(f"[bold]{escape(str(picture))}[/]", soft_wrap=True)
    table = Table(box=None)
    for column in ("class", "name", "probability"):
        table.add_column(column, justify="left" if column == "name" else "right")
    explained = int(a.target[0])
    for k, name, chance in likeliest(a):
        table.add_row(str(k), escape(name), f"{chance:.1%}", style="bold" if k == explained else "")
    out.print(table)
    sure = probabilities(a.logits[0])[explained]
    answer = f"{loaded.label(explained)} ({sure:.1%}), {against(a) or 'no contrast'}"
    out.print(f"  explained [bold]{escape(answer)}[/]", soft_wrap=True)


def demo_pictures(output: Path) -> None:
    """Explain two objects in one picture with the network that comes with fxlrp."""
    examples = Path(__file__).resolve().parents[1] / "examples"
    loaded = load(str(examples / "model.pt"), None, None, False, False, "cpu")
    loaded = take_pictures(loaded, None, None, None, examples / "labels.txt")
    labels = loaded.labels or []
    shown = ((p, [n for n in p.stem.split("_") if n in labels]) for p in sorted(examples.glob("pictures/*.png")))
    picture, objects = next((p, n[:2]) for p, n in shown if len(n) > 1)
    explainer = convert(loaded.module)
    for name in objects:
        a, _ = explain_image(explainer, loaded, open_picture(picture), target=labels.index(name))
        print_answer(a, loaded, picture)
        out.print(f"  wrote [bold]{escape(str(a.save(output / f'demo_{name}.png')))}[/]", soft_wrap=True)
    print_counts(explainer.report())
