"""Runs the command as `python -m fxlrp.cli`, as torchrun wants it."""

from fxlrp.cli.app import main

main()
