"""The command line: explain, generate, compare, export, evaluate and more.  Parses, calls the library, prints."""

from __future__ import annotations

import functools
import re
import warnings
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table
from torch import Tensor

from fxlrp import Attribution, Explainer, FxlrpError, NoRelevance, Report, Rulebook, convert, rulebooks
from fxlrp.attribution import save_comparison
from fxlrp.capture.precision import WIDER
from fxlrp.export.artifact import ExportedExplainer
from fxlrp.export.artifact import export as save_explainer
from fxlrp.gae import command as gae_command
from fxlrp.inputs import (
    LoadedModel,
    find_class,
    find_pictures,
    load_labels,
    load_model,
    open_picture,
    output_files,
)
from fxlrp.inputs.hubs import first_line
from fxlrp.inputs.pictures import channels_of
from fxlrp.rules.registry import find_rulebook, parameters_of
from fxlrp.text.command import demo_text, explain_texts, generate_text

DEFAULT = "abslrp-hybrid"
"""The rulebook found best on trained models (docs/rules.md)."""
COMPARED = "abslrp-hybrid,abslrp,zplus,gamma,attnlrp,gradient-input"

app = typer.Typer(
    help="Explain what a PyTorch model looked at, by layer-wise relevance propagation.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

Model = Annotated[
    str,
    typer.Argument(
        help="A .pt/.pth with a module, a state dict (with --arch), a .pt2, a Hugging Face folder, "
        "timm:NAME, torchvision:NAME or hf:NAME."
    ),
]
Arch = Annotated[
    str | None,
    typer.Option(help="What a state dict belongs to: timm:NAME, torchvision:NAME, hf:DIR or path/to/file.py:factory."),
]
Size = Annotated[str | None, typer.Option(help="Input size in pixels, H or HxW.", metavar="H[xW]")]
Rules = Annotated[
    str, typer.Option(help="Rulebook, as in gamma or gamma:gamma=0.1,epsilon=1e-6; `fxlrp rules` lists them.")
]
Device = Annotated[str | None, typer.Option(help="cpu or cuda; the GPU if there is one.")]
Trust = Annotated[bool, typer.Option("--trust", help="Unpickle whatever MODEL asks for; it may run any code.")]
Random = Annotated[
    bool, typer.Option("--random-weights", help="timm:, torchvision: and hf: names without their weights.")
]
Strict = Annotated[bool, typer.Option("--strict", help="Refuse a model in which some op has no rule of its own.")]
Html = Annotated[Path | None, typer.Option(help="Write the coloured texts to one HTML file.", metavar="FILE")]
Truncate = Annotated[bool, typer.Option("--truncate", help="Leave out what is over the model's limit.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show where an error came from.")]


def _say_warning(message: Warning | str, *_: Any) -> None:
    err.print(f"[yellow]warning:[/] {escape(str(message))}", soft_wrap=True)


def _command(function: Callable[..., None]) -> Callable[..., None]:
    """A command whose errors are one sentence: exit code 2 for what the user can mend, 1 for what we should."""

    @functools.wraps(function)
    def run(*args: Any, debug: bool = False, **kwargs: Any) -> None:
        if not debug:
            warnings.simplefilter("ignore")
            warnings.simplefilter("always", NoRelevance)
            warnings.showwarning = _say_warning  # type: ignore[assignment]
        try:
            function(*args, debug=debug, **kwargs)
        except (FxlrpError, OSError) as error:
            if debug:
                raise
            said = str(error)
            if isinstance(error, OSError):
                said = f"Cannot read or write, {said.split('] ')[-1]}; give another path, or free this one."
            err.print(f"[bold red]error:[/] {escape(said)}", soft_wrap=True)
            raise typer.Exit(2) from None
        except (typer.Exit, typer.Abort):
            raise
        except Exception as error:
            if debug:
                raise
            err.print(
                f"[bold red]unexpected error:[/] {escape(first_line(error))}; run again with --debug", soft_wrap=True
            )
            raise typer.Exit(1) from None

    return app.command()(run)


@_command
def explain(
    model: Model,
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            help="Pictures: files, folders or globs. For a model of text: texts, - to read one.", metavar="INPUT..."
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="File for one picture, folder for several; ./NAME_fxlrp.png.")
    ] = None,
    target: Annotated[str | None, typer.Option(help="Class to explain, number or name; the top one.")] = None,
    contrast: Annotated[
        str,
        typer.Option(
            help="What it is set against: none, others, softmax, a class, or what suits the rulebook.",
            metavar="CONTRAST",
        ),
    ] = "default",
    rules: Rules = DEFAULT,
    device: Device = None,
    arch: Arch = None,
    text_file: Annotated[Path | None, typer.Option(help="Texts, one a line.")] = None,
    pair: Annotated[str | None, typer.Option(help="The second text, as the context of a question.")] = None,
    position: Annotated[str | None, typer.Option(help="The token asked about: its place, or a word.")] = None,
    html: Html = None,
    truncate: Truncate = False,
    size: Size = None,
    mean: Annotated[str | None, typer.Option(help="Of each colour in 0..1, as 0.5,0.5,0.5.", metavar="R,G,B")] = None,
    std: Annotated[str | None, typer.Option(help="Of each colour in 0..1.", metavar="R,G,B")] = None,
    labels: Annotated[Path | None, typer.Option(help="Class names: one a line, or JSON.")] = None,
    trust: Trust = False,
    random_weights: Random = False,
    strict: Strict = False,
    debug: Debug = False,
) -> None:
    """Explain pictures: the original, the heatmap and both in one, side by side; or texts, coloured word by word.

    Red spoke for the class, blue against it.

    [dim]fxlrp explain model.pt cat.png[/]
    [dim]fxlrp explain timm:resnet50 photos/ -o heatmaps/ --target "tabby, tabby cat"[/]
    [dim]fxlrp explain weights.safetensors cat.png --arch torchvision:vit_b_16 --contrast softmax[/]
    [dim]fxlrp explain hf:DIR "It isn't a gripping film." --target positive --html why.html[/]
    """
    for_texts: dict[str, Any] = {"text_file": text_file, "pair": pair, "position": position, "html": html}
    loaded = (
        _load(model, arch, trust, random_weights, device) if Path(model).is_dir() or model.startswith("hf:") else None
    )
    if loaded is not None and loaded.reads_text:
        _refuse({"output": output, "size": size, "mean": mean, "std": std, "labels": labels}, "pictures")
        how: dict[str, Any] = {"target": target, "contrast": _said(contrast), "rules": rules, "strict": strict}
        shown = explain_texts(loaded.module, model, inputs or [], console=out, truncate=truncate, **how, **for_texts)
        return _say_counts(shown.report())
    _refuse(for_texts, "text")
    pictures = find_pictures(inputs or [])
    files = output_files(pictures, output)
    names = load_labels(labels) if labels else None
    loaded = loaded or _load(model, arch, trust, random_weights, device)
    if loaded.reads_text:
        raise FxlrpError(f"{loaded.name} reads text and came without a tokenizer; give the folder it was saved to.")
    loaded.preprocess = loaded.preprocess.but(_size(size), _numbers(mean, "mean"), _numbers(std, "std"))
    loaded.labels = names or loaded.labels
    asked = None if target is None else find_class(target, loaded.labels)
    explainer = _explainer(loaded, rules, strict)
    if isinstance(explainer, ExportedExplainer):
        against = explainer.about["contrast"] if contrast == "default" else _contrast(contrast, loaded)
    else:
        against = _contrast(contrast, loaded, explainer.rulebook)
    run = functools.partial(_explain, explainer, loaded, target=asked, contrast=against, given=names is not None)
    _notice_guess(loaded)
    if len(pictures) == 1:
        run(pictures[0], files[0])
    else:
        for picture, file in zip(track(pictures, "explaining", console=err, transient=True), files, strict=True):
            run(picture, file)
    if isinstance(explainer, Explainer):
        _say_counts(explainer.report())


