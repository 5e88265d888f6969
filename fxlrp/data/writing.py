"""Writing: the rows of a shard as one Parquet file, which is there whole or not at all.

Columns: index, key, label, name and target (the class explained), classes and scores (the likeliest, and their
probabilities), contrast, positive (the share of relevance that speaks for it), relevance, picture (a JPEG of what was
seen) or text, tokens and their places start…end in it, and error.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fxlrp.data.settings import Settings, part
from fxlrp.data.tables import arrow
from fxlrp.errors import FxlrpError
from fxlrp.gae.store import usable
from fxlrp.whole_files import written_whole

LARGEST = {"float16": 65504.0, "float32": 3.4e38}
Row = dict[str, Any]


def is_zarr(out: Path) -> bool:
    """Tell whether an OUT keeps its maps in zarr."""
    return out.suffix == ".zarr"


def schema_of(settings: Settings, zarr: bool = False) -> Any:
    """Return the Arrow schema of the rows, with the settings in its metadata.  zarr: without the relevance of it."""
    pa = arrow()
    number = pa.float16() if settings.dtype == "float16" else pa.float32()
    columns = [
        ("index", pa.int64()),
        ("key", pa.string()),
        ("label", pa.string()),
        ("name", pa.string()),
        ("target", pa.int32()),
        ("classes", pa.list_(pa.int32())),
        ("scores", pa.list_(pa.float32())),
        ("contrast", pa.string()),
        ("positive", pa.float32()),
    ]
    if settings.kind == "texts":
        columns += [("text", pa.string()), ("tokens", pa.list_(pa.string()))]
        columns += [("start", pa.list_(pa.int32())), ("end", pa.list_(pa.int32())), ("relevance", pa.list_(number))]
    elif settings.keep.startswith("top"):
        columns += [("places", pa.list_(pa.int32())), ("relevance", pa.list_(number))]
    elif not zarr:
        columns += [("relevance", pa.fixed_shape_tensor(number, tuple(settings.shape)))]
    if settings.kind == "pictures" and settings.thumbnails:
        columns += [("picture", pa.binary())]
    about = {**settings.__dict__, "labels": None}  # thousands of names in each of thousands of files
    return pa.schema([*columns, ("error", pa.string())], metadata={"fxlrp": json.dumps(about, ensure_ascii=False)})


def write_shard(out: Path, settings: Settings, shard: int, rows: Sequence[Row]) -> None:
    """Write the rows of a shard.

    Raises FxlrpError, leaving nothing of it, where the disk is full.
    """
    pa = arrow()
    schema = schema_of(settings, zarr=is_zarr(out))
    if is_zarr(out):
        with usable(out, "Maps"):
            maps = _dense(rows, settings, np.nan)
            open_zarr(out, settings)[shard * settings.shard : shard * settings.shard + len(rows)] = maps
    columns = []
    for about in schema:
        if isinstance(about.type, pa.FixedShapeTensorType):
            missing = np.array([row.get("relevance") is None for row in rows])
            values = pa.array(_dense(rows, settings, 0).reshape(-1))
            storage = pa.FixedSizeListArray.from_arrays(
                values, about.type.storage_type.list_size, mask=pa.array(missing)
            )
            columns.append(pa.ExtensionArray.from_storage(about.type, storage))
        else:
            columns.append(pa.array([row.get(about.name) for row in rows], about.type))
    table = pa.Table.from_arrays(columns, schema=schema)
    file = part(out, shard)
    with usable(out, "Maps"), written_whole(file) as opened:
        pa.parquet.write_table(table, opened, compression="zstd", use_dictionary=["label", "name", "contrast"])


def _dense(rows: Sequence[Row], settings: Settings, missing: float) -> np.ndarray:
    """Return the relevance of rows in one array, `missing` where a row has none."""
    maps = np.full((len(rows), *settings.shape), missing, dtype=settings.dtype)
    for i, row in enumerate(rows):
        if row.get("relevance") is not None:
            maps[i] = row["relevance"]
    return maps


def open_zarr(out: Path, settings: Settings | None = None) -> Any:
    """Return the array `relevance` of a zarr OUT, made by these settings if it is not there.

    Raises FxlrpError where zarr is not installed, and for maps that are not dense.
    """
    try:
        import zarr
    except ImportError as error:
        raise FxlrpError("A .zarr needs zarr: pip install 'fxlrp[data]'; or give a folder, for Parquet.") from error
    if settings is None:
        return zarr.open_group(str(out), mode="r")["relevance"]
    group = zarr.open_group(str(out), mode="a")
    if "relevance" not in group:
        group.create_array(
            "relevance",
            shape=(settings.samples, *settings.shape),
            chunks=(settings.shard, *settings.shape),
            dtype=settings.dtype,
            fill_value=np.nan,
            attributes={"fxlrp": json.loads(settings.as_json())},
        )
    return group["relevance"]


def whole_shards(out: Path, settings: Settings) -> dict[int, int]:
    """Return the shards that are written, with how many of their rows are errors.

    Raises FxlrpError for one that is damaged.
    """
    pq = arrow().parquet
    errors: dict[int, int] = {}
    for shard in range(settings.shards):
        file = part(out, shard)
        if not file.exists():
            continue
        try:
            about = pq.read_metadata(file)
            errors[shard] = _errors(about)
        except Exception as error:
            raise FxlrpError(f"{file} is damaged; delete it, and the same command makes it again.") from error
        if about.num_rows != len(settings.range_of(shard)):
            raise FxlrpError(f"{file} has {about.num_rows} rows, not its own; delete it, and it is made again.")
    return errors


def _errors(about: Any) -> int:
    """Count the rows with an error by a file's footer."""
    last = about.num_columns - 1  # the error
    groups = (about.row_group(g) for g in range(about.num_row_groups))
    return sum(g.num_rows - g.column(last).statistics.null_count for g in groups)
