"""Train an example network on the pictures of shapes.py: `python examples/train.py --model cnn --epochs 4`.

The same command goes on where a run was stopped: its state is kept in the temporary folder every 200 steps.

The target is the uniform distribution over the classes that are present, so that the softmax of a picture with a star
and a ring is half star and half ring.
"""

from __future__ import annotations

import argparse
import math
import random
import tempfile
import time
from pathlib import Path

import models
import numpy as np
import shapes
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

CELLS = 8  # the picture's side in tokens of the transformer
TEST = range(10_000_000, 10_002_000)  # seeds; training takes them from 0
HERE = Path(__file__).parent


def dataset(count: int) -> tuple[Tensor, Tensor]:
    """Pictures of the seeds 0..count-1, uint8 [n, H, W, 3], and the pixels of each class in each cell.

    The latter are uint8 [n, cells, cells, classes]. Drawing takes minutes, so both are kept in the temporary folder.
    """
    if not (cache := Path(tempfile.gettempdir()) / f"fxlrp-shapes-{count}.npz").exists():
        images = np.empty((count, shapes.SIZE, shapes.SIZE, 3), np.uint8)
        cells = np.zeros((count, CELLS, CELLS, len(shapes.CLASSES)), np.uint8)
        for seed in range(count):
            images[seed], labels, masks = shapes.picture(seed)
            side = shapes.SIZE // CELLS
            counts = masks.reshape(-1, CELLS, side, CELLS, side).sum((2, 4))
            cells[seed][..., list(labels)] = counts.transpose(1, 2, 0)
        np.savez(cache, images=images, cells=cells)
    with np.load(cache) as stored:
        return torch.from_numpy(stored["images"]), torch.from_numpy(stored["cells"])


def prepare(images: Tensor) -> Tensor:
    """The networks' input [n, 3, H, W] from uint8 [n, H, W, 3]."""
    return images.permute(0, 3, 1, 2).float() / 127.5 - 1


def varied(images: Tensor, cells: Tensor) -> tuple[Tensor, Tensor]:
    """The batch mirrored, turned, and with its colours exchanged or inverted at random: none of it changes a class."""
    if random.random() < 0.5:
        images, cells = images.transpose(1, 2), cells.transpose(1, 2)
    axes = [axis for axis in (1, 2) if random.random() < 0.5]
    images, cells = images.flip(axes)[..., random.sample(range(3), 3)], cells.flip(axes)
    return (255 - images if random.random() < 0.5 else images), cells


@torch.inference_mode()
def accuracy(model: nn.Module, seeds: range) -> tuple[float, float]:
    """Share of pictures whose k first classes are exactly the k present, and whose first class is present."""
    images, present = (torch.from_numpy(part) for part in shapes.batch(seeds))
    order = torch.cat([model(part) for part in prepare(images).split(250)]).argsort(1, descending=True)
    hits = present.gather(1, order)  # is the class at this rank present?
    exact = hits.cumsum(1).gather(1, present.sum(1, keepdim=True) - 1)[:, 0] == present.sum(1)
    return exact.float().mean().item(), hits[:, 0].float().mean().item()


class Muon(torch.optim.Optimizer):
    """Momentum whose every update is made orthogonal, for the matrices of a transformer.

    torch.optim.Muon does the same in bfloat16, which is slow on a processor without that type.
    """

    def __init__(self, parameters: list[nn.Parameter], lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self) -> None:
        """Update each matrix; the factor makes a step about as large as one of AdamW."""
        for group in self.param_groups:
            for p in group["params"]:
                momentum = self.state[p].setdefault("momentum", torch.zeros_like(p)).lerp_(p.grad, 0.05)
                update = p.grad.lerp(momentum, 0.95)
                update = update if (wide := p.shape[0] <= p.shape[1]) else update.T
                update = update / (update.norm() + 1e-7)
                for _ in range(5):  # Newton-Schulz: singular values to about one
                    gram = update @ update.T
                    update = 3.4445 * update + (2.0315 * gram @ gram - 4.7750 * gram) @ update
                factor = 0.2 * max(p.shape) ** 0.5
                p.mul_(1 - 0.05 * group["lr"]).sub_(update if wide else update.T, alpha=factor * group["lr"])


