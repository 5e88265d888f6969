"""`python -m fxlrp`: the command, where its script is not on the path."""

from fxlrp.cli import main

main()