@_command
def export(
    model: Model,
    output: Annotated[Path, typer.Option("-o", "--output", help="A .pt2 or .onnx file.")] = Path("explainer.pt2"),
    contrast: Annotated[str, typer.Option(help="As for explain; it becomes part of the graph.")] = "default",
    rules: Rules = DEFAULT,
    aoti: Annotated[bool, typer.Option("--aoti", help="Compile for this machine, by AOTInductor.")] = False,
    arch: Arch = None,
    size: Size = None,
    labels: Annotated[Path | None, typer.Option(help="Class names: one a line, or JSON.")] = None,
    trust: Trust = False,
    random_weights: Random = False,
    debug: Debug = False,
) -> None:
    """Save a model and its relevance pass as one file that torch runs without fxlrp.

    Inputs (pictures, target), target −1 for the top class; outputs (logits, relevance).  `fxlrp explain` takes it too.

    [dim]fxlrp export timm:resnet50 -o explainer.pt2[/]
    """
    loaded = _load(model, arch, trust, random_weights, "cpu")
    if loaded.reads_text:
        raise FxlrpError(f"{loaded.name} reads text; the command exports what takes pictures: use Explainer.export.")
    loaded.preprocess = loaded.preprocess.but(_size(size))
    loaded.labels = load_labels(labels) if labels else loaded.labels
    _notice_guess(loaded)
    noise = torch.rand(2, loaded.preprocess.channels, *loaded.preprocess.size)
    with err.status("exporting"):
        explainer = convert(loaded.module, loaded.like(noise), rules=rules)
        about = {"labels": loaded.labels, "preprocess": asdict(loaded.preprocess)}
        against = _contrast(contrast, loaded, explainer.rulebook)
        file = save_explainer(explainer, output, contrast=against, aoti=aoti, about=about)
    out.print(f"wrote [bold]{escape(str(file))}[/], {file.stat().st_size / 1e6:.0f} MB", soft_wrap=True)
    _say_counts(explainer.report())