def train(options: argparse.Namespace) -> nn.Module:
    """Train the network these options name, and save it after each epoch."""
    torch.manual_seed(options.seed)
    model = getattr(models, options.model)().to(memory_format=torch.channels_last)
    # One label for a picture teaches slowly. A second head, thrown away later, asks each token or cell of the last map
    # how much of it is which class or background, with a weight that falls to zero at the end of the training.
    guide = nn.Linear(model.num_features, len(shapes.CLASSES) + 1)
    parameters = [*model.parameters(), *guide.parameters()]
    if options.start:
        model.load_state_dict(load_file(options.start))
    matrices = [p for key, p in model.named_parameters() if p.ndim == 2 and "blocks" in key and "table" not in key]
    others = [p for p in parameters if not any(p is matrix for matrix in matrices)]
    optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(others, options.rate, weight_decay=0.05)]
    optimizers += [Muon(matrices, options.rate)] if matrices else []
    images, cells = dataset(options.pictures)
    count = options.pictures // options.batch  # steps in an epoch
    steps, step, began = options.epochs * count, 0, time.time()
    state = {"model": model, "guide": guide, **{str(i): optimizer for i, optimizer in enumerate(optimizers)}}
    stopped = Path(tempfile.gettempdir()) / f"fxlrp-train-{options.model}-{options.seed}-{steps}.pt"
    if stopped.exists():
        stored = torch.load(stopped)
        step = stored.pop("step")
        for key, part in state.items():
            part.load_state_dict(stored[key])
    for epoch in range(step // count, options.epochs):
        model.train()
        random.seed(1000 * options.seed + step)
        order = torch.randperm(options.pictures, generator=torch.Generator().manual_seed(1000 * options.seed + epoch))
        for chosen in order[step % count * options.batch : count * options.batch].split(options.batch):
            now = options.rate * min((step + 1) / (0.05 * steps), 0.5 + 0.5 * math.cos(math.pi * step / steps))
            for group in (group for optimizer in optimizers for group in optimizer.param_groups):
                group["lr"] = now
            x, share = varied(images[chosen], cells[chosen])
            present = (share.amax((1, 2)) > 0).float()
            features = model.forward_features(prepare(x))
            loss = whole = cross_entropy(model.forward_head(features), present / present.sum(1, keepdim=True))
            share = share.flatten(1, 2).float() / (shapes.SIZE // CELLS) ** 2
            share = torch.cat([share, 1 - share.sum(2, keepdim=True)], 2)
            if features.ndim == 4:  # channels first or last
                features = features.flatten(2).mT if features.shape[-1] == CELLS else features.flatten(1, 2)
            local = features[:, -(CELLS**2) :]
            loss = loss + 5 * (1 - step / steps) * cross_entropy(guide(local).mT, share.mT)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            step += 1
            if step % 100 == 0:
                print(f"step {step}/{steps} loss {whole.item():.3f} {time.time() - began:.0f} s", flush=True)
            if step % 200 == 0:
                torch.save({"step": step} | {key: part.state_dict() for key, part in state.items()}, stopped)
        dtype = torch.float16 if options.half else torch.float32
        weights = model.eval().state_dict().items()
        save_file({k: v.contiguous().to(dtype if v.is_floating_point() else v.dtype) for k, v in weights}, options.out)
        print(f"epoch {epoch + 1}: exact {accuracy(model, range(5_000_000, 5_000_500))[0]:.3f} of 500", flush=True)
    stopped.unlink(missing_ok=True)
    return model


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=("cnn", "vit", "deep_vit", "deep_convnext", "deep_swin"), default="cnn")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--pictures", type=int, default=50_000)
    parser.add_argument("--rate", type=float, default=2e-3, help="highest learning rate")
    parser.add_argument("--batch", type=int, default=64, help="pictures per step")
    parser.add_argument("--start", type=Path, help="weights to go on from")
    parser.add_argument("--half", action="store_true", help="store the weights in float16")
    parser.add_argument("--out", type=Path, help="default: MODEL.safetensors next to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out = options.out or HERE / f"{options.model}.safetensors"
    exact, first = accuracy(train(options), TEST)
    print(f"{options.model}: all classes right {exact:.2%}, first class present {first:.2%} of {len(TEST)} pictures")
