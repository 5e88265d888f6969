"""Offer fxlrp as a captum attribution method."""

from __future__ import annotations

from typing import Any

from captum.attr import Attribution
from torch import Tensor, nn

from fxlrp.engine.seeds import Contrast, Target
from fxlrp.errors import FxlrpError
from fxlrp.explainer import convert
from fxlrp.methods import DEFAULT
from fxlrp.rules.registry import Rulebook


class FxLRP(Attribution):
    """Relevance propagation by any rulebook, used as captum's methods are: FxLRP(model).attribute(x, target=3)."""

    def __init__(self, model: nn.Module, rules: str | Rulebook = DEFAULT) -> None:
        super().__init__(model)
        self.explainer = convert(model, rules=rules)

    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: Target = None,
        additional_forward_args: Any = None,
        contrast: Contrast = "default",
    ) -> Tensor | tuple[Tensor, ...]:
        """Return relevance shaped like `inputs`, a tuple for a tuple; target and contrast as in `fxlrp.Explainer`.

        Raises FxlrpError if the model can't be captured, or an input carries no relevance.
        """
        several = isinstance(inputs, tuple)
        more = additional_forward_args
        rest = () if more is None else more if isinstance(more, tuple) else (more,)
        explained = inputs if several else (inputs,)
        named = self.explainer(*explained, *rest, target=target, contrast=contrast).named
        if missing := [i for i in range(len(explained)) if str(i) not in named]:
            raise FxlrpError(
                f"Input {missing[0]} carries no relevance (a mask, or integers that look nothing up): pass it by "
                "additional_forward_args."
            )
        return tuple(named[str(i)] for i in range(len(explained))) if several else named["0"]
