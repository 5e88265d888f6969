"""Baselines of zennit's (Anders et al. 2021, 2106.13200), where it is installed: its composites, on copies of a model.

zennit hooks modules: what a forward computes by functions and operators alone is an ordinary gradient to it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fxlrp.errors import FxlrpError
from fxlrp.gae.masking import Scores
from fxlrp.gae.metric import Explain, Views

COMPOSITES = {
    "zennit-epsilon-plus-flat": "EpsilonPlusFlat",
    "zennit-epsilon-gamma-box": "EpsilonGammaBox",
    "zennit-epsilon-alpha2-beta1-flat": "EpsilonAlpha2Beta1Flat",
}


def zennit(name: str) -> Callable[[nn.Module, int], Explain]:
    """A composite of zennit's as a baseline: the score of the target is what its relevance starts from."""

    def build(model: nn.Module, seed: int) -> Explain:
        if importlib.util.find_spec("zennit") is None:
            raise FxlrpError(f"{name} comes from zennit, which is not installed: pip install zennit.")
        import zennit.attribution
        import zennit.canonizers
        import zennit.composites

        scores = Scores(model)

        def explain(views: Views) -> Tensor:
            parameters: dict[str, Any] = {"canonizers": [zennit.canonizers.SequentialMergeBatchNorm()]}
            if name == "zennit-epsilon-gamma-box":
                parameters |= {"low": views.x.min().expand_as(views.x), "high": views.x.max().expand_as(views.x)}
            composite = getattr(zennit.composites, COMPOSITES[name])(**parameters)

            def start(out: Tensor) -> Tensor:
                return torch.zeros_like(out).scatter(1, views.target[:, None], out.gather(1, views.target[:, None]))

            with zennit.attribution.Gradient(scores, composite) as attributor:
                return attributor(views.x.clone(), start)[1]

        return explain

    return build
