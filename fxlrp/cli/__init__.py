"""The `fxlrp` command."""

from fxlrp.cli import inside as inside  # these two add their commands
from fxlrp.cli import measuring as measuring
from fxlrp.cli.app import app, main

__all__ = ["app", "main"]
