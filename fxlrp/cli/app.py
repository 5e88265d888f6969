"""The command line: explain, generate, compare, export, evaluate and more.  Parses, calls the library, prints.

A command imports what it does when it runs: torch takes seconds, which help and a mistyped option need not wait for.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer
from rich.markup import escape

from fxlrp import __version__
from fxlrp.cli import options
from fxlrp.cli.terminal import err, errors_in_one_sentence, out, print_json, print_rulebooks
from fxlrp.errors import FxlrpError
from fxlrp.methods import DEFAULT

app = typer.Typer(
    help="Explain what a PyTorch model looked at, by layer-wise relevance propagation.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


@app.command()
@errors_in_one_sentence
def explain(
    model: options.Model,
    inputs: options.Inputs = None,
    output: options.Heatmaps = None,
    target: options.Target = None,
    contrast: options.Contrast = "default",
    rules: options.Rules = DEFAULT,
    device: options.Device = None,
    arch: options.Arch = None,
    weights: options.Weights = None,
    text_file: options.TextFile = None,
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
    at: options.Inside = None,
    truncate: options.Truncate = False,
    shifts: options.Shifts = None,
    size: options.Size = None,
    mean: options.Mean = None,
    std: options.Std = None,
    labels: options.Labels = None,
    trust: options.Trust = False,
    random_weights: options.RandomWeights = False,
    strict: options.Strict = False,
    cache: options.Cache = None,
    debug: options.Debug = False,
) -> None:
    """Explain pictures: the original, the heatmap and both in one, side by side; or texts, coloured word by word.

    Red spoke for the class, blue against it. --html writes a page with buttons for other classes and rulebooks.

    [dim]fxlrp explain model.pt cat.png[/]
    [dim]fxlrp explain timm:resnet50 photos/ -o heatmaps/ --target "tabby, tabby cat"[/]
    [dim]fxlrp explain weights.safetensors cat.png --arch torchvision:vit_b_16 --contrast softmax[/]
    [dim]fxlrp explain hf:DIR "It isn't a gripping film." --target positive --html why.html[/]
    [dim]fxlrp explain hf:DIR --text-file reviews.txt -o reviews/[/]
    """
    from fxlrp.cli.answering import Asked, Written, answer_files
    from fxlrp.cli.calls import are_calls
    from fxlrp.cli.checks import may_read_text
    from fxlrp.cli.loading import load, print_counts, refuse_options, split_names
    from fxlrp.cli.taking import taken
    from fxlrp.inputs import find_pictures, output_files
    from fxlrp.text.command import explain_texts, question_of

    if not inputs and text_file is None:
        raise FxlrpError(
            "There is nothing to explain: give pictures, a .csv, .npy or .wav, or for a model of text a text in quotes."
        )
    out.quiet = quiet
    of_texts: dict[str, Any] = {"text_file": text_file, "pair": pair}
    of_pictures: dict[str, Any] = {"box": box, "size": size, "mean": mean, "std": std}
    of_calls: dict[str, Any] = {"columns": columns, "row": row}
    loaded = load(model, arch, weights, trust, random_weights, device) if may_read_text(model) else None
    if loaded is not None and loaded.reads_text:
        refuse_options(of_pictures | {"at": at, "shifts": shifts, "labels": labels}, "pictures")
        refuse_options(of_calls, "tables")
        how = {**question_of(target, contrast, position), "pair": pair, "truncate": truncate}
        how |= {"rules": rules, "strict": strict, "cache": cache, "text_file": text_file}
        how |= {"html": html, "output": output, "as_json": as_json, "colours": colours, "dpi": dpi}
        explainer = explain_texts(loaded.module, model, inputs or [], console=out, **how)
        return None if as_json else print_counts(explainer.report())
    refuse_options(of_texts, "text")
    asked = Asked(target or (), contrast, position, rules, strict, shifts or 1, split_names(at or ""), cache)
    written = Written(html, as_json, colours, opacity, dpi)
    as_calls = are_calls(inputs or [])
    refuse_options(of_pictures if as_calls else of_calls, "pictures" if as_calls else "tables")
    files = [Path(name) for name in inputs or []] if as_calls else find_pictures(inputs or [])
    wrote = output_files(files, output)
    loaded = loaded or load(model, arch, weights, trust, random_weights, device)
    if loaded.reads_text:
        raise FxlrpError(f"{loaded.name} reads text and came without a tokenizer; give the folder it was saved to.")
    loaded, reading = taken(loaded, model, as_calls, asked, labels, **of_pictures, **of_calls)
    answer_files(loaded, reading, files, wrote, asked, written)


@app.command()
@errors_in_one_sentence
def export(
    model: options.Model,
    output: options.ExportFile = Path("explainer.pt2"),
    contrast: options.ExportedContrast = "default",
    rules: options.Rules = DEFAULT,
    aoti: options.CompileAoti = False,
    arch: options.Arch = None,
    weights: options.Weights = None,
    size: options.Size = None,
    mean: options.Mean = None,
    std: options.Std = None,
    labels: options.Labels = None,
    trust: options.Trust = False,
    random_weights: options.RandomWeights = False,
    debug: options.Debug = False,
) -> None:
    """Save a model and its relevance pass as one file that torch runs without fxlrp.

    Inputs (pictures, target), target −1 for the top class; outputs (logits, relevance).  `fxlrp explain` takes it too.

    [dim]fxlrp export timm:resnet50 -o explainer.pt2[/]
    """
    from dataclasses import asdict

    import torch

    from fxlrp.cli.loading import load, parse_contrast, print_counts, take_pictures
    from fxlrp.explainer import convert
    from fxlrp.export.artifact import check_file
    from fxlrp.export.artifact import export as save_explainer

    check_file(output, aoti)
    loaded = load(model, arch, weights, trust, random_weights, "cpu")
    if loaded.reads_text:
        raise FxlrpError(f"{loaded.name} reads text; the command exports what takes pictures: use Explainer.export.")
    loaded = take_pictures(loaded, size, mean, std, labels)
    noise = torch.rand(2, loaded.preprocess.channels, *loaded.preprocess.size)
    with err.status("exporting"):
        explainer = convert(loaded.module, loaded.like(noise), rules=rules)
        about = {"labels": loaded.labels, "preprocess": asdict(loaded.preprocess)}
        against = parse_contrast(contrast, loaded)
        file = save_explainer(explainer, output, contrast=against, aoti=aoti, about=about)
    out.print(f"wrote [bold]{escape(str(file))}[/], {file.stat().st_size / 1e6:.0f} MB", soft_wrap=True)
    print_counts(explainer.report())


@app.command()
@errors_in_one_sentence
def generate(
    model: options.Model,
    prompt: options.Prompt,
    max_new_tokens: options.MaxNewTokens = 20,
    continuation: options.Continuation = None,
    contrast: options.TokenContrast = None,
    rules: options.RulesOrDefault = None,
    html: options.Html = None,
    truncate: options.Truncate = False,
    device: options.Device = None,
    arch: options.Arch = None,
    weights: options.Weights = None,
    trust: options.Trust = False,
    random_weights: options.RandomWeights = False,
    debug: options.Debug = False,
) -> None:
    """Let a language model write, and explain each token by the prompt and the tokens before it.

    [dim]fxlrp generate hf:DIR "Once upon a time" --max-new-tokens 20 --html why.html[/]
    """
    from fxlrp.cli.loading import load
    from fxlrp.text.command import generate_text

    loaded = load(model, arch, weights, trust, random_weights, device)
    if not loaded.reads_text:
        raise FxlrpError(f"{loaded.name} reads no text; generate takes a language model of Hugging Face's.")
    how: dict[str, Any] = {"continuation": continuation, "max_new_tokens": max_new_tokens, "contrast": contrast}
    generate_text(loaded.module, model, prompt, rules=rules, truncate=truncate, html=html, console=out, **how)


@app.command()
@errors_in_one_sentence
def inspect(
    model: options.Model,
    example: options.Example = None,
    rules: options.Rules = DEFAULT,
    device: options.Device = None,
    arch: options.Arch = None,
    weights: options.Weights = None,
    columns: options.Columns = None,
    row: options.Row = None,
    size: options.Size = None,
    mean: options.Mean = None,
    std: options.Std = None,
    trust: options.Trust = False,
    random_weights: options.RandomWeights = False,
    strict: options.Strict = False,
    nodes: options.AllNodes = False,
    mass: options.Mass = False,
    depth: options.Depth = 99,
    as_json: options.AsJson = False,
    debug: options.Debug = False,
) -> None:
    """Show which rule explains each op of a model; with an input, where its relevance goes.

    [dim]fxlrp inspect torchvision:densenet121 --random-weights[/]
    [dim]fxlrp inspect model.pt cat.png --mass --depth 2[/]
    [dim]fxlrp inspect table.pt rows.csv --columns age,size --row 0[/]
    """
    if mass and example is None:
        raise FxlrpError("--mass weighs the explanation of an input: fxlrp inspect MODEL INPUT --mass.")
    from fxlrp.cli.loading import load, warn_of_generic_ops
    from fxlrp.cli.taking import example_of
    from fxlrp.explainer import convert

    loaded = load(model, arch, weights, trust, random_weights, device)
    explainer = convert(loaded.module, rules=rules, strict=strict)
    args, kwargs = example_of(loaded, model, example, size=size, mean=mean, std=std, columns=columns, row=row)
    report = explainer.report(*args, **kwargs)
    if as_json:
        print_json({"fxlrp": __version__, "model": loaded.name, **report.to_dict()})
    else:
        out.print(report.tree(depth) if mass else report.table(nodes=nodes))
    warn_of_generic_ops(report)


@app.command()
@errors_in_one_sentence
def rules(debug: options.Debug = False) -> None:
    """List the rulebooks and what each does."""
    print_rulebooks()


@app.command()
@errors_in_one_sentence
def demo(
    output: options.DemoFolder = Path(),
    text: options.DemoText = False,
    debug: options.Debug = False,
) -> None:
    """Explain two objects in one picture with the network that comes with fxlrp; needs no network access."""
    from fxlrp.cli.pictures import demo_pictures
    from fxlrp.text.command import demo_text

    demo_text(output / "demo_text.html", out) if text else demo_pictures(output)


@app.callback(invoke_without_command=True)
def _main(show: options.Version = False) -> None:
    if show:
        from importlib.metadata import version

        out.print(f"fxlrp {version('fxlrp')}")
        raise typer.Exit


def main() -> None:
    """Run the `fxlrp` command."""
    from fxlrp.cli import app  # with the commands of other files, even if this one is run by itself

    app(prog_name="fxlrp")


if __name__ == "__main__":
    main()
