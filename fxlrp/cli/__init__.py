"""The `fxlrp` command."""

from fxlrp.cli import comparing as comparing  # these add their commands
from fxlrp.cli import datasets as datasets
from fxlrp.cli import inside as inside
from fxlrp.cli import measuring as measuring
from fxlrp.cli.app import app, main

__all__ = ["app", "main"]
