"""Data sets at any scale: a row for each sample, in Parquet or zarr, by one process or by Ray; nothing is lost."""

from fxlrp.data.cluster import Cluster, cluster
from fxlrp.data.reading import Maps, read
from fxlrp.data.run import explain
from fxlrp.data.sources import Columns, open_source
from fxlrp.data.view import view

__all__ = ["Cluster", "Columns", "Maps", "cluster", "explain", "open_source", "read", "view"]
