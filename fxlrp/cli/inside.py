"""The commands that look inside a network: its concepts, and its circuit for an input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.markup import escape

from fxlrp.cli import options
from fxlrp.cli.app import app
from fxlrp.cli.terminal import err, errors_in_one_sentence, out, print_json
from fxlrp.errors import FxlrpError
from fxlrp.methods import DEFAULT


@app.command()
@errors_in_one_sentence
def concepts(
    model: options.Model,
    data: options.ConceptData,
    at: options.Place,
    output: options.ConceptFolder = Path("concepts"),
    explain: options.Explained = None,
    by: options.ConceptParts = "channels",
    directions: options.Directions = None,
    most: options.MostConcepts = 5,
    top: options.References = 8,
    target: options.OneTarget = None,
    contrast: options.Contrast = "default",
    rules: options.Rules = DEFAULT,
    limit: options.Limit = None,
    batch_size: options.BatchSize = 16,
    device: options.Device = None,
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
    """Find what each channel, head or direction of a module stands for: the samples in which it is most relevant.

    Writes concepts.html to the folder; a rerun goes on where the last one ended. --explain shows one picture by them.

    [dim]fxlrp concepts timm:resnet50 photos/ --at layer3 -o out/ --explain cat.png[/]
    [dim]fxlrp concepts hf:DIR reviews.txt --at bert.encoder.layer.3.attention.self --by heads -o out/[/]
    """
    if by not in ("channels", "heads"):
        raise FxlrpError(f"--by is channels or heads, not {by}.")
    if directions is not None and not directions.is_file():
        raise FxlrpError(f"There is no file {directions}; --directions takes a .npy or .safetensors with one matrix.")
    from fxlrp.cli.loading import load, parse_contrast, take_pictures
    from fxlrp.explainer import convert
    from fxlrp.inputs import find_class
    from fxlrp.inputs.samples import sample_of, samples_of
    from fxlrp.inside.concepts import concepts as find_concepts
    from fxlrp.inside.matrices import read_matrix
    from fxlrp.inside.showing import show_concepts

    rows = None if directions is None else read_matrix(directions)
    loaded = load(model, arch, weights, trust, random_weights, device)
    loaded = loaded if loaded.reads_text else take_pictures(loaded, size, mean, std, labels)
    samples: Any = samples_of(model, loaded, data)
    if limit is not None:
        samples = samples.first(limit)
    one = None if explain is None else sample_of(model, loaded, explain)
    explainer = convert(loaded.module, rules=rules)
    cls = None if target is None else find_class(target, loaded.labels)
    against = parse_contrast(contrast, loaded)
    how: dict[str, Any] = {"target": cls, "contrast": against}
    found = find_concepts(
        explainer, samples, at, by=by, directions=rows, top=top, batch_size=batch_size, out=output, **how
    )
    out.print(found.table(most))
    how |= {} if one is None else {"explain": one[0], "seen": one.seen(0)}
    page = output / "concepts.html"
    with err.status("drawing what shows them"):
        show_concepts(explainer, found, samples, page, most=most, labels=loaded.labels or (), **how)
    out.print(f"wrote [bold]{escape(str(page))}[/]", soft_wrap=True)


@app.command()
@errors_in_one_sentence
def circuit(
    model: options.Model,
    given: options.CircuitInput,
    output: options.CircuitFile = None,
    top: options.TopEdges = 30,
    nodes: options.CircuitNodes = None,
    depth: options.CircuitDepth = None,
    as_json: options.AsJson = False,
    target: options.OneTarget = None,
    contrast: options.Contrast = "default",
    rules: options.Rules = DEFAULT,
    device: options.Device = None,
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
    """Show which modules hand relevance to which, for a picture or a text: as a table, a page, a drawing or JSON.

    [dim]fxlrp circuit timm:vit_base_patch16_224 cat.png -o circuit.html[/]
    [dim]fxlrp circuit hf:DIR "It isn't a gripping film." --top 20[/]
    """
    if output is not None and output.suffix.lower() not in (".html", ".svg", ".json"):
        raise FxlrpError(f"{output} is none of .html, .svg and .json.")
    from dataclasses import replace

    from fxlrp.cli.loading import load, parse_contrast, split_names, take_pictures
    from fxlrp.explainer import convert
    from fxlrp.inputs import find_class
    from fxlrp.inputs.samples import sample_of
    from fxlrp.inside.references import call_of

    loaded = load(model, arch, weights, trust, random_weights, device)
    loaded = loaded if loaded.reads_text else take_pictures(loaded, size, mean, std, labels)
    sample: Any = sample_of(model, loaded, given)[0]
    explainer = convert(loaded.module, rules=rules)
    question: dict[str, Any] = {
        "target": None if target is None else find_class(target, loaded.labels),
        "contrast": parse_contrast(contrast, loaded),
        "nodes": None if nodes is None else split_names(nodes),
        "depth": depth,
    }
    args, kwargs = call_of(sample)
    edges = explainer.edges(*args, **kwargs, **question)
    edges = replace(edges, labels=tuple(loaded.labels or ()))
    if as_json:
        print_json(edges.as_dict())
    else:
        out.print(edges.table(top))
    if output is not None:
        written = edges.save(output, top=top)
        (err if as_json else out).print(f"wrote [bold]{escape(str(written))}[/]", soft_wrap=True)
