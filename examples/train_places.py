"""Train a network that says where things are: `python examples/train_places.py --model segmenter`, or detector.

Both learn from the pictures of shapes.py and the masks of their objects; the detector goes on from the trained `cnn`.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import models
import numpy as np
import shapes
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

HERE = Path(__file__).parent
TEST = range(10_000_000, 10_000_500)  # seeds; training takes them from 0


def dataset(seeds: range) -> tuple[Tensor, Tensor]:
    """Pictures [n, 3, H, W] as a network takes them, and what each pixel is [n, H, W]: 0 background, or 1 + class."""
    images, kinds = [], []
    for seed in seeds:
        image, labels, masks = shapes.picture(seed)
        images.append(image)
        kinds.append(np.max([m * (k + 1) for m, k in zip(masks, labels, strict=True)], 0).astype(np.uint8))
    x = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    return x, torch.from_numpy(np.stack(kinds))


def prepare(images: Tensor) -> Tensor:
    """The networks' input [n, 3, H, W] from uint8."""
    return images.float() / 127.5 - 1


def boxes(kinds: Tensor) -> list[tuple[int, tuple[float, float, float, float]]]:
    """The class of each object of a picture, and its left, top, right and bottom in pixels."""
    found = []
    for kind in kinds.unique().tolist()[1:]:
        y, x = (kinds == kind).nonzero().unbind(1)
        found.append((kind - 1, (float(x.min()), float(y.min()), float(x.max()) + 1, float(y.max()) + 1)))
    return found


def detection_loss(model: nn.Module, x: Tensor, kinds: Tensor) -> Tensor:
    """Focal loss (Lin et al. 2017, 1708.02002) of what is at each cell, and how far off the sides of boxes are."""
    scores, sides = model.maps(x)
    wanted, off = torch.zeros_like(scores), []
    for b, picture in enumerate(kinds):
        for k, (left, top, right, bottom) in boxes(picture):
            row, column = (min(7, int((low + high) / 16)) for low, high in ((top, bottom), (left, right)))
            wanted[b, k, row, column] = 1
            x0, y0 = 8 * column + 4, 8 * row + 4
            reach = torch.tensor([x0 - left, y0 - top, right - x0, bottom - y0])
            off.append((sides[b, :, row, column] - reach).abs().mean())
    each = F.binary_cross_entropy_with_logits(scores, wanted, reduction="none")
    wrong = (wanted - scores.sigmoid()).abs()
    return (each * wrong**2).sum() / len(off) + 0.1 * torch.stack(off).mean()


def segmentation_loss(model: nn.Module, x: Tensor, kinds: Tensor) -> Tensor:
    """Cross-entropy of each pixel."""
    return F.cross_entropy(model(x), kinds.long())


@torch.inference_mode()
def quality(model: nn.Module, x: Tensor, kinds: Tensor) -> str:
    """How good a network is on fresh pictures."""
    output = [part for batch in prepare(x).split(100) for part in model(batch)]
    if isinstance(output[0], Tensor):
        guess = torch.stack(output).argmax(1)
        ious = [((guess == k) & (kinds == k)).sum() / ((guess == k) | (kinds == k)).sum() for k in range(9)]
        return f"pixels right {(guess == kinds).float().mean():.2%}, mean IoU {torch.stack(ious).mean():.3f}"
    hit = objects = alarms = 0
    for found, picture in zip(output, kinds, strict=True):
        real, left = boxes(picture), len(found["labels"])
        for k, (x0, y0, x1, y1) in real:
            own = found["boxes"][found["labels"] == k]
            low, high = (
                torch.maximum(own[:, :2], torch.tensor([x0, y0])),
                torch.minimum(own[:, 2:], torch.tensor([x1, y1])),
            )
            both = (high - low).clamp(min=0).prod(1)
            iou = both / ((own[:, 2:] - own[:, :2]).prod(1) + (x1 - x0) * (y1 - y0) - both)
            is_found = bool((iou > 0.5).any())
            hit, left = hit + is_found, left - is_found
        objects, alarms = objects + len(real), alarms + left
    return f"objects found (IoU > 0.5) {hit / objects:.2%}, other boxes {alarms / len(output):.2f} a picture"


def train(options: argparse.Namespace) -> nn.Module:
    """Train the network these options name, and save it after each epoch."""
    torch.manual_seed(0)
    model = getattr(models, options.model)()
    loss_of = detection_loss if options.model == "detector" else segmentation_loss
    if options.model == "detector":
        model.trunk.load_state_dict(load_file(HERE / "cnn.safetensors"))
    images, kinds = dataset(range(options.pictures))
    tested = dataset(TEST)
    steps, step, began = options.epochs * (len(images) // options.batch), 0, time.time()
    optimizer = torch.optim.AdamW(model.parameters(), options.rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.rate, steps, pct_start=0.1)
    for epoch in range(options.epochs):
        model.train()
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(epoch))
        for chosen in order[: steps // options.epochs * options.batch].split(options.batch):
            x, kind = images[chosen], kinds[chosen]
            flips = [axis for axis in (-1, -2) if torch.rand(()) < 0.5]
            x, kind = x.flip(flips)[:, torch.randperm(3)], kind.flip(flips)
            loss = loss_of(model, prepare(x), kind)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            step += 1
            if step % 50 == 0:
                print(f"step {step}/{steps} loss {loss.item():.3f} {time.time() - began:.0f} s", flush=True)
        half = {k: v.half() if v.is_floating_point() else v for k, v in model.eval().state_dict().items()}
        save_file({k: v.contiguous() for k, v in half.items()}, options.out)
        print(f"epoch {epoch + 1}: {quality(model, *tested)}", flush=True)
    return model


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=("segmenter", "detector"), default="segmenter")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--pictures", type=int, default=10_000)
    parser.add_argument("--rate", type=float, default=4e-3, help="highest learning rate")
    parser.add_argument("--batch", type=int, default=32, help="pictures per step")
    parser.add_argument("--out", type=Path, help="default: MODEL.safetensors next to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out = options.out or HERE / f"{options.model}.safetensors"
    train(options)