@_command
def generate(
    model: Model,
    prompt: Annotated[str, typer.Argument(help="What the model goes on from; - reads it.")],
    max_new_tokens: Annotated[int, typer.Option(help="How many tokens it writes at most.", min=1)] = 20,
    continuation: Annotated[str | None, typer.Option(help="Explain this text instead of one it writes.")] = None,
    contrast: Annotated[
        str | None, typer.Option(help="What each token is set against: none, others, softmax, or a word; softmax.")
    ] = None,
    rules: Annotated[str | None, typer.Option(help="Rulebook; `fxlrp rules` lists them.")] = None,
    html: Html = None,
    truncate: Truncate = False,
    device: Device = None,
    random_weights: Random = False,
    debug: Debug = False,
) -> None:
    """Let a language model write, and explain each token by the prompt and the tokens before it.

    [dim]fxlrp generate hf:DIR "Once upon a time" --max-new-tokens 20 --html why.html[/]
    """
    loaded = _load(model, None, False, random_weights, device)
    if not loaded.reads_text:
        raise FxlrpError(f"{loaded.name} reads no text; generate takes a language model of Hugging Face's.")
    how: dict[str, Any] = {"continuation": continuation, "max_new_tokens": max_new_tokens, "contrast": contrast}
    generate_text(loaded.module, model, prompt, rules=rules, truncate=truncate, html=html, console=out, **how)


@_command
def inspect(
    model: Model,
    picture: Annotated[Path | None, typer.Argument(help="A picture, for --mass.", metavar="[INPUT]")] = None,
    rules: Rules = DEFAULT,
    device: Device = None,
    arch: Arch = None,
    size: Size = None,
    trust: Trust = False,
    random_weights: Random = False,
    strict: Strict = False,
    nodes: Annotated[bool, typer.Option("--nodes", help="A row for every node.")] = False,
    mass: Annotated[bool, typer.Option("--mass", help="How much relevance arrives and leaves, by module.")] = False,
    depth: Annotated[int, typer.Option(help="Levels of modules shown by --mass.", min=1)] = 99,
    debug: Debug = False,
) -> None:
    """Show which rule explains each op of a model; with a picture, where its relevance goes.

    [dim]fxlrp inspect torchvision:densenet121 --random-weights[/]
    [dim]fxlrp inspect model.pt cat.png --mass --depth 2[/]
    """
    if mass and picture is None:
        raise FxlrpError("--mass weighs the explanation of a picture: fxlrp inspect MODEL INPUT --mass.")
    loaded = _load(model, arch, trust, random_weights, device)
    loaded.preprocess = loaded.preprocess.but(_size(size))
    explainer = convert(loaded.module, rules=rules, strict=strict)
    if loaded.reads_text:
        if picture is not None:
            raise FxlrpError(f"{loaded.name} reads text; the command takes pictures.")
        explainer(input_ids=torch.arange(8, device=loaded.like(torch.empty(0)).device)[None])
        report = explainer.report()
    else:
        _notice_guess(loaded)
        noise = torch.rand(loaded.preprocess.channels, *loaded.preprocess.size)
        x = noise if picture is None else loaded.preprocess(open_picture(picture))[0]
        report = explainer.report(loaded.like(x[None]))
    out.print(report.tree(depth) if mass else report.table(nodes=nodes))
    _warn(report)


