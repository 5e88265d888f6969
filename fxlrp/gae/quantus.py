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
import warnings
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
    """Return Quantus's version, or None if it can't be imported."""
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
    """Return all measures, each [n], None where one has no value, for maps heat [n, H, W] of a trial's samples.

    elsewhere(model) is the method on a model of other weights.  Noise derives from seed and sample, the weights drawn
    from seed.
    """
    import quantus

    maps = heat[:, None].cpu().numpy()
    units = np.abs(maps) / np.abs(maps).max((1, 2, 3), keepdims=True).clip(1e-30)  # Quantus divides by the batch's
    values = dict.fromkeys(MEASURES, [math.nan] * len(maps))
    with torch.random.fork_rng(), warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # about maps of zeros, which have no value
        values["sparseness"] = _metric(quantus.Sparseness, model, trial, lambda *_: units)
        values["max_sensitivity"] = _max_sensitivity(model, trial, maps, explain, seed, batch_size)
        if any(hasattr(module, "reset_parameters") for module in model.modules()):  # which is how Quantus draws them
            values["randomization"] = _randomization(model, trial, maps, elsewhere, seed, batch_size)
    return {m: [float(v) if math.isfinite(v) else None for v in values[m]] for m in MEASURES}


def _max_sensitivity(
    model: nn.Module, trial: Trial, maps: np.ndarray, explain: Explain, seed: int, batch_size: int
) -> list[float]:
    """Return the largest change of each map [n, 1, H, W] under noise that derives from the seed and the sample."""
    import quantus

    draws, calls = itertools.count(), itertools.count()

    def noisy(arr: np.ndarray, **_: Any) -> np.ndarray:
        draw = next(draws)
        rngs = [np.random.default_rng([seed, i, draw]) for i in trial.ids]
        return arr + np.stack([rng.uniform(-RADIUS, RADIUS, arr.shape[1]) for rng in rngs]).astype(arr.dtype)

    def answer(_: nn.Module, inputs: Any) -> np.ndarray:
        call = next(calls)  # the first is for the maps without noise
        return maps if call == 0 else _maps_of(explain, trial, inputs, f"noise{call - 1}", batch_size)

    return _metric(quantus.MaxSensitivity, model, trial, answer, nr_samples=DRAWS, perturb_func=noisy)


def _randomization(
    model: nn.Module,
    trial: Trial,
    maps: np.ndarray,
    elsewhere: Callable[[nn.Module], Explain],
    seed: int,
    batch_size: int,
) -> list[float]:
    """Return the correlation of each map [n, 1, H, W] with that of the model whose layers are all drawn anew."""
    import quantus

    def answer(net: nn.Module, inputs: Any) -> np.ndarray:
        return np.abs(maps if net is model else _maps_of(elsewhere(net), trial, inputs, "randomized", batch_size))

    def correlation(a: np.ndarray, b: np.ndarray, **_: Any) -> np.ndarray:
        rank = quantus.similarity_func.correlation_spearman
        return np.array([rank(p, q) if np.ptp(p) and np.ptp(q) else math.nan for p, q in zip(a, b, strict=True)])

    options = {"layer_order": "top_down", "seed": seed, "skip_layers": True, "return_last_correlation": True}
    return _metric(quantus.MPRT, model, trial, answer, similarity_func=correlation, **options)


def _maps_of(explain: Explain, trial: Trial, inputs: Any, key: str, batch_size: int) -> np.ndarray:
    """Return a method's maps [n, 1, H, W] of inputs in the place of a trial's samples."""
    x = torch.as_tensor(np.asarray(inputs)).to(trial.x).view_as(trial.x)
    views = Views(x, trial.target, [f"{i}:{key}" for i in trial.ids], trial.truth)
    return run(explain, views, batch_size).sum(1, keepdim=True).cpu().numpy()


def _metric(kind: Any, model: nn.Module, trial: Trial, answer: Callable[[nn.Module, Any], Any], **options: Any) -> Any:
    """Return a Quantus metric [n] that takes all its maps from answer(model, x).

    Its own way refuses whole batches of maps that are all negative, or all alike.
    """
    x = trial.x.cpu().numpy()

    class Asking(kind):
        def explain_batch(self, net: Any, x_batch: Any, y_batch: Any) -> Any:
            return answer(net.get_model() if hasattr(net, "get_model") else net, x_batch)

        def generate_a_batches(self, a_full_dataset: Any) -> Any:
            yield answer(model, x)

    options |= {"disable_warnings": True, "display_progressbar": False, "normalise": False}
    call = {"explain_func": lambda **_: None, "device": str(trial.x.device), "batch_size": len(x)}
    return Asking(**options)(model=model, x_batch=x, y_batch=trial.target.cpu().numpy(), **call)
