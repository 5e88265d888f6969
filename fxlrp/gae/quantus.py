"""Measures from Quantus (Hedström et al. 2023, 2202.06861), where it is installed.

Sparseness: the Gini index of |R| over pixels (Chalasani et al. 2020, 1810.06583).  Max-sensitivity: the largest
relative change of a map when uniform noise of up to 0.2 is added to the input, 5 times (Yeh et al. 2019, 1901.09392).
Randomization: Spearman's correlation of |R| with that of the model once all its layers are drawn anew, the end of the
cascade from the top (Adebayo et al. 2018, 1810.03292): 0 for a map that depends on what was learned, 1 for one that
does not.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fxlrp.gae.methods import run
from fxlrp.gae.metric import Explain, Trial, Views

MEASURES = ("sparseness", "max_sensitivity", "randomization")
DRAWS, RADIUS = 5, 0.2


def version() -> str | None:
    """Quantus's version, or None if it can't be imported."""
    os.environ.setdefault("TQDM_DISABLE", "1")
    try:
        import quantus
    except ImportError:
        return None
    return str(quantus.__version__)


def measure(
    model: nn.Module,
    trial: Trial,
    heat: Tensor,
    explain: Explain,
    elsewhere: Callable[[nn.Module], Explain],
    seed: int,
    batch_size: int,
) -> dict[str, list[float | None]]:
    """All measures per sample, None where one has no value, for maps heat [n, H, W] of a trial's samples.

    elsewhere(model) is the method on a model of other weights.  Noise derives from seed and sample, the weights drawn
    from seed.
    """
    import quantus

    def ask(how: Explain, inputs: Any, said: str) -> Any:
        x = torch.as_tensor(np.asarray(inputs)).to(trial.x).view_as(trial.x)
        views = Views(x, trial.target, [f"{i}:{said}" for i in trial.ids], trial.truth)
        return run(how, views, batch_size).sum(1, keepdim=True).cpu().numpy()

    draws, said = itertools.count(), (f"noise{k}" for k in itertools.count())

    def noisy(arr: Any, **_: Any) -> Any:
        draw = next(draws)
        rngs = [np.random.default_rng([seed, i, draw]) for i in trial.ids]
        return arr + np.stack([rng.uniform(-RADIUS, RADIUS, arr.shape[1]) for rng in rngs]).astype(arr.dtype)

    plain = {"disable_warnings": True, "display_progressbar": False, "normalise": False}  # by the batch's largest value
    given: dict[str, Any] = {
        "model": model,
        "x_batch": trial.x.cpu().numpy(),
        "y_batch": trial.target.cpu().numpy(),
        "a_batch": heat[:, None].cpu().numpy(),
        "device": str(trial.x.device),
        "batch_size": len(trial.ids),
    }
    sensitivity = quantus.MaxSensitivity(nr_samples=DRAWS, perturb_func=noisy, **plain)
    randomization = quantus.MPRT(
        layer_order="top_down", seed=seed, skip_layers=True, return_last_correlation=True, **plain
    )

    def explain_at(model: nn.Module, inputs: Any, targets: Any, **_: Any) -> Any:
        return given["a_batch"] if model is given["model"] else ask(elsewhere(model), inputs, "randomized")

    units = given["a_batch"] / np.abs(given["a_batch"]).max((1, 2, 3), keepdims=True).clip(1e-30)
    with torch.random.fork_rng():
        found = {
            "sparseness": quantus.Sparseness(**plain)(**{**given, "a_batch": units}),
            "max_sensitivity": sensitivity(
                **given, explain_func=lambda model, inputs, targets, **_: ask(explain, inputs, next(said))
            ),
            "randomization": [math.nan] * len(trial.ids),
        }
        if any(hasattr(module, "reset_parameters") for module in model.modules()):  # which is how Quantus draws them
            found["randomization"] = randomization(**given, explain_func=explain_at)
    return {m: [float(v) if math.isfinite(v) else None for v in found[m]] for m in MEASURES}
