"""Rules: the registry, and the rulebooks, each a table from op to rule."""

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
