"""Rules: the registry, and the rulebooks, each a table from op to rule."""

import sys

from fxlrp.rules import classic, gradients, hybrid, transformers
from fxlrp.rules.abslrp import ABSLRP
from fxlrp.rules.published import APRIL, abslrp_2024_12
from fxlrp.rules.registry import (
    ABSOLUTE,
    STRUCTURAL,
    Derivative,
    Rule,
    Rulebook,
    rule,
    rulebook,
    rulebooks,
    table,
    unregister,
)

__all__ = [
    "ABSLRP",
    "ABSOLUTE",
    "APRIL",
    "STRUCTURAL",
    "Derivative",
    "Rule",
    "Rulebook",
    "abslrp_2024_12",
    "classic",
    "gradients",
    "hybrid",
    "rule",
    "rulebook",
    "rulebooks",
    "table",
    "transformers",
    "unregister",
]

if __name__ != "fxlrp.rules":  # imported by the link at the checkout's root: the same modules, not a second registry
    ours = {name: module for name, module in sys.modules.items() if name.startswith("fxlrp.rules")}
    sys.modules |= {name.removeprefix("fxlrp."): module for name, module in ours.items()}
