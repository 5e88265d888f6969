"""Rules: how relevance goes through each op, as formulas, and the registry that rulebooks find them by."""

import sys

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
    "ABSOLUTE",
    "STRUCTURAL",
    "Derivative",
    "Rule",
    "Rulebook",
    "rule",
    "rulebook",
    "rulebooks",
    "table",
    "unregister",
]

if __name__ != "fxlrp.rules":  # imported by the link at the checkout's root: the same modules, not a second registry
    ours = {name: module for name, module in sys.modules.items() if name.startswith("fxlrp.rules")}
    sys.modules |= {name.removeprefix("fxlrp."): module for name, module in ours.items()}
