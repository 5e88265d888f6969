"""The options of the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fxlrp.methods import DEFAULT

COMPARED_RULES = f"{DEFAULT},abslrp,zplus,gamma,attnlrp,gradient-input"
EVALUATED_TEXTS = (
    f"{DEFAULT},abslrp,attnlrp,input-x-gradient,integrated-gradients,attention-rollout,chefer,occlusion,random"
)
EVALUATED = f"{DEFAULT},abslrp,abslrp-2024-12,input-x-gradient,integrated-gradients,smoothgrad,gradcam,random"

# The model and how it is loaded.
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
Weights = Annotated[
    str | None,
    typer.Option(help="Of a file with several state dicts, the key of one, as model_ema.", metavar="KEY"),
]
Device = Annotated[str | None, typer.Option(help="cpu or cuda; the GPU if there is one.")]
Trust = Annotated[bool, typer.Option("--trust", help="Unpickle whatever MODEL asks for; it may run any code.")]
RandomWeights = Annotated[
    bool, typer.Option("--random-weights", help="timm:, torchvision: and hf: names without their weights.")
]

# The question and the rules.
Rules = Annotated[str, typer.Option(help="Rulebook, as gamma or gamma:gamma=0.1; `fxlrp rules` lists them.")]
RulesOrDefault = Annotated[str | None, typer.Option(help="Rulebook; `fxlrp rules` lists them.")]
SeveralRules = Annotated[str, typer.Option("--rules", help="Rulebooks with commas between, each as for explain.")]
Strict = Annotated[bool, typer.Option("--strict", help="Refuse a model in which some op has no rule of its own.")]
Cache = Annotated[
    Path | None, typer.Option(help="Keep captured graphs here, so that the next run need not trace.", metavar="DIR")
]
Target = Annotated[
    list[str] | None,
    typer.Option(
        help="Class to explain, number or name; the top one. Several: --target A --target B.", metavar="CLASS"
    ),
]
OneTarget = Annotated[str | None, typer.Option("--target", help="Class to explain, number or name; the top one.")]
Contrast = Annotated[
    str,
    typer.Option(
        help="What it is set against: none, others, softmax, a class, or what suits the rulebook.",
        metavar="CONTRAST",
    ),
]
ExportedContrast = Annotated[str, typer.Option(help="As for explain; it becomes part of the graph.")]
TokenContrast = Annotated[
    str | None, typer.Option(help="What each token is set against: none, others, softmax, or a word; softmax.")
]

# Pictures.
Input = Annotated[str, typer.Argument(help="As for explain, one.", metavar="INPUT")]
Example = Annotated[
    str | None,
    typer.Argument(help="As for explain, one; without it a picture of noise, or some tokens.", metavar="[INPUT]"),
]
Inputs = Annotated[
    list[str] | None,
    typer.Argument(
        help="Pictures: files, folders or globs. Calls: .npy, .npz, .safetensors, .csv, .wav. For a model of "
        "text: texts, - to read one.",
        metavar="INPUT...",
    ),
]
Inside = Annotated[str | None, typer.Option("--at", help="Modules whose maps the page shows.", metavar="A,B,…")]
Shifts = Annotated[
    int | None, typer.Option(help="Mean of so many maps of moved pictures: 4 remove a transformer's grid.", min=1)
]
Size = Annotated[str | None, typer.Option(help="Input size in pixels, H or HxW.", metavar="H[xW]")]
Mean = Annotated[str | None, typer.Option(help="Of each colour in 0..1, as 0.5,0.5,0.5.", metavar="R,G,B")]
Std = Annotated[str | None, typer.Option(help="Of each colour in 0..1.", metavar="R,G,B")]
Box = Annotated[int | None, typer.Option(help="Of a detector, the box to explain: 0 is the surest.", min=0)]
Columns = Annotated[str | None, typer.Option(help="Columns of a table that the model takes.", metavar="A,B,…")]
Row = Annotated[int | None, typer.Option(help="The only row of a table, from 0.", min=0)]
Labels = Annotated[Path | None, typer.Option(help="Class names: one a line, or JSON.")]

# Texts.
Prompt = Annotated[str, typer.Argument(help="What the model goes on from; - reads it.")]
Continuation = Annotated[str | None, typer.Option(help="Explain this text instead of one it writes.")]
MaxNewTokens = Annotated[int, typer.Option(help="How many tokens it writes at most.", min=1)]
TextFile = Annotated[Path | None, typer.Option(help="Texts, one a line.")]
Pair = Annotated[str | None, typer.Option(help="The second text, as the context of a question.")]
Position = Annotated[
    str | None,
    typer.Option(
        help="Of a text the token asked about, its place or a word; of a map of scores row,column; of a "
        "sequence a place.",
        metavar="PLACE",
    ),
]
Truncate = Annotated[bool, typer.Option("--truncate", help="Leave out what is over the model's limit.")]

# What is written.
Heatmaps = Annotated[
    Path | None,
    typer.Option(
        "-o",
        "--output",
        help="File for one picture (.png .svg .pdf .jpg .webp .html .json .csv .npz .safetensors), folder for several; "
        "./NAME_fxlrp.png.  Of a text: .png .svg .pdf .html .json .csv, or a folder.",
    ),
]
ExportFile = Annotated[Path, typer.Option("-o", "--output", help="A .pt2 or .onnx file.")]
ComparisonFile = Annotated[
    Path, typer.Option("-o", "--output", help="A figure (.png .svg .pdf .jpg), .html, .json or .npz.")
]
DemoFolder = Annotated[Path, typer.Option("-o", "--output", help="Folder for what is written.")]
ResultsFolder = Annotated[Path | None, typer.Option("-o", "--out", help="Folder for the results; a rerun goes on.")]
Html = Annotated[Path | None, typer.Option(help="Write a page to look at: one HTML file.", metavar="FILE")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print notes and errors alone.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print what was found as JSON, and nothing else.")]
Colours = Annotated[
    str, typer.Option(help="red-blue, lightness (for who can't tell red from blue), or a map of matplotlib's.")
]

Opacity = Annotated[float, typer.Option(help="Of the map over the picture, in figures.", min=0, max=1)]
Dpi = Annotated[
    float, typer.Option(help="Pixels per inch of figures, a panel of which is 3.2 inches.", min=20, max=1200)
]

# Of one command each.
CompileAoti = Annotated[bool, typer.Option("--aoti", help="Compile for this machine, by AOTInductor.")]
AllNodes = Annotated[bool, typer.Option("--nodes", help="A row for every node.")]
Mass = Annotated[bool, typer.Option("--mass", help="How much relevance arrives and leaves, by module.")]
Depth = Annotated[int, typer.Option(help="Levels of modules shown by --mass.", min=1)]
DemoText = Annotated[bool, typer.Option("--text", help="Two reviews in the place of a picture.")]

# Of `fxlrp evaluate`.
Data = Annotated[
    str,
    typer.Argument(
        help="A folder of pictures, one saved by Hugging Face's datasets, a .tar, .parquet or .csv, or module:factory."
    ),
]
Methods = Annotated[
    str | None,
    typer.Option(help=f"Rulebooks and baselines, by commas; {EVALUATED}, of a suite all.", metavar="A,B,…"),
]
Suite = Annotated[
    str | None,
    typer.Option(
        help="In the place of MODEL and DATA: known, networks whose right answer is known, or some of its suites."
    ),
]
EvaluatedModel = Annotated[str | None, typer.Argument(metavar="[MODEL]", help="As of explain; none with --suite.")]
EvaluatedData = Annotated[
    str | None,
    typer.Argument(
        metavar="[DATA]",
        help="A folder of pictures, a data set saved by Hugging Face's datasets, a .tar, .parquet, .csv or .jsonl, or "
        "module:factory; for a model of text also a split of ERASER's.",
    ),
]
Masks = Annotated[Path | None, typer.Option(help="Folder with NAME.png or NAME_mask.png for each picture.")]
Limit = Annotated[int | None, typer.Option(help="Only the first so many samples.", min=1)]
TuneLimit = Annotated[int, typer.Option("--limit", help="Only the first so many pictures.", min=4)]
Steps = Annotated[int, typer.Option(help="Masking steps.", min=2)]
Definition = Annotated[str, typer.Option(help="Of GAE: fixed, or 2024-12 as published.")]
BatchSize = Annotated[int, typer.Option("--batch-size", help="Inputs in one call of the model.", min=1)]
Seed = Annotated[int, typer.Option(help="Of mosaics and noise.")]

# Of `fxlrp concepts` and `fxlrp circuit`.
ConceptData = Annotated[
    str, typer.Argument(help="Pictures: a folder or glob. For a model of text: a file, one a line.", metavar="DATA")
]
Place = Annotated[str, typer.Option("--at", help="The module or node whose parts are looked at, as layer3.")]
ConceptFolder = Annotated[Path, typer.Option("-o", "--output", help="Folder for what is found; a rerun goes on.")]
Explained = Annotated[str | None, typer.Option(help="A picture (or text) that the page explains.", metavar="INPUT")]
ConceptParts = Annotated[str, typer.Option("--by", help="channels, or heads of an attention.")]
Directions = Annotated[
    Path | None, typer.Option(help="A matrix [K, C] of directions in the place of channels: .npy or .safetensors.")
]
MostConcepts = Annotated[int, typer.Option("--most", help="How many concepts are shown.", min=1)]
References = Annotated[int, typer.Option("--top", help="How many samples are kept for each.", min=1)]
CircuitInput = Annotated[str, typer.Argument(help="A picture, or a text for a model that reads it.", metavar="INPUT")]
CircuitFile = Annotated[
    Path | None, typer.Option("-o", "--output", help="Page (.html), drawing (.svg) or all of it (.json).")
]
TopEdges = Annotated[int, typer.Option("--top", help="How many edges are shown.", min=1)]
CircuitNodes = Annotated[
    str | None, typer.Option("--nodes", help="Modules; every attention and pair of layers.", metavar="A,B,…")
]
CircuitDepth = Annotated[int | None, typer.Option("--depth", help="Or every module of this depth.", min=1)]

# Of `fxlrp map`, `view` and `cluster`.
DataSet = Annotated[
    str,
    typer.Argument(
        help="A folder, a glob, a .tar of WebDataset, .parquet, .csv, .jsonl, a data set saved by Hugging Face's "
        "datasets, or module:factory.",
        metavar="DATA",
    ),
]
MapsFolder = Annotated[
    Path, typer.Option("-o", "--output", help="Folder for Parquet, or NAME.zarr; the same command goes on.")
]
Maps = Annotated[Path, typer.Argument(help="What `fxlrp map` wrote.", metavar="OUT")]
Keep = Annotated[str, typer.Option(help="heat, full, top:N (its N strongest places) or latent:MODULE.", metavar="KEEP")]
Dtype = Annotated[str, typer.Option(help="float16 or float32.")]
Column = Annotated[str | None, typer.Option(help="Of a table, the column of pictures or texts.")]
LabelColumn = Annotated[str | None, typer.Option("--label", help="Of a table, the column of labels.")]
KeyColumn = Annotated[str | None, typer.Option("--key", help="Of a table, the column of keys.")]
Batch = Annotated[int | None, typer.Option(help="Samples in one call; what memory allows.", min=1)]
Shard = Annotated[int | None, typer.Option(help="Samples in one file, the unit of work; 256.", min=1)]
Threads = Annotated[int, typer.Option(help="Of each worker; bits may depend on it.", min=1)]
Workers = Annotated[int, typer.Option(help="Processes of Ray, or its actors on a cluster; 0 for none.", min=0)]
RayAddress = Annotated[str | None, typer.Option("--ray", help="A cluster's address, or auto.", metavar="ADDRESS")]
FailFast = Annotated[bool, typer.Option("--fail-fast", help="Stop at the first sample that fails.")]
NoThumbnails = Annotated[bool, typer.Option("--no-thumbnails", help="Keep no small picture of what was seen.")]
ViewFile = Annotated[
    Path | None, typer.Option("-o", "--output", help="An .html file, or a folder for large sets; OUT.html.")
]
ShownLimit = Annotated[
    int | None, typer.Option("--limit", help="At most so many rows, taken evenly; 500, of a folder 20,000.", min=1)
]
ClusterFile = Annotated[Path | None, typer.Option("-o", "--output", help="The page; OUT-clusters.html.")]
ClusterLimit = Annotated[int, typer.Option("--limit", help="At most so many samples, taken evenly.", min=8)]
OneClass = Annotated[str | None, typer.Option("--class", help="Only this class, by the name that was explained.")]

Port = Annotated[int, typer.Option(help="Where the app is served.", min=1, max=65535)]
Debug = Annotated[bool, typer.Option("--debug", help="Show where an error came from.")]
Version = Annotated[bool, typer.Option("--version", help="Show the version.")]
