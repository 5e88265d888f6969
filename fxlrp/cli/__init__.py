"""The `fxlrp` command."""

from fxlrp.cli.app import app, main

__all__ = ["app", "main"]
