"""The rulebook abslrp-hybrid: absLRP's absolute contributions where they help, signed ones beside them."""

from __future__ import annotations

from dataclasses import replace

from fxlrp.errors import FxlrpError
from fxlrp.methods.classic import by_rule, composite, residual_sums
from fxlrp.patterns.normed import Normed, mark_normed
from fxlrp.patterns.residual_sums import mark_residual_sums, residual_sum
from fxlrp.rules import weighted
from fxlrp.rules.registry import Rulebook, publish
from fxlrp.rules.residual import by_depth
from fxlrp.rules.weighted import CONVOLVING, DENSE

DEPTH = "depth"


@publish
def abslrp_hybrid(
    convolution: float = 4.0,
    normed: float = 0.25,
    dense: float = 0.02,
    sum: float | str = DEPTH,
    contrast: str | None = "softmax",
    stabilizer: float = 1e-6,
) -> Rulebook:
    """Signed contributions blended with absLRP's absolute ones, many at convolutions, few at dense layers and at the
    convolutions that a norm reads; at residual sums that a norm reads as ResLRP, the more the deeper the model, not for
    texts (sum=1: at every sum, in full); all else as AttnLRP; against the other classes by their probability
    (contrast=others: all alike; none)."""
    if contrast not in (None, "others", "softmax"):
        raise FxlrpError(f"contrast={contrast!r} is none of a rulebook's: softmax, others or none.")
    if isinstance(sum, str) and sum != DEPTH:
        raise FxlrpError(f"sum={sum!r} is no number; by default it is {DEPTH!r}.")
    at_sums = [(by_depth, (0, 1), residual_sum)] if isinstance(sum, str) else residual_sums(sum)
    book = composite(
        *by_rule(CONVOLVING, weighted.gamma, gamma=convolution, stabilizer=stabilizer),
        *by_rule(DENSE, weighted.gamma, gamma=dense, stabilizer=stabilizer),
        *by_rule((((0, 1, 2), (Normed,)),), weighted.gamma, gamma=normed, stabilizer=stabilizer),
        *at_sums,
        epsilon=0.0,
    )
    marks = (mark_residual_sums, mark_normed) if isinstance(sum, str) else (mark_normed,)
    return replace(book, default_contrast=contrast, passes=(*book.passes, *marks))
