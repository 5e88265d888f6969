"""Rulebooks: the methods, each a table from ops to rules and how an explanation begins."""

from fxlrp.methods import classic, gradients, hybrid, transformers
from fxlrp.methods.abslrp import ABSLRP
from fxlrp.methods.published import APRIL, abslrp_2024_12

DEFAULT = "abslrp-hybrid"
"""The rulebook of `convert`, the text functions, the adapters and every command, where no other is asked for."""

__all__ = ["ABSLRP", "APRIL", "DEFAULT", "abslrp_2024_12", "classic", "gradients", "hybrid", "transformers"]