@_command
def compare(
    model: Model,
    picture: Annotated[Path, typer.Argument(help="A picture.", metavar="INPUT")],
    rules: Annotated[str, typer.Option(help="Rulebooks with commas between, each as for explain.")] = COMPARED,
    output: Annotated[Path, typer.Option("-o", "--output", help="The picture to write.")] = Path("compare_fxlrp.png"),
    target: Annotated[str | None, typer.Option(help="Class to explain, number or name; the top one.")] = None,
    contrast: Annotated[str, typer.Option(help="As for explain.", metavar="CONTRAST")] = "default",
    device: Device = None,
    arch: Arch = None,
    size: Size = None,
    labels: Annotated[Path | None, typer.Option(help="Class names: one a line, or JSON.")] = None,
    trust: Trust = False,
    random_weights: Random = False,
    debug: Debug = False,
) -> None:
    """Explain one picture by several rulebooks, all maps side by side.

    [dim]fxlrp compare model.pt cat.png --rules abslrp,gamma:gamma=0.1,attnlrp -o six.png[/]
    """
    books = [find_rulebook(name) for name in re.split(r",(?![^,:]*=)", rules) if name]
    loaded = _load(model, arch, trust, random_weights, device)
    if loaded.reads_text:
        raise FxlrpError(f"{loaded.name} reads text; the command compares maps of a picture.")
    loaded.preprocess = loaded.preprocess.but(_size(size))
    loaded.labels = load_labels(labels) if labels else loaded.labels
    asked = None if target is None else find_class(target, loaded.labels)
    against = _contrast(contrast, loaded, books[0])
    _notice_guess(loaded)
    x, seen = loaded.preprocess(open_picture(picture))
    maps: dict[str, Attribution] = {}
    for book in track(books, "explaining", console=err, transient=True):
        maps[book.name] = convert(loaded.module, rules=book)(
            loaded.like(x[None]), target=asked, contrast=_contrast(contrast, loaded, book)
        )
    first = next(iter(maps.values()))
    _say_explained(first, loaded, picture, against)
    out.print(f"  wrote [bold]{escape(str(save_comparison(maps, output, seen)))}[/]", soft_wrap=True)


