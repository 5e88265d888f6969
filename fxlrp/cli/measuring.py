"""The commands that measure explanations, examine a model, and show it in a browser."""

from __future__ import annotations

import typer

from fxlrp.cli import options
from fxlrp.cli.app import app
from fxlrp.cli.terminal import err, errors_in_one_sentence, out
from fxlrp.errors import FxlrpError
from fxlrp.methods import DEFAULT


@app.command()
@errors_in_one_sentence
def evaluate(
    model: options.EvaluatedModel = None,
    data: options.EvaluatedData = None,
    suite: options.Suite = None,
    methods: options.Methods = None,
    masks: options.Masks = None,
    limit: options.Limit = None,
    output: options.ResultsFolder = None,
    steps: options.Steps = 10,
    definition: options.Definition = "fixed",
    batch_size: options.BatchSize = 16,
    seed: options.Seed = 0,
    workers: options.Workers = 0,
    ray: options.RayAddress = None,
    column: options.Column = None,
    label: options.LabelColumn = None,
    as_json: options.AsJson = False,
    device: options.Device = None,
    arch: options.Arch = None,
    weights: options.Weights = None,
    size: options.Size = None,
    mean: options.Mean = None,
    std: options.Std = None,
    trust: options.Trust = False,
    random_weights: options.RandomWeights = False,
    debug: options.Debug = False,
) -> None:
    """Measure how good explanations are: by masking, GAE, masks of objects; of texts by removal and rationales.

    [dim]fxlrp evaluate model.pt pictures/ --methods abslrp,gradcam,random --masks masks/ -o out/[/]
    [dim]fxlrp evaluate timm:resnet50 pictures/ --workers 4 -o out/[/]
    [dim]fxlrp evaluate hf:DIR reviews.jsonl --methods attnlrp,occlusion,random -o out/[/]
    [dim]fxlrp evaluate --suite known -o known/[/]
    """
    if suite is not None and model is not None:
        raise FxlrpError(f"--suite {suite} brings its own networks and data; leave out {model}.")
    if suite is None and (model is None or data is None):
        raise FxlrpError("Give a model and its data, or --suite known.")
    from fxlrp.cli.loading import load, refuse_options, split_names, take_pictures
    from fxlrp.data.texts import open_texts
    from fxlrp.gae import command as gae_command
    from fxlrp.gae.methods import BASELINES, name_methods
    from fxlrp.gae.texts.methods import BASELINES as OF_TEXTS
    from fxlrp.text.command import load_tokenizer

    how = {"limit": limit, "seed": seed, "workers": workers, "ray": ray}
    if suite is not None:
        asked = None if methods is None else split_names(methods)
        gae_command.say(gae_command.run_known(suite, asked, output, err, **how), output, out, as_json)
        return
    assert model is not None
    assert data is not None
    name_methods(list(dict.fromkeys(split_names(methods or ""))), {**BASELINES, **OF_TEXTS})
    loaded = load(model, arch, weights, trust, random_weights, device)
    how |= {"steps": steps, "batch_size": batch_size}
    if loaded.reads_text:
        of_pictures = {"masks": masks, "size": size, "mean": mean, "std": std}
        refuse_options(of_pictures | {"definition": None if definition == "fixed" else definition}, "pictures")
        names = split_names(methods or options.EVALUATED_TEXTS)
        texts = open_texts(data, column, label)
        report = gae_command.run_texts(loaded.module, load_tokenizer(model), texts, names, output, err, **how)
    else:
        refuse_options({"column": column, "label": label}, "text")
        loaded = take_pictures(loaded, size, mean, std, None)
        names = split_names(methods or options.EVALUATED)
        report = gae_command.run(loaded, data, names, masks, output, err, definition=definition, **how)
    gae_command.say(report, output, out, as_json)


