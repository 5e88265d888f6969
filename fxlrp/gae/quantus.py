"""Measures from Quantus (Hedström et al. 2023, 2202.06861), where it is installed.

Sparseness: the Gini index of |R| over pixels (Chalasani et al. 2020, 1810.06583).  Max-sensitivity: the largest
relative change of a map when uniform noise of up to 0.2 is added to the input, 10 times (Yeh et al. 2019, 1901.09392).
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fxlrp.gae.metric import Explain, Trial, Views

MEASURES = ("sparseness", "max_sensitivity")
DRAWS = 10


def version() -> str | None:
    """Quantus's version, or None if it can't be imported."""
    os.environ.setdefault("TQDM_DISABLE", "1")
    try:
        import quantus
    except ImportError:
        return None
    return str(quantus.__version__)


def measure(model: nn.Module, trial: Trial, heat: Tensor, explain: Explain, seed: int) -> dict[str, list[float]]:
    """Both measures per sample, for maps heat [n, H, W] of a trial's samples; noise derives from seed and sample."""
    import quantus

    sparseness = quantus.Sparseness(disable_warnings=True, display_progressbar=False)
    sensitivity = quantus.MaxSensitivity(nr_samples=DRAWS, disable_warnings=True, display_progressbar=False)
    found: dict[str, list[float]] = {name: [] for name in MEASURES}
    for j, i in enumerate(trial.ids):
        truth = None if trial.truth is None else trial.truth[j : j + 1]
        draws = iter(range(10 * DRAWS))

        def again(
            model: Any, inputs: Any, targets: Any, i: int = i, truth: Any = truth, draws: Any = draws, **_: Any
        ) -> Any:
            x = torch.as_tensor(np.asarray(inputs)).to(trial.x).view(-1, *trial.x.shape[1:])
            views = Views(x, torch.as_tensor(np.asarray(targets)).to(trial.target), [f"{i}:noise{next(draws)}"], truth)
            with torch.enable_grad():
                r = explain(views).detach()
            return (r if r.ndim == 3 else r.sum(1))[:, None].cpu().numpy()

        given = {
            "model": model,
            "x_batch": trial.x[j : j + 1].cpu().numpy(),
            "y_batch": trial.target[j : j + 1].cpu().numpy(),
            "a_batch": heat[j : j + 1, None].cpu().numpy(),
            "device": str(trial.x.device),
        }
        state = np.random.get_state()  # noqa: NPY002  Quantus draws from NumPy's global generator
        np.random.seed((seed * 1_000_003 + i) % 2**32)  # noqa: NPY002
        try:
            found["sparseness"].append(float(sparseness(**given)[0]))
            found["max_sensitivity"].append(float(sensitivity(**given, explain_func=again)[0]))
        finally:
            np.random.set_state(state)  # noqa: NPY002
    return found
