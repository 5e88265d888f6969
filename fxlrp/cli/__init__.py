"""The `fxlrp` command."""

from fxlrp.cli import measuring as measuring  # which adds its commands
from fxlrp.cli.app import app, main

__all__ = ["app", "main"]
