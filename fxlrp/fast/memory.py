"""Memory: reuses memory, since new memory costs a CPU several times as much as computing the values in it.

Lends scratch memory for what is made of the weights of one layer and needed only there, and lets ops write over tensors
that nobody else holds.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from fxlrp.rules.per_sample import SampleAxis, along_samples, sample_count, sample_sum
from fxlrp.rules.quantities import relevance, where_positive

LARGE = 2**22
"""The most entries of a weight that are used at once; a larger weight is cut into pieces, by the outputs."""


def rows_at_once(w: Tensor) -> int:
    """The number of rows of a weight [K, C] in a piece."""
    return max(LARGE // max(w.shape[1], 1), 1)


class _Places(threading.local):
    def __init__(self) -> None:
        self.memory: dict[str, Tensor] | None = None


_places = _Places()


@contextmanager
def scratch() -> Iterator[None]:
    """Lend memory to this thread's calls of `borrow` within the context."""
    before, _places.memory = _places.memory, {}
    try:
        yield
    finally:
        _places.memory = before


def borrow(name: str, like: Tensor) -> Tensor | None:
    """Lend memory shaped like a tensor on the CPU, for an op's `out`, until the same name is borrowed again. Returns
    None, for which `out` takes new memory, where there is none to lend."""
    memory = _places.memory
    dense = like.device.type == "cpu" and like.layout is torch.strided
    if memory is None or not dense or not like.is_contiguous():
        return None
    if name not in memory or memory[name].dtype != like.dtype or memory[name].numel() < like.numel():
        memory.pop(name, None)  # before there is more
        memory[name] = like.new_empty(like.numel())
    return memory[name][: like.numel()].view(like.shape)


is_batched: Callable[[Tensor], bool] = torch._C._functorch.is_batchedtensor


def is_eager(t: Tensor) -> bool:
    """Whether t is computed now and for itself: neither traced nor one of a batch of passes."""
    return type(t) is Tensor and not is_batched(t)


def times(own: Tensor, t: Tensor) -> Tensor:
    """own · t, written over `own`, which nobody else holds, if the pass runs on a CPU and is not traced."""
    return own.mul_(t) if _may_write(own, t) and own.shape == t.shape else own * t


def less(own: Tensor, t: Tensor) -> Tensor:
    """own − t, as `times`."""
    return own.sub_(t) if _may_write(own, t) else own - t


def add_product(own: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """own + a · b, as `times`."""
    if is_batched(own):  # torch can't batch addcmul_
        return own.add_(a * b)
    return own.addcmul_(a, b) if _may_write(own, a, b) else torch.addcmul(own, a, b)


def keep_positive(own: Tensor, x: Tensor) -> Tensor:
    """`own` where x > 0, else 0, as `times`."""
    if _may_write(own, x):
        return torch.ops.aten.threshold_backward.grad_input(own, x, 0, grad_input=own)
    return where_positive(own, x)


def clamped(t: Tensor, sign: int, out: Tensor | None = None) -> Tensor:
    """t⁺ or t⁻, of a sparse tensor too, in the memory `out` if there is any."""
    if t.layout is not torch.strided:
        return t.relu() if sign > 0 else -(-t).relu()
    return torch.clamp(t, min=0, out=out) if sign > 0 else torch.clamp(t, max=0, out=out)


def scale_samples(own: Tensor, v: Tensor, batch: SampleAxis) -> Tensor:
    """Multiply each sample of `own` by its entry of v [B], in place as `times`."""
    v = along_samples(v, own, batch)
    return own.mul_(v) if _may_write(own, v) else own * v


def sample_dot(a: Tensor, b: Tensor, batch: SampleAxis, masked: bool = False) -> Tensor:
    """Σ a b over everything but the samples: [B], in at least float32, as `relevance` where masked. Takes no memory of
    its own where it can."""
    simple = not masked and a.dtype == b.dtype and a.dtype in (torch.float32, torch.float64) and _may_write(b, a)
    if simple and a.is_contiguous() and b.is_contiguous():
        count = sample_count(a, batch)
        if count == 1:
            return torch.dot(a.view(-1), b.view(-1)).view(1)
        if batch[:2] == (0, 1) and a.numel() > 4096 * count:  # fewer are faster in one call
            return torch.stack([torch.dot(*rows) for rows in zip(a.view(count, -1), b.view(count, -1), strict=True)])
    return sample_sum(relevance(a, b, masked), batch)


def _may_write(own: Tensor, *ts: Tensor) -> bool:
    """Whether the result of an op on `own` and ts can be written to own."""
    here = own.device.type == "cpu" and all(type(t) is Tensor for t in (own, *ts))
    return here and (is_batched(own) or not any(map(is_batched, ts)))
