"""Offer fxlrp as a Quantus `explain_func`, without needing Quantus itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from fxlrp.explainer import convert
from fxlrp.methods import DEFAULT


def explain(
    model: nn.Module, inputs: Any, targets: Any, rules: Any = DEFAULT, contrast: Any = "default", **_: Any
) -> Any:
    """Return relevance [B, …] as an array, for inputs [B, …] and target classes [B].

    Pass it as `explain_func=fxlrp.adapters.quantus.explain, explain_func_kwargs={"rules": …}`.
    The explainer is kept with the model for the calls that follow.
    """
    explainers = model.__dict__.setdefault("_fxlrp_explainers", {})
    if rules not in explainers:
        explainers[rules] = convert(model.eval(), rules=rules)
    parameter = next(model.parameters(), torch.empty(0))
    x = torch.as_tensor(np.asarray(inputs), dtype=parameter.dtype, device=parameter.device)
    relevance = explainers[rules](x, target=torch.as_tensor(np.asarray(targets)), contrast=contrast).relevance
    return relevance.cpu().numpy()
