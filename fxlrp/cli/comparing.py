"""The command that shows one question answered by several rulebooks, beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from fxlrp import __version__
from fxlrp.cli import options
from fxlrp.cli.app import app
from fxlrp.cli.terminal import errors_in_one_sentence, out, print_json, tracked
from fxlrp.errors import FxlrpError

if TYPE_CHECKING:
    from torch import Tensor

    from fxlrp.attribution import Attribution
    from fxlrp.cli.answering import Asked, Reading, Written
    from fxlrp.inputs import LoadedModel
    from fxlrp.rules.registry import Rulebook
    from fxlrp.text import TextAttribution


@app.command()
@errors_in_one_sentence
def compare(
    model: options.Model,
    given: options.Input,
    books: options.SeveralRules = options.COMPARED_RULES,
    output: options.ComparisonFile = Path("compare_fxlrp.png"),
    target: options.Target = None,
    contrast: options.Contrast = "default",
    device: options.Device = None,
    arch: options.Arch = None,
    weights: options.Weights = None,
    pair: options.Pair = None,
    position: options.Position = None,
    box: options.Box = None,
    columns: options.Columns = None,
    row: options.Row = None,
    html: options.Html = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    colours: options.Colours = "red-blue",
    opacity: options.Opacity = 0.85,
    dpi: options.Dpi = 100,
    truncate: options.Truncate = False,
    shifts: options.Shifts = None,
    size: options.Size = None,
    mean: options.Mean = None,
    std: options.Std = None,
    labels: options.Labels = None,
    trust: options.Trust = False,
    random_weights: options.RandomWeights = False,
    strict: options.Strict = False,
    debug: options.Debug = False,
) -> None:
    """Explain one picture, call or text by several rulebooks, all maps beside each other.

    [dim]fxlrp compare model.pt cat.png --rules abslrp,gamma:gamma=0.1,attnlrp -o six.png[/]
    [dim]fxlrp compare hf:DIR "It isn't a gripping film." --target positive -o rows.png[/]
    """
    from fxlrp.cli.answering import Asked, Written
    from fxlrp.cli.calls import are_calls
    from fxlrp.cli.checks import may_read_text
    from fxlrp.cli.loading import load, refuse_options, split_names
    from fxlrp.cli.taking import taken
    from fxlrp.inputs.samples import one_picture
    from fxlrp.rules.registry import find_rulebook
    from fxlrp.show.files import check_comparison
    from fxlrp.text.command import question_of

    out.quiet = quiet
    rulebooks = [find_rulebook(name) for name in split_names(books)]
    check_comparison(output)
    asked = Asked(target or (), contrast, position, strict=strict, shifts=shifts or 1)
    written = Written(html, as_json, colours, opacity, dpi)
    of_pictures: dict[str, Any] = {"box": box, "size": size, "mean": mean, "std": std}
    of_calls: dict[str, Any] = {"columns": columns, "row": row}
    loaded = load(model, arch, weights, trust, random_weights, device) if may_read_text(model) else None
    if loaded is not None and loaded.reads_text:
        refuse_options(of_pictures | {"shifts": shifts, "labels": labels}, "pictures")
        refuse_options(of_calls, "tables")
        question = question_of(target, contrast, position) | {"pair": pair, "truncate": truncate}
        compare_texts(loaded, model, given, rulebooks, output, question, strict, written)
        return
    refuse_options({"pair": pair}, "text")
    as_calls = are_calls([given])
    refuse_options(of_pictures if as_calls else of_calls, "pictures" if as_calls else "tables")
    file = Path(given) if as_calls else one_picture(given)
    loaded = loaded or load(model, arch, weights, trust, random_weights, device)
    loaded, reading = taken(loaded, model, as_calls, asked, labels, **of_pictures, **of_calls)
    compare_rulebooks(loaded, reading, file, rulebooks, output, asked, written)


def compare_rulebooks(
    loaded: LoadedModel,
    reading: Reading,
    given: Path,
    books: Sequence[Rulebook],
    output: Path,
    asked: Asked,
    written: Written,
) -> None:
    """Explain what one file holds by several rulebooks, and write all maps beside each other to `output`; those that
    are another's are left out.

    Raises FxlrpError as `fxlrp.cli.answering.answer_files` does.
    """
    from fxlrp.cli.answering import print_answer
    from fxlrp.explainer import convert
    from fxlrp.show.files import save_comparison, summary, write_pages

    read = reading.read(given)
    explainer = convert(loaded.module, rules=books[0], strict=asked.strict, shifts=asked.shifts)
    maps: dict[str, Attribution] = {}
    for book in tracked(books, "explaining"):
        maps[book.name], _ = reading.explain(explainer.by(book), read, asked.question(loaded))
    names = distinct({name: a.each for name, a in maps.items()})
    kept = {name: maps[name] for name in names}
    wrote = [save_comparison(kept, output, **written.how(output))]
    if written.html is not None:
        wrote.append(write_pages(written.html, [list(kept.values())], model=loaded.name))
    if written.as_json:
        found = {name: summary(a) for name, a in maps.items()}
        print_json({"fxlrp": __version__, "wrote": [str(file) for file in wrote], "rules": found})
        return
    print_answer(next(iter(maps.values())), given)
    _print_written([name for name in maps if name not in names], wrote)


def compare_texts(
    loaded: LoadedModel,
    spec: str,
    text: str,
    books: Sequence[Rulebook],
    output: Path,
    question: dict[str, Any],
    strict: bool,
    written: Written,
) -> None:
    """Explain a text by several rulebooks, print a row of words for each, and write all to `output`; those that are
    another's are left out.

    Raises FxlrpError as `fxlrp.text.explain` does.
    """
    from fxlrp.explainer import convert
    from fxlrp.text import explain
    from fxlrp.text.attribution import WRITTEN, side_by_side, write_html
    from fxlrp.text.command import load_tokenizer, quietly, read_texts

    if output.suffix.lower() not in WRITTEN:
        raise FxlrpError(f"-o {output}: an explanation of a text is written as {', '.join(WRITTEN)}.")
    tokenizer, given = load_tokenizer(spec), read_texts([text], None)[0]
    explainer = convert(loaded.module, rules=books[0], strict=strict)
    maps: dict[str, TextAttribution] = {
        book.name: quietly(explain, explainer.by(book), tokenizer, given, **question) for book in books
    }
    names = distinct({name: (a.matrix,) for name, a in maps.items()})
    together = side_by_side({name: maps[name] for name in names})
    wrote = [together.save(output, colours=written.colours, dpi=written.dpi)]
    if written.html is not None:
        wrote.append(write_html(written.html, [together], loaded.name))
    if written.as_json:
        found = {name: a.to_dict() for name, a in maps.items()}
        print_json({"fxlrp": __version__, "wrote": [str(file) for file in wrote], "rules": found})
        return
    together.show(out)
    _print_written([name for name in maps if name not in names], wrote)


def _print_written(left_out: Sequence[str], files: Sequence[Path]) -> None:
    if left_out:
        out.print(f"  left out, being equal to one before: {', '.join(left_out)}", soft_wrap=True)
    for file in files:
        out.print(f"  wrote [bold]{escape(str(file))}[/]", soft_wrap=True)


def distinct(maps: dict[str, Sequence[Tensor]]) -> list[str]:
    """The names of maps that are no other's before, but for its scale and rounding."""
    kept: list[str] = []
    for name, a in maps.items():
        if not any(_are_alike(a, maps[other]) for other in kept):
            kept.append(name)
    return kept


def _are_alike(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    return all(
        bool((r / r.abs().max().clamp(min=1e-30) - s / s.abs().max().clamp(min=1e-30)).abs().max() < 1e-4)
        for r, s in zip(a, b, strict=True)
    )