@app.command()
@errors_in_one_sentence
def tune(
    model: options.Model,
    data: options.Data,
    masks: options.Masks = None,
    limit: options.TuneLimit = 64,
    output: options.ResultsFolder = None,
    steps: options.Steps = 10,
    batch_size: options.BatchSize = 16,
    seed: options.Seed = 0,
    as_json: options.AsJson = False,
    device: options.Device = None,
    arch: options.Arch = None,
    weights: options.Weights = None,
    size: options.Size = None,
    mean: options.Mean = None,
    std: options.Std = None,
    trust: options.Trust = False,
    random_weights: options.RandomWeights = False,
    debug: options.Debug = False,
) -> None:
    """Search the numbers of the default rulebook on pictures of your own, half of which are held out.

    [dim]fxlrp tune model.pt pictures/ --masks masks/ -o out/[/]
    """
    from fxlrp.cli.loading import load, take_pictures
    from fxlrp.gae import command as gae_command

    loaded = take_pictures(load(model, arch, weights, trust, random_weights, device), size, mean, std, None)
    how = {"limit": limit, "steps": steps, "batch_size": batch_size, "seed": seed}
    gae_command.say_tuned(gae_command.tune_rules(loaded, data, masks, output, err, **how), out, as_json)


@app.command()
@errors_in_one_sentence
def doctor(
    model: options.Model,
    example: options.Example = None,
    rules: options.Rules = DEFAULT,
    device: options.Device = None,
    arch: options.Arch = None,
    weights: options.Weights = None,
    columns: options.Columns = None,
    row: options.Row = None,
    size: options.Size = None,
    as_json: options.AsJson = False,
    trust: options.Trust = False,
    random_weights: options.RandomWeights = False,
    debug: options.Debug = False,
) -> None:
    """Say how a model was captured, which ops have no rule, what a map costs in time, and what to try.

    [dim]fxlrp doctor torchvision:swin_t --random-weights[/]
    [dim]fxlrp doctor table.pt rows.csv --columns age,size --row 0[/]
    """
    from fxlrp.cli.doctor import examine
    from fxlrp.cli.loading import load
    from fxlrp.cli.taking import example_of
    from fxlrp.explainer import convert

    loaded = load(model, arch, weights, trust, random_weights, device)
    explainer = convert(loaded.module, rules=rules)
    call = example_of(loaded, model, example, size=size, mean=None, std=None, columns=columns, row=row)
    examine(loaded, explainer, call, as_json)


@app.command(
    name="inseq",
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
@errors_in_one_sentence
def by_inseq(context: typer.Context, debug: options.Debug = False) -> None:
    """Run inseq's command line with every rulebook among its methods; --help lists its options.

    [dim]fxlrp inseq attribute --model_name_or_path DIR --attribution_method attnlrp --input_texts "Once upon a time"[/]
    """
    try:
        from fxlrp.adapters.inseq import main
    except ImportError as error:
        raise FxlrpError("inseq is not installed: pip install 'fxlrp[inseq]'.") from error
    main(context.args)


@app.command(name="app")
@errors_in_one_sentence
def in_browser(
    model: options.Model,
    rules: options.Rules = DEFAULT,
    port: options.Port = 7860,
    device: options.Device = None,
    arch: options.Arch = None,
    weights: options.Weights = None,
    size: options.Size = None,
    labels: options.Labels = None,
    trust: options.Trust = False,
    random_weights: options.RandomWeights = False,
    debug: options.Debug = False,
) -> None:
    """Open a page in the browser: drop a picture or type a text, and see why; needs the extra `app`.

    [dim]fxlrp app timm:resnet50[/]
    """
    from fxlrp.cli.app_in_browser import make_app
    from fxlrp.cli.loading import load, take_pictures
    from fxlrp.text.command import load_tokenizer

    loaded = load(model, arch, weights, trust, random_weights, device)
    tokenizer = load_tokenizer(model) if loaded.reads_text else None
    loaded = loaded if loaded.reads_text else take_pictures(loaded, size, None, None, labels)
    made = make_app(loaded, rules, tokenizer)
    out.print(f"http://127.0.0.1:{port}   (Ctrl-C ends it)")
    made.queue(default_concurrency_limit=1).launch(server_name="127.0.0.1", server_port=port, quiet=True, share=False)
