"""Offer every rulebook as an attribution method of inseq; importing this is enough.

    import fxlrp.adapters.inseq
    inseq.load_model("gpt2", "fxlrp").attribute("Hello", rules="attnlrp")

`fxlrp` takes a rulebook by `rules=`, when it is loaded or at each call; a rulebook's own name, as `attnlrp`, is a
method, too.  `fxlrp inseq …` is inseq's command line with these methods in it.
"""

from __future__ import annotations

from typing import Any

import torch
from inseq.attr.feat.feature_attribution import FeatureAttribution
from inseq.attr.step_functions import STEP_SCORES_MAP
from inseq.data import CoarseFeatureAttributionStepOutput
from torch import Tensor

from fxlrp.engine.seeds import Contrast
from fxlrp.errors import FxlrpError
from fxlrp.explainer import Explainer, convert
from fxlrp.methods import DEFAULT
from fxlrp.rules.registry import Rulebook, rulebooks
from fxlrp.text.questions import NOT_NAMED
from fxlrp.text.tasks import find_vocabulary_word, vocabulary_sizes


class _Relevance:
    """What inseq calls at each step: the relevance of the tokens before the one that comes next."""

    def __init__(self, attribution_model: Any, rules: str | Rulebook) -> None:
        self.attribution_model = attribution_model
        self.explainer = convert(attribution_model.model, rules=rules)
        self.others: dict[str | int, Explainer] = {}

    def attribute(
        self,
        inputs: tuple[Tensor, ...],
        additional_forward_args: tuple,
        rules: str | Rulebook | None = None,
        contrast: Contrast = "default",
    ) -> tuple[Tensor, ...]:
        """Return the relevance of each of the inputs, [B, T]; of padding it is 0.

        inputs: embeddings, of which their number alone counts.

        rules: another rulebook than that of the method.  contrast: what the next token is set against: a token, by id
          or word, "others", "softmax" or None; "default" is what the rulebook was found best with.

        Raises FxlrpError for an `attributed_fn` of inseq's, which would not be what is explained.
        """
        decodes = self.attribution_model.is_encoder_decoder
        given = additional_forward_args[1:] if decodes and len(inputs) == 1 else additional_forward_args
        ids, given = given[: 1 + decodes], given[1 + decodes :]
        target, function, masks = given[0].reshape(-1), given[1], given[2 : 3 + decodes]
        if function not in (STEP_SCORES_MAP["probability"], STEP_SCORES_MAP["logit"]):
            raise FxlrpError(
                "fxlrp explains the next token; say by contrast= what it is set against, not by attributed_fn=."
            )
        explainer = self._by(rules)
        if isinstance(contrast, str | int) and contrast not in NOT_NAMED:
            model, tokenizer = self.attribution_model.model, self.attribution_model.tokenizer
            contrast = find_vocabulary_word(contrast, tokenizer, max(vocabulary_sizes(model, tokenizer)))
        found = [torch.zeros(x.shape, dtype=torch.float32, device=x.device) for x in ids[: len(inputs)]]
        for row in range(len(target)):  # each as it would be alone, without padding
            seen = [m[row].bool() for m in masks]
            call = self._call([x[row][s][None] for x, s in zip(ids, seen, strict=True)])
            named = explainer(**call, target=target[row : row + 1], contrast=contrast, position=-1).named
            for r, name, s in zip(found, ("input_ids", "decoder_input_ids"), seen, strict=False):
                r[row, s] = named[name][0].detach().float()
        return tuple(found)

    def _by(self, rules: str | Rulebook | None) -> Explainer:
        """Return the explainer by a rulebook, made once for all steps."""
        if rules is None:
            return self.explainer
        key = rules if isinstance(rules, str) else id(rules)  # which the explainer keeps alive
        if key not in self.others:
            self.others[key] = self.explainer.by(rules)
        return self.others[key]

    def _call(self, ids: list[Tensor]) -> dict[str, Tensor]:
        names = ("input_ids", "decoder_input_ids")
        call = dict(zip(names, ids, strict=False))
        return {**call, "attention_mask": torch.ones_like(ids[0])}


class Fxlrp(FeatureAttribution):
    """Relevance propagation by any rulebook of fxlrp's."""

    method_name = "fxlrp"
    rules = DEFAULT

    def __init__(self, attribution_model: Any, rules: str | Rulebook | None = None, **kwargs: Any) -> None:
        super().__init__(attribution_model, **kwargs)
        self.method = _Relevance(attribution_model, rules or self.rules)

    def attribute_step(
        self, attribute_fn_main_args: dict[str, Any], attribution_args: dict[str, Any] | None = None
    ) -> CoarseFeatureAttributionStepOutput:
        """Return the relevance of one step in inseq's form."""
        found = self.method.attribute(**attribute_fn_main_args, **(attribution_args or {}))
        source, target = (found[0], found[1] if len(found) > 1 else None) if self._decodes else (None, found[0])
        return CoarseFeatureAttributionStepOutput(source_attributions=source, target_attributions=target)

    @property
    def _decodes(self) -> bool:
        return self.attribution_model.is_encoder_decoder


BY_NAME = {name: type(name, (Fxlrp,), {"method_name": name, "rules": name}) for name in rulebooks()}
"""The methods that are rulebooks by their own names."""


def main(arguments: list[str]) -> None:
    """Run inseq's command line with these arguments."""
    import sys

    from inseq.commands.cli import main as run  # which lists the methods there are as it is imported

    before, sys.argv = sys.argv, ["inseq", *arguments]
    try:
        run()
    finally:
        sys.argv = before
