"""Random weights that look trained: no gate at 0, no norm at 1, activations of one size at any depth.

Large parameters go to meta as they are registered and come back as views into shared pools of noise, so that a model of
a billion parameters is built in a second and takes little memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Matrices become meta tensors as modules register them, so that initialising them costs nothing."""

    def replace(module: nn.Module, name: str, p: nn.Parameter) -> None:
        if (
            p.ndim > 1 and p.numel() > 4096 and not p.is_meta and not isinstance(module, nn.RNNBase)
        ):  # it keeps weakrefs
            torch.utils.swap_tensors(p, nn.Parameter(p.detach().to("meta"), p.requires_grad))  # tied ones stay tied

    handle = register_module_parameter_registration_hook(replace)
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def randomize(model: nn.Module) -> None:
    """Matrices keep the size of what they multiply; no norm, bias, scale or gate is left at 0 or 1."""
    seen: set[int] = set()
    for module in model.modules():
        for name, p in module._parameters.items():
            if p is None or id(p) in seen or not p.is_floating_point():
                continue
            seen.add(id(p))
            if p.is_meta:
                drawn = _draw(tuple(p.shape), _spread(name, p))
                torch.utils.swap_tensors(p, nn.Parameter(drawn, p.requires_grad))
            elif (p.ndim > 1 and name.startswith("weight") and p.std() > 0) or not p.isfinite().all():
                p.copy_(_draw(tuple(p.shape), _spread(name, p)))
            else:
                p.add_(0.2 * torch.randn_like(p))


def _spread(name: str, p: Tensor) -> float:
    weight = name.startswith("weight")
    if p.ndim > 1 and (weight or p.shape[0] > 1):
        fan = math.prod(p.shape[1:]) if weight else max(p.shape[1:])  # others: experts, tables, classes
        return math.sqrt(2 / fan)
    return 0.2  # tokens and positions


_pools: dict[float, Tensor] = {}


@cache
def _noise() -> Tensor:
    return torch.randn((1 << 20) + 7, generator=torch.Generator().manual_seed(0))


def _draw(shape: tuple[int, ...], spread: float) -> Tensor:
    """A view, at a random place, into the pool of noise of about this spread: it takes no memory of its own."""
    spread = 2 ** (round(2 * math.log2(spread)) / 2)
    size = math.prod(shape)
    pool = _pools.get(spread)
    if pool is None or len(pool) < size + (1 << 16):
        repeats = -(-(size + (1 << 16)) // len(_noise()))
        pool = _pools[spread] = (spread * _noise()).repeat(repeats)
    start = int(torch.randint((len(pool) - size) // 16, ())) * 16
    return pool[start : start + size].view(shape)


@contextmanager
def calibrating(model: nn.Module) -> Iterator[None]:
    """A forward in here gives each norm the running statistics of what it gets, perturbed: activations keep their size
    through any depth."""

    def set_statistics(norm: nn.Module, args: tuple) -> None:
        x = args[0].transpose(0, 1).flatten(1)
        mean, var = x.mean(1), x.var(1)
        var.clamp_(min=0.1 * var.mean().item() + 1e-12)  # two samples may agree in some channel
        norm.running_mean.copy_(mean + 0.2 * torch.randn_like(mean) * var.sqrt())
        norm.running_var.copy_(var * (0.75 + 0.5 * torch.rand_like(var)))

    norms = [m for m in model.modules() if isinstance(getattr(m, "running_var", None), Tensor)]
    hooks = [m.register_forward_pre_hook(set_statistics) for m in norms]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
