"""Rules: the registry, and the rulebooks, each a table from op to rule."""

from fxlrp.rules.abslrp import ABSLRP
from fxlrp.rules.registry import STRUCTURAL, Rule, Rulebook, rule, rulebooks, table, unregister

__all__ = ["ABSLRP", "STRUCTURAL", "Rule", "Rulebook", "rule", "rulebooks", "table", "unregister"]
