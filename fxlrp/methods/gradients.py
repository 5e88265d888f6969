"""The rulebooks without rules: gradient-input and gradient, what every method is measured by."""

from __future__ import annotations

from fxlrp.rules.normalise import NONE
from fxlrp.rules.registry import STRUCTURAL, Rulebook, publish

GRADIENT_INPUT = publish(
    Rulebook(
        "gradient-input", "Gradient × input: the ordinary derivative", {}, NONE, unknown=STRUCTURAL, seed="gradient"
    )
)
GRADIENT = publish(
    Rulebook("gradient", "The gradient itself", {}, NONE, unknown=STRUCTURAL, reads="gradient", seed="gradient")
)