@_command
def evaluate(
    model: Model,
    data: Annotated[
        str,
        typer.Argument(help="A folder of pictures, a data set saved by Hugging Face's datasets, or module:factory."),
    ],
    methods: Annotated[
        str, typer.Option(help="Rulebooks and baselines, by commas.", metavar="A,B,…")
    ] = gae_command.METHODS,
    masks: Annotated[Path | None, typer.Option(help="Folder with NAME.png or NAME_mask.png for each picture.")] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first so many samples.", min=1)] = None,
    output: Annotated[Path | None, typer.Option("-o", "--out", help="Folder for the results; a rerun goes on.")] = None,
    steps: Annotated[int, typer.Option(help="Masking steps.", min=2)] = 10,
    definition: Annotated[str, typer.Option(help="Of GAE: fixed, or 2024-12 as published.")] = "fixed",
    batch_size: Annotated[int, typer.Option("--batch-size", help="Inputs in one call of the model.", min=1)] = 16,
    seed: Annotated[int, typer.Option(help="Of mosaics and noise.")] = 0,
    device: Device = None,
    arch: Arch = None,
    size: Size = None,
    mean: Annotated[str | None, typer.Option(help="Of each colour in 0..1, as 0.5,0.5,0.5.", metavar="R,G,B")] = None,
    std: Annotated[str | None, typer.Option(help="Of each colour in 0..1.", metavar="R,G,B")] = None,
    trust: Trust = False,
    random_weights: Random = False,
    debug: Debug = False,
) -> None:
    """Measure how good explanations are: GAE, masking curves and, with masks, localisation.

    [dim]fxlrp evaluate model.pt pictures/ --methods abslrp,gradcam,random --masks masks/ -o out/[/]
    [dim]torchrun --nproc-per-node 4 -m fxlrp.cli evaluate timm:resnet50 pictures/ -o out/[/]
    """
    loaded = _load(model, arch, trust, random_weights, device)
    if loaded.reads_text:
        raise FxlrpError(f"{loaded.name} reads text; the command evaluates explanations of pictures.")
    loaded.preprocess = loaded.preprocess.but(_size(size), _numbers(mean, "mean"), _numbers(std, "std"))
    _notice_guess(loaded)
    options = {"limit": limit, "steps": steps, "definition": definition, "batch_size": batch_size, "seed": seed}
    names = [name.strip() for name in methods.split(",")]
    report = gae_command.run(loaded, data, names, masks, output, err, **options)
    gae_command.say(report, output, out)


@_command
def rules(debug: Debug = False) -> None:
    """List the rulebooks and what each does."""
    table = Table("rulebook", "parameters", "what it does", box=None)
    for book in rulebooks().values():
        given = "\n".join(f"{name}={value}" for name, value in parameters_of(book.name).items())
        table.add_row(f"[bold]{book.name}[/]", given, book.doc)
    out.print(table)
    out.print(f"The commands use [bold]{DEFAULT}[/]; --rules abslrp is the published method.")


@_command
def demo(
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for what is written.")] = Path(),
    text: Annotated[bool, typer.Option("--text", help="Two reviews in the place of a picture.")] = False,
    debug: Debug = False,
) -> None:
    """Explain two objects in one picture with the network that comes with fxlrp; needs no network access."""
    if text:
        return demo_text(output / "demo_text.html", out)
    examples = Path(__file__).resolve().parent / "examples"
    loaded = _load(str(examples / "model.pt"), None, False, False, "cpu")
    loaded.labels = load_labels(examples / "labels.txt")
    shown = ((p, [n for n in p.stem.split("_") if n in loaded.labels]) for p in sorted(examples.glob("pictures/*.png")))
    picture, objects = next((p, n[:2]) for p, n in shown if len(n) > 1)
    explainer = convert(loaded.module, rules=DEFAULT)
    for name in objects:
        file = output / f"demo_{name}.png"
        target, contrast = loaded.labels.index(name), explainer.rulebook.default_contrast
        _explain(explainer, loaded, picture, file, target=target, contrast=contrast)
    _say_counts(explainer.report())


@app.callback(invoke_without_command=True)
def _main(show: Annotated[bool, typer.Option("--version", help="Show the version.")] = False) -> None:
    if show:
        out.print(f"fxlrp {version('fxlrp')}")
        raise typer.Exit


def _refuse(options: dict[str, Any], kind: str) -> None:
    if given := next((name for name, value in options.items() if value is not None), None):
        raise FxlrpError(f"--{given.replace('_', '-')} goes with models that read {kind}; this one does not.")


def _load(model: str, arch: str | None, trust: bool, random_weights: bool, device: str | None) -> LoadedModel:
    """The model on its device, on a CPU in single precision or better."""
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.partition(":")[0] not in ("cpu", "cuda"):
        raise FxlrpError(f"--device is cpu or cuda, not {device}.")
    if device != "cpu" and not torch.cuda.is_available():
        raise FxlrpError("There is no GPU that torch can use; leave --device out.")
    loaded = load_model(model, arch=arch, trust=trust, pretrained=not random_weights)
    if device == "cpu" and any(p.dtype in WIDER for p in loaded.module.parameters()):
        err.print("[yellow]note:[/] the model is in half precision, in which a CPU is slow; it is run in float32.")
        loaded.module.float()
    loaded.module.to(device)
    if not loaded.reads_text:
        loaded.preprocess = loaded.preprocess.but(channels=channels_of(loaded.module))
    return loaded


