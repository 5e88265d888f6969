"""The `fxlrp` command."""

from fxlrp.cli import datasets as datasets  # which adds its commands, as the next does
from fxlrp.cli import measuring as measuring
from fxlrp.cli.app import app, main

__all__ = ["app", "main"]
