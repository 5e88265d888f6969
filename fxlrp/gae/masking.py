"""Compute a model's class scores, and mask its inputs: what stands in the place of what is masked, and step by step."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, conv2d, pad

from fxlrp.errors import FxlrpError
from fxlrp.gae.definitions import PUBLISHED, share

MOST, LEAST = 0, 1  # most and least relevant first
MASKINGS = ("zero", "mean", "blur", "noise", "fill")
"""What stands in the place of what is masked: 0; each channel's mean; the picture blurred by a sixteenth of its side;
normal noise of each channel's mean and deviation; or the mean of the patches around, from the edge of a gap inwards."""


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


class Scores(nn.Module):
    """A copy of a model that returns class scores and nothing else; hooks of other libraries stay in the copy."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).eval().requires_grad_(True)

    def forward(self, x: Tensor) -> Tensor:
        return logits_of(self.model, x)


def predict(model: nn.Module, x: Tensor, batch_size: int) -> Tensor:
    """Return class scores [n, K] of x [n, C, H, W], computed in batches."""
    with torch.no_grad():
        return torch.cat([logits_of(model, part) for part in x.split(batch_size)])


def blurred(x: Tensor, sigma: float) -> Tensor:
    """Pictures [n, C, H, W] under a Gaussian of this deviation in pixels, cut at 2σ; mirrored at the edges."""
    reach = min(max(1, round(2 * sigma)), min(x.shape[-2:]) - 1)
    at = torch.arange(-reach, reach + 1, dtype=x.dtype, device=x.device)
    kernel = torch.exp(-(at**2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    planes = pad(x.flatten(0, 1)[:, None], (reach,) * 4, "reflect")
    rows = conv2d(planes, kernel.view(1, 1, 1, -1))
    return conv2d(rows, kernel.view(1, 1, -1, 1)).view(x.shape)


def filled(x: Tensor, shut: Tensor, side: int) -> Tensor:
    """Pictures [n, C, H, W] whose patches of this side that are shut [n, rows, columns] have the mean colour of the
    open ones among their eight neighbours, from the edge of a gap inwards; if all are shut, the mean of all.

    Every pixel is filled, so that what is open is to be put over it.
    """
    colours = avg_pool2d(x, side, ceil_mode=True)
    filled = (~shut)[:, None].to(x)
    around = torch.ones(1, 1, 3, 3, dtype=x.dtype, device=x.device)
    colours = torch.where(filled.flatten(1).any(1).view(-1, 1, 1, 1), colours, x.mean((2, 3), keepdim=True))
    while not filled.flatten(1).all(1).logical_or(~filled.flatten(1).any(1)).all():
        count = conv2d(filled, around, padding=1)
        sums = conv2d((colours * filled).flatten(0, 1)[:, None], around, padding=1).view(colours.shape)
        colours = torch.where((filled == 0) & (count > 0), sums / count.clamp(min=1), colours)
        filled = (count > 0).to(x)
    return colours.repeat_interleave(side, -2).repeat_interleave(side, -1)[..., : x.shape[-2], : x.shape[-1]]


def stand_in(x: Tensor, way: str, keys: Sequence[object]) -> Tensor:
    """What stands in the place of what is masked in pictures [n, C, H, W], whatever that is: by one of `MASKINGS` but
    "fill", which `filled` is.  keys [n]: what the noise of each is drawn by.
    """
    mean = x.mean((2, 3), keepdim=True)
    match way:
        case "zero":
            return torch.zeros_like(x)
        case "mean":
            return mean.expand_as(x)
        case "blur":
            return blurred(x, min(x.shape[-2:]) / 16)
        case "noise":
            draws = [torch.randn(x.shape[1:], generator=_by(key), dtype=torch.float64) for key in keys]
            return mean + x.std((2, 3), keepdim=True) * torch.stack(draws).to(x)
    raise FxlrpError(f"There is no masking {way!r}; there are {', '.join(MASKINGS)}.")


def _by(key: object) -> torch.Generator:
    """Random numbers that depend on a key alone."""
    return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(str(key).encode()).digest()[:7], "big"))


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
