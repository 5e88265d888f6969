"""Compute a model's class scores, and mask its inputs step by step by its own |input × gradient|."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fxlrp.errors import FxlrpError
from fxlrp.gae.definitions import PUBLISHED, share

MOST, LEAST = 0, 1  # most and least relevant first


def logits_of(model: nn.Module, x: Tensor) -> Tensor:
    """Return the model's class scores [n, K].  Raises FxlrpError if that is not what it returns."""
    output = model(x)
    output = getattr(output, "logits", output)
    if isinstance(output, dict):
        output = output.get("logits", next(iter(output.values()), None))
    if isinstance(output, tuple | list):
        output = output[0]
    if not isinstance(output, Tensor) or output.ndim != 2:
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise FxlrpError(
            f"The model returns {shape} where GAE needs class scores [batch, classes]; evaluate a classifier."
        )
    return output


def predict(model: nn.Module, x: Tensor, batch_size: int) -> Tensor:
    """Return class scores [n, K] of x [n, C, H, W], computed in batches."""
    with torch.no_grad():
        return torch.cat([logits_of(model, part) for part in x.split(batch_size)])


def stepwise(model: nn.Module, x: Tensor, target: Tensor, steps: int, definition: str) -> tuple[Tensor, Tensor, Tensor]:
    """Mask inputs by the model's own |input × gradient|, taken anew at every step, most and least relevant first.

    x [n, C, H, W], target [n] → masked [2, steps − 1, n, C, H, W], outputs [2, steps, n], impact [n, C, H, W].
    Entries, not pixels, are set to 0.  Fixed: after k steps k/steps of them are masked either way.  2024-12: step k
    takes k/steps more of all entries most relevant first, but least relevant first takes the masked ones again.
    """
    pick = _published_pick if definition == PUBLISHED else _pick
    shut = torch.zeros(2, *x.shape, dtype=torch.bool, device=x.device)
    over = len(x) if definition == PUBLISHED else 1  # a mean over the batch, which its 1e-9 sees
    inputs, outputs, sums = [], [], torch.zeros_like(x).expand(2, *x.shape)
    for k in range(steps):
        now = x.detach().masked_fill(shut, 0)
        rows = now[0] if k == 0 else now.flatten(0, 1)  # the first step is the same for both
        rows = rows.clone().requires_grad_()
        with torch.enable_grad():
            value = logits_of(model, rows).gather(1, target.repeat(len(rows) // len(x))[:, None])[:, 0]
            gradient = torch.autograd.grad(value.abs().sum() / over, rows)[0]
        relevance = share((gradient * rows.detach()).abs(), definition).view(-1, *x.shape).expand(2, *x.shape)
        sums = sums + relevance
        inputs.append(now)
        outputs.append(value.detach().view(-1, len(x)).expand(2, -1))
        if k < steps - 1:
            shut = torch.stack([pick(relevance[o], shut[o], k + 1, steps, o == MOST) for o in (MOST, LEAST)])
    most, least = (share(s, definition) for s in sums)
    return torch.stack(inputs[1:], 1), torch.stack(outputs, 1), (least - most).sign()


def _pick(relevance: Tensor, shut: Tensor, k: int, steps: int, most: bool) -> Tensor:
    """Choose k/steps of all entries: those shut already, then the most (least) relevant others, ties by place."""
    flat = relevance.masked_fill(shut, float("inf" if most else "-inf")).flatten(1)
    chosen = flat.sort(dim=1, descending=most, stable=True).indices[:, : round(k * flat.shape[1] / steps)]
    return torch.zeros_like(flat, dtype=torch.bool).scatter(1, chosen, True).view_as(shut)


def _published_pick(relevance: Tensor, shut: Tensor, k: int, steps: int, most: bool) -> Tensor:
    """Choose k/steps of all entries beside those shut already, which may be the same."""
    flat = relevance.flatten(1)
    fraction = torch.linspace(1 / steps, 1, steps)[k - 1]  # in float32, as published
    chosen = flat.topk(int(fraction * flat.shape[1]), 1, largest=most).indices
    return shut.flatten(1).scatter(1, chosen, True).view_as(shut)
