"""The commands for whole data sets: explain every sample, browse the maps, find clusters among them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from fxlrp.cli import options
from fxlrp.cli.app import app
from fxlrp.cli.terminal import err, errors_in_one_sentence, out
from fxlrp.errors import counted
from fxlrp.methods import DEFAULT

if TYPE_CHECKING:
    from fxlrp.data.run import Progress


@app.command(name="map")
@errors_in_one_sentence
def map_data(
    model: options.Model,
    data: options.DataSet,
    output: options.MapsFolder,
    target: options.OneTarget = None,
    contrast: options.Contrast = "default",
    rules: options.Rules = DEFAULT,
    keep: options.Keep = "heat",
    dtype: options.Dtype = "float16",
    column: options.Column = None,
    label: options.LabelColumn = None,
    key: options.KeyColumn = None,
    limit: options.Limit = None,
    batch: options.Batch = None,
    shard: options.Shard = None,
    threads: options.Threads = 1,
    workers: options.Workers = 0,
    ray: options.RayAddress = None,
    fail_fast: options.FailFast = False,
    no_thumbnails: options.NoThumbnails = False,
    truncate: options.Truncate = False,
    device: options.Device = None,
    arch: options.Arch = None,
    weights: options.Weights = None,
    size: options.Size = None,
    mean: options.Mean = None,
    std: options.Std = None,
    labels: options.Labels = None,
    trust: options.Trust = False,
    random_weights: options.RandomWeights = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Explain every sample of a data set, pictures or texts, and keep a row of each in Parquet or zarr.

    A sample that fails is a row with its error. Killed at any moment, the same command goes on where it was.

    [dim]fxlrp map timm:resnet50 photos/ -o maps/[/]
    [dim]fxlrp map hf:DIR reviews.csv --column text -o maps/ --workers 4[/]
    [dim]fxlrp map timm:resnet50 "train-*.tar" -o maps.zarr --ray auto --workers 8[/]
    """
    from fxlrp.data.prepare import Asked
    from fxlrp.data.run import check, explain
    from fxlrp.data.sources import Columns

    columns = Columns(column, label, key)
    how: dict[str, Any] = {"rules": rules, "keep": keep, "dtype": dtype, "columns": columns, "batch": batch}
    how |= {"shard": shard, "threads": threads, "workers": workers, "limit": limit, "truncate": truncate}
    check(Asked(**how), output, data, uses_ray=workers > 0 or ray is not None)
    load = partial(_load, model, arch, weights, trust, random_weights, device, size, mean, std, labels)
    how |= {"target": target, "contrast": None if contrast == "none" else contrast, "thumbnails": not no_thumbnails}
    out.quiet = quiet
    with _progress() as progress:
        maps = explain(load, data, output, ray=ray, fail_fast=fail_fast, progress=progress, **how)
    failed = f", [yellow]{maps.errors} of them without a map[/]" if maps.errors else ""
    out.print(f"wrote [bold]{escape(str(output))}[/]: {counted(len(maps), 'row')}{failed}", soft_wrap=True)
    first = next((row for row in maps if row["error"] is not None), None) if maps.errors else None
    if first is not None:
        out.print(f"  the first: {escape(first['key'])}: {escape(first['error'])}", soft_wrap=True)
    out.print(f"  [dim]fxlrp view {escape(str(output))}[/]", soft_wrap=True)


@app.command()
@errors_in_one_sentence
def view(
    maps: options.Maps,
    output: options.ViewFile = None,
    limit: options.ShownLimit = None,
    name: options.OneClass = None,
    debug: options.Debug = False,
) -> None:
    """Browse the maps of a data set in a page: sort, filter, and click for the large map.

    [dim]fxlrp view maps/[/]
    [dim]fxlrp view maps/ -o browse/ --limit 20000 --class tabby[/]
    """
    from fxlrp.data.view import view as write_view

    written = write_view(maps, output or maps.with_name(f"{maps.stem}.html"), limit=limit, name=name)
    out.print(f"wrote [bold]{escape(str(written))}[/], {written.stat().st_size / 1e6:.1f} MB", soft_wrap=True)


@app.command()
@errors_in_one_sentence
def cluster(
    maps: options.Maps,
    output: options.ClusterFile = None,
    limit: options.ClusterLimit = 5000,
    name: options.OneClass = None,
    debug: options.Debug = False,
) -> None:
    """Find groups of maps that look alike, and mark those that look where no others do: Clever Hans.

    [dim]fxlrp cluster maps/ -o strategies.html[/]
    """
    from fxlrp.data.cluster import cluster as find_clusters
    from fxlrp.data.cluster import write_page

    with err.status("clustering"):
        groups = find_clusters(maps, limit=limit, name=name)
        page = write_page(maps, groups, output or maps.with_name(f"{maps.stem}-clusters.html"))
    for group in groups:
        mark = "[bold red]marked[/] " if group.marked else ""
        out.print(f"  {mark}{escape(str(group))}", soft_wrap=True)
    out.print(f"wrote [bold]{escape(str(page))}[/]", soft_wrap=True)


def _load(
    model: str,
    arch: str | None,
    weights: str | None,
    trust: bool,
    random_weights: bool,
    device: str | None,
    size: str | None,
    mean: str | None,
    std: str | None,
    labels: Path | None,
) -> tuple[Any, Any]:
    """Load a model as the options say, and its tokenizer if it reads texts, in whichever process."""
    from fxlrp.cli.loading import load, refuse_options, take_pictures
    from fxlrp.text.command import load_tokenizer

    loaded = load(model, arch, weights, trust, random_weights, device)
    if not loaded.reads_text:
        return take_pictures(loaded, size, mean, std, labels), None
    refuse_options({"size": size, "mean": mean, "std": std, "labels": labels}, "pictures")
    return loaded, load_tokenizer(model)


@contextmanager
def _progress() -> Iterator[Progress]:
    """Show a bar with what is done, how fast, and when all will be, and yield what moves it."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("explaining"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[failed]}"))
    times = TimeElapsedColumn(), TimeRemainingColumn()
    with Progress(*columns, *times, console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task("", total=None, failed="")
        began: list[int] = []

        def tell(done: int, total: int, errors: int) -> None:
            if not began:  # what earlier runs did says nothing of the speed
                began.append(done)
                bar.reset(task, total=total, completed=done)
            bar.update(task, completed=done, total=total, failed=counted(errors, "error") if errors else "")

        yield tell
