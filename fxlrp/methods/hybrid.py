"""The rulebook abslrp-hybrid: absLRP's absolute contributions where they help, signed ones beside them."""

from __future__ import annotations

from dataclasses import replace

from fxlrp.errors import FxlrpError
from fxlrp.methods.classic import by_rule, composite, residual_sums
from fxlrp.rules import weighted
from fxlrp.rules.registry import Rulebook, publish
from fxlrp.rules.weighted import CONVOLVING, DENSE


@publish
def abslrp_hybrid(
    convolution: float = 4.0,
    dense: float = 0.02,
    sum: float = 0.0,
    contrast: str | None = "softmax",
    stabilizer: float = 1e-6,
) -> Rulebook:
    """Signed contributions blended with absLRP's absolute ones, many at convolutions, few at dense layers and, with
    sum > 0, at residual sums as in ResLRP; all else as in AttnLRP; by default against the other classes, by their
    probability (contrast=others: all alike; none)."""
    if contrast not in (None, "others", "softmax"):
        raise FxlrpError(f"contrast={contrast!r} is none of a rulebook's: softmax, others or none.")
    book = composite(
        *by_rule(CONVOLVING, weighted.gamma, gamma=convolution, stabilizer=stabilizer),
        *by_rule(DENSE, weighted.gamma, gamma=dense, stabilizer=stabilizer),
        *residual_sums(sum),
        epsilon=0.0,
    )
    return replace(book, default_contrast=contrast)
