"""Offer fxlrp as a Quantus `explain_func`, without needing Quantus itself."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import nn

from fxlrp.explainer import Explainer, convert
from fxlrp.methods import DEFAULT

_KEPT: WeakKeyDictionary[nn.Module, dict[Any, Explainer]] = WeakKeyDictionary()


def explain(
    model: nn.Module, inputs: Any, targets: Any, rules: Any = DEFAULT, contrast: Any = "default", **_: Any
) -> Any:
    """Return relevance [B, …] as an array, for inputs [B, …] and target classes [B].

    Pass it as `explain_func=fxlrp.adapters.quantus.explain, explain_func_kwargs={"rules": …}`.
    The explainer is kept for the calls that follow, for as long as the model is; nothing is written into the model.

    Raises FxlrpError as `fxlrp.convert` does, for a model in training mode too.
    """
    parameter = next(model.parameters(), torch.empty(0))
    x = torch.as_tensor(np.asarray(inputs), dtype=parameter.dtype, device=parameter.device)
    explainer = _explainer(model, rules)
    return explainer(x, target=torch.as_tensor(np.asarray(targets)), contrast=contrast).relevance.cpu().numpy()


def _explainer(model: nn.Module, rules: Any) -> Explainer:
    """Return the explainer of a model that is kept beside it.

    What it holds is another object of the model's class with the same modules and weights: one that held the model
    itself would keep it for ever.
    """
    explainers, key = _KEPT.setdefault(model, {}), rules if isinstance(rules, str) else id(rules)
    if key not in explainers:
        same = object.__new__(type(model))
        vars(same).update(vars(model))
        explainers[key] = convert(same, rules=rules)
    held = vars(explainers[key].model)
    held.clear()
    held.update(vars(model))  # attributes may have been set since; an explainer notices
    return explainers[key]
