"""What `explain`, `compare` and `demo` do with pictures once their options are parsed."""

from __future__ import annotations

from pathlib import Path

from rich.markup import escape
from rich.progress import track
from rich.table import Table
from torch import Tensor

from fxlrp.attribution import Attribution, save_comparison
from fxlrp.cli.loading import load, note_guess, parse_contrast, print_counts
from fxlrp.cli.terminal import err, out
from fxlrp.errors import FxlrpError
from fxlrp.explainer import Explainer, convert
from fxlrp.export.artifact import ExportedExplainer
from fxlrp.inputs import LoadedModel, find_class, load_labels, open_picture
from fxlrp.rules.registry import Rulebook


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
) -> None:
    """Explain pictures by one class and contrast, and write each heatmap to the file beside it in `files`.

    target, contrast: as they are typed.  check_labels: whether the class names must be as many as the classes.

    Raises FxlrpError for a class that the model does not have, and as `fxlrp.convert` and its explainer do.
    """
    target_class = None if target is None else find_class(target, loaded.labels)
    if isinstance(loaded.module, ExportedExplainer):
        explainer: Explainer | ExportedExplainer = loaded.module
        against = loaded.module.about["contrast"] if contrast == "default" else parse_contrast(contrast, loaded)
    else:
        explainer = convert(loaded.module, rules=rules, strict=strict, shifts=shifts)
        against = parse_contrast(contrast, loaded, explainer.rulebook)
    note_guess(loaded.preprocess)
    shown = pictures if len(pictures) == 1 else track(pictures, "explaining", console=err, transient=True)
    for picture, file in zip(shown, files, strict=True):
        explain_picture(
            explainer, loaded, picture, file, target=target_class, contrast=against, check_labels=check_labels
        )
    if isinstance(explainer, Explainer):
        print_counts(explainer.report())


def explain_picture(
    explainer: Explainer | ExportedExplainer,
    loaded: LoadedModel,
    picture: Path,
    file: Path,
    *,
    target: int | None,
    contrast: int | str | None,
    check_labels: bool = False,
) -> None:
    """Explain one picture, print what was predicted and explained, and write the heatmap to `file`.

    Raises FxlrpError for class names that are not as many as the classes, if `check_labels`, and for a picture that
    can't be read or a file that can't be written.
    """
    x, seen = loaded.preprocess(open_picture(picture))
    a = explainer(loaded.like(x[None]), target=target, contrast=contrast)
    if check_labels and loaded.labels and len(loaded.labels) != a.logits.shape[1]:
        raise FxlrpError(f"--labels has {len(loaded.labels)} names, but the model has {a.logits.shape[1]} classes.")
    a.save(file, picture=seen)
    print_answer(a, loaded, picture, contrast)
    out.print(f"  wrote [bold]{escape(str(file))}[/]", soft_wrap=True)


def compare_rulebooks(
    loaded: LoadedModel, picture: Path, books: list[Rulebook], output: Path, *, target: str | None, contrast: str
) -> None:
    """Explain one picture by several rulebooks and write all maps, side by side, to `output`.

    target, contrast: as they are typed.

    Raises FxlrpError as `explain_pictures` does.
    """
    target_class = None if target is None else find_class(target, loaded.labels)
    against = parse_contrast(contrast, loaded, books[0])
    x, seen = loaded.preprocess(open_picture(picture))
    maps: dict[str, Attribution] = {}
    explainer = convert(loaded.module, loaded.like(x[None]))
    for book in track(books, "explaining", console=err, transient=True):
        question = {"target": target_class, "contrast": parse_contrast(contrast, loaded, book)}
        maps[book.name] = explainer.by(book)(loaded.like(x[None]), **question)
    print_answer(next(iter(maps.values())), loaded, picture, against)
    out.print(f"  wrote [bold]{escape(str(save_comparison(maps, output, seen)))}[/]", soft_wrap=True)


def print_answer(a: Attribution, loaded: LoadedModel, picture: Path, contrast: int | str | None) -> None:
    """Print the likeliest classes of a picture, and which of them was explained, against what."""
    assert a.target is not None
    out.print(f"[bold]{escape(str(picture))}[/]", soft_wrap=True)
    table = Table(box=None)
    for column in ("class", "name", "probability"):
        table.add_column(column, justify="left" if column == "name" else "right")
    probabilities = _probabilities(a.logits[0])
    explained = int(a.target[0])
    for i in probabilities.topk(min(5, len(probabilities))).indices.tolist():
        style = "bold" if i == explained else ""
        table.add_row(str(i), escape(loaded.label(i)), f"{probabilities[i]:.1%}", style=style)
    out.print(table)
    if len(probabilities) == 1:
        contrast = None  # there is nothing to set it against
    others = {None: "no contrast", "others": "against the others", "softmax": "against the others by probability"}
    versus = f"against {loaded.label(contrast)}" if isinstance(contrast, int) else others[contrast]
    answer = f"{loaded.label(explained)} ({probabilities[explained]:.1%}), {versus}"
    out.print(f"  explained [bold]{escape(answer)}[/]", soft_wrap=True)


def _probabilities(logits: Tensor) -> Tensor:
    """Return the softmax of logits [K], or what they are if they add up to 1; of a single logit its sigmoid."""
    if len(logits) == 1:
        return logits.sigmoid()
    are_probabilities = bool((logits >= 0).all()) and abs(float(logits.sum()) - 1) < 1e-4
    return logits if are_probabilities else logits.softmax(0)


def demo_pictures(output: Path) -> None:
    """Explain two objects in one picture with the network that comes with fxlrp."""
    examples = Path(__file__).resolve().parents[1] / "examples"
    loaded = load(str(examples / "model.pt"), None, False, False, "cpu")
    labels = loaded.labels = load_labels(examples / "labels.txt")
    shown = ((p, [n for n in p.stem.split("_") if n in labels]) for p in sorted(examples.glob("pictures/*.png")))
    picture, objects = next((p, n[:2]) for p, n in shown if len(n) > 1)
    explainer = convert(loaded.module)
    contrast = explainer.rulebook.default_contrast
    for name in objects:
        file = output / f"demo_{name}.png"
        explain_picture(explainer, loaded, picture, file, target=labels.index(name), contrast=contrast)
    print_counts(explainer.report())