def _explainer(loaded: LoadedModel, rules: str, strict: bool) -> Explainer | ExportedExplainer:
    """The model converted, unless it is an explainer that was exported."""
    if isinstance(loaded.module, ExportedExplainer):
        return loaded.module
    return convert(loaded.module, rules=rules, strict=strict)


def _explain(
    explainer: Explainer | ExportedExplainer,
    loaded: LoadedModel,
    picture: Path,
    file: Path,
    *,
    target: int | None,
    contrast: int | str | None,
    given: bool = False,
) -> None:
    """Explain one picture, print what was predicted and explained, and write the heatmap."""
    x, seen = loaded.preprocess(open_picture(picture))
    a = explainer(loaded.like(x[None]), target=target, contrast=contrast)
    if given and loaded.labels and len(loaded.labels) != a.logits.shape[1]:
        raise FxlrpError(f"--labels has {len(loaded.labels)} names, but the model has {a.logits.shape[1]} classes.")
    a.save(file, picture=seen)
    _say_explained(a, loaded, picture, contrast)
    out.print(f"  wrote [bold]{escape(str(file))}[/]", soft_wrap=True)


def _say_explained(a: Attribution, loaded: LoadedModel, picture: Path, contrast: int | str | None) -> None:
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
    said = f"{loaded.label(explained)} ({probabilities[explained]:.1%}), {versus}"
    out.print(f"  explained [bold]{escape(said)}[/]", soft_wrap=True)


def _say_counts(report: Report) -> None:
    counts = report.counts
    out.print(f"rulebook {report.rulebook}: {counts['rule']} nodes by rule, {counts['structural']} structural", end="")
    out.print(f", {counts['generic']} by the generic rule")
    _warn(report)


def _warn(report: Report) -> None:
    if report.counts["generic"]:
        ops = ", ".join(sorted({node.op for node in report.nodes if node.kind == "generic"}))
        err.print(f"[yellow]warning:[/] these ops have no rule of their own: {escape(ops)}", soft_wrap=True)


def _notice_guess(loaded: LoadedModel) -> None:
    how = loaded.preprocess
    if how.guessed:
        size = "x".join(map(str, how.size))
        said = (
            f"the model does not say what pictures it takes: {size}, ImageNet's mean and std (--size, --mean, --std)."
        )
        err.print(f"[yellow]note:[/] {said}", soft_wrap=True)


def _probabilities(logits: Tensor) -> Tensor:
    """Softmax of the logits [K], unless they are probabilities already; sigmoid of a single one."""
    if len(logits) == 1:
        return logits.sigmoid()
    done = bool((logits >= 0).all()) and abs(float(logits.sum()) - 1) < 1e-4
    return logits if done else logits.softmax(0)


def _contrast(name: str, loaded: LoadedModel, book: Rulebook | None = None) -> int | str | None:
    if name == "default" and book is not None:
        return book.default_contrast
    if name in ("none", "others", "softmax"):
        return None if name == "none" else name
    return find_class(name, loaded.labels)


def _said(contrast: str) -> str | None:
    return None if contrast == "default" else contrast


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    if not (found := re.fullmatch(r"([0-9]{1,9})(?:x([0-9]{1,9}))?", text)):
        raise FxlrpError(f"--size takes pixels, as in 224 or 240x320, not {text}.")
    return int(found[1]), int(found[2] or found[1])


def _numbers(text: str | None, option: str) -> tuple[float, ...] | None:
    try:
        return None if text is None else tuple(float(part) for part in text.split(","))
    except ValueError:
        raise FxlrpError(f"--{option} takes numbers parted by commas, as in 0.5,0.5,0.5, not {text}.") from None


def main() -> None:
    """The entry point of the `fxlrp` command."""
    app()


if __name__ == "__main__":
    main()
