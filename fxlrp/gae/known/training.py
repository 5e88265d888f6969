"""Train small networks within the command: the same bits at every run, kept in the folder of the run.

A process that needs a network trains it, unless another one does already, for which it waits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fxlrp.errors import FxlrpError
from fxlrp.gae.known.cases import generator
from fxlrp.gae.store import usable, write

Batches = Callable[[torch.Generator], tuple[Tensor, Tensor]]


class Recipe(NamedTuple):
    """How a network is trained: make() builds it untrained, draw(generator) draws a batch x and its classes."""

    name: str
    make: Callable[[], nn.Module]
    draw: Batches
    steps: int
    rate: float = 3e-3
    loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy


def train(recipe: Recipe, seed: int) -> nn.Module:
    """Train a network by AdamW, whose rate rises and falls, on one thread: the bits depend on nothing but the seed."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(seed)
            model, g = recipe.make().train(), generator(seed, recipe.name)
            optimizer = torch.optim.AdamW(model.parameters(), recipe.rate, weight_decay=0.01)
            plan = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.rate, total_steps=recipe.steps, pct_start=0.15)
            for _ in range(recipe.steps):
                x, target = recipe.draw(g)
                optimizer.zero_grad()
                recipe.loss(model(x), target).backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                plan.step()
    finally:
        torch.set_num_threads(threads)
    return model.eval().requires_grad_(False)


def trained(recipe: Recipe, seed: int, folder: Path | None) -> nn.Module:
    """The network of a recipe, trained or, if the folder has it, read.

    Raises FxlrpError if the folder can't be written, or holds a file that is damaged.
    """
    if folder is None:
        return train(recipe, seed)
    with usable(folder):
        folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{recipe.name.replace(' ', '-')}.safetensors"
    with _alone(path.with_suffix(".lock")):
        if not path.exists():
            _keep(path, train(recipe, seed))
    body, _, checksum = path.read_bytes().rpartition(b"sha256 ")
    if hashlib.sha256(body).hexdigest().encode() != checksum:
        raise FxlrpError(f"{path} was changed since it was written; delete it, and the network is trained again.")
    model = recipe.make()
    model.load_state_dict(load(body))
    return model.eval().requires_grad_(False)


def _keep(path: Path, model: nn.Module) -> None:
    """Write a network's weights, with a checksum behind them."""
    body = save({name: value.contiguous() for name, value in model.state_dict().items()})
    write(path, body + b"sha256 " + hashlib.sha256(body).hexdigest().encode())


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Let one process in at a time, where there are locks of files."""
    with usable(path.parent), path.open("ab") as file:
        try:
            import fcntl
        except ImportError:  # Windows: each process trains for itself, to the same bits
            yield
            return
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def those_right(model: nn.Module, x: Tensor, target: Tensor, most: int) -> Tensor:
    """The numbers of the first inputs that a network classifies right.  Raises FxlrpError if it does so with none."""
    with torch.no_grad():
        right = (torch.cat([model(part) for part in x.split(64)]).argmax(1) == target).nonzero()[:most, 0]
    if not len(right):
        raise FxlrpError("The network that was trained classifies no input right; try another seed.")
    return right


def accuracy(model: nn.Module, x: Tensor, target: Tensor) -> float:
    """How many inputs are classified right."""
    with torch.no_grad():
        return float((torch.cat([model(part) for part in x.split(64)]).argmax(1) == target).double().mean())
