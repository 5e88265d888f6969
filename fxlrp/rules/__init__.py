"""Rules: the registry, and the rulebooks, each a table from op to rule."""

from fxlrp.rules.abslrp import ABSLRP
from fxlrp.rules.published import APRIL, DECEMBER
from fxlrp.rules.registry import ABSOLUTE, STRUCTURAL, Rule, Rulebook, rule, rulebooks, table, unregister

__all__ = [
    "ABSLRP",
    "ABSOLUTE",
    "APRIL",
    "DECEMBER",
    "STRUCTURAL",
    "Rule",
    "Rulebook",
    "rule",
    "rulebooks",
    "table",
    "unregister",
]
