"""Quantities rules and normalisations are made of: relevance at a tensor, its sums per sample, signs, ratios."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch._functorch import pyfunctorch


class Batch(NamedTuple):
    """Where the samples of a tensor are: its `axis` is laid out as [before, samples, after]."""

    axis: int
    before: int = 1
    after: int = 1


WHOLE = Batch(-1)
"""A tensor of one sample, or whose samples can't be told apart (then a batch of one is all that may be explained)."""


class Placement(NamedTuple):
    """Where the samples of an op's output and inputs are, and whether masked (infinite) values may be among them."""

    output: Batch
    inputs: tuple[Batch, ...]
    masked: bool = False


def as_pair(t: Tensor) -> Tensor:
    """A complex tensor as the real one it is made of, with one more axis of two; a real one as it is."""
    return torch.view_as_real(t) if t.is_complex() else t


def by_parts(f: Callable[..., Tensor], *ts: Tensor) -> Tensor:
    """f of the real and the imaginary parts of complex tensors, each apart; f itself of real ones."""
    out = f(*map(as_pair, ts))
    return torch.view_as_complex(out) if ts[0].is_complex() else out


def over_abs(g: Tensor, z: Tensor) -> Tensor:
    """s = R / |z| = sign(z) g, with s = 0 where z = 0."""
    return by_parts(lambda g, z: times(z.sign(), g), g, z)


def times(own: Tensor, t: Tensor) -> Tensor:
    """own · t, in the memory of `own`, which nobody else has, where a pass is run on a CPU and not traced: new memory
    costs it more than the product does."""
    return own.mul_(t) if _may_write(own, t) and own.shape == t.shape else own * t


def less(own: Tensor, t: Tensor) -> Tensor:
    """own − t, as `times`."""
    return own.sub_(t) if _may_write(own, t) else own - t


def add_product(own: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """own + a · b, as `times`."""
    if is_batched(own):  # torch can't batch addcmul_
        return own.add_(a * b)
    return own.addcmul_(a, b) if _may_write(own, a, b) else torch.addcmul(own, a, b)


def is_eager(t: Tensor) -> bool:
    """Whether t is computed now, for itself: neither traced nor one of a batch of passes."""
    return type(t) is Tensor and not is_batched(t)


is_batched: Callable[[Tensor], bool] = torch._C._functorch.is_batchedtensor
outside_vmap = pyfunctorch.temporarily_clear_interpreter_stack
"""A context in which values that are the same for all passes of a batch are computed as for one."""


def _may_write(own: Tensor, *ts: Tensor) -> bool:
    """Whether what is computed of `own` and ts can be written to own."""
    here = own.device.type == "cpu" and all(type(t) is Tensor for t in (own, *ts))
    return here and (is_batched(own) or not any(map(is_batched, ts)))


def where_positive(g: Tensor, x: Tensor) -> Tensor:
    """g where x > 0, else 0: the backward pass of a ReLU, which is one pass over memory."""
    return torch.ops.aten.threshold_backward.default(g, x, 0)


def clamped(t: Tensor, sign: int, out: Tensor | None = None) -> Tensor:
    """t⁺ or t⁻, of a sparse tensor too."""
    if t.layout is not torch.strided:
        return t.relu() if sign > 0 else -(-t).relu()
    return torch.clamp(t, min=0, out=out) if sign > 0 else torch.clamp(t, max=0, out=out)


def keep_positive(own: Tensor, x: Tensor) -> Tensor:
    """`own` where x > 0, else 0, in its own memory as `times`."""
    if _may_write(own, x):
        return torch.ops.aten.threshold_backward.grad_input(own, x, 0, grad_input=own)
    return where_positive(own, x)


def size_of(z: Tensor, masked: bool = False) -> Tensor:
    """|z|; where `masked`, what is infinite is the largest finite number, which gives nothing where s = 0."""
    return z.abs().clamp_(max=torch.finfo(z.dtype).max) if masked else z.abs()


def sample_count(t: Tensor, batch: Batch) -> int:
    """How many samples a tensor has."""
    return 1 if batch == WHOLE else t.shape[batch.axis] // (batch.before * batch.after)


def sample_sum(t: Tensor, batch: Batch) -> Tensor:
    """Sum over everything but the samples: [B], in at least float32."""
    dtype = torch.promote_types(t.dtype, torch.float32)
    if batch == WHOLE:
        return t.sum(dtype=dtype).view(1)
    axis, before, after = batch
    if before * after > 1:
        t, axis = t.reshape(*t.shape[:axis], before, -1, after, *t.shape[axis + 1 :]), axis + 1
    return t.sum([d for d in range(t.ndim) if d != axis], dtype=dtype) if t.ndim > 1 else t.to(dtype)


def sample_dot(a: Tensor, b: Tensor, batch: Batch, masked: bool = False) -> Tensor:
    """Σ a b over everything but the samples: [B], in at least float32; as `relevance` where masked."""
    simple = not masked and a.dtype == b.dtype and a.dtype in (torch.float32, torch.float64) and _may_write(b, a)
    if simple and a.is_contiguous() and b.is_contiguous():  # in no memory of its own
        count = sample_count(a, batch)
        if count == 1:
            return torch.dot(a.view(-1), b.view(-1)).view(1)
        if batch[:2] == (0, 1) and a.numel() > 4096 * count:  # fewer are faster in one call
            return torch.stack([torch.dot(*rows) for rows in zip(a.view(count, -1), b.view(count, -1), strict=True)])
    return sample_sum(relevance(a, b, masked), batch)


def sample_scale(t: Tensor, v: Tensor, batch: Batch, own: bool = False) -> Tensor:
    """t with each sample multiplied by its entry of v [B]; in the memory of t, if it is our `own` and that can be."""
    v = v.to(t.dtype)
    if sample_count(t, batch) != 1:
        v = v.view(1, -1, 1).expand(batch.before, -1, batch.after).reshape(-1)
        v = v.view([-1 if d == batch.axis else 1 for d in range(t.ndim)])
    else:
        v = v.view(())
    return t.mul_(v) if own and _may_write(t, v) else t * v


def ratio(a: Tensor, b: Tensor) -> Tensor:
    """a / b, and 0 where b is 0 or all but: relevance that nothing can take is dropped."""
    least = torch.finfo(b.dtype).tiny * (1 if b.dtype == torch.float16 else 1e8)  # below it, a / b may overflow
    return torch.ops.aten.threshold_backward.default(a / b, b.abs(), least)


def relevance(a: Tensor, g: Tensor, masked: bool = False) -> Tensor:
    """R = a ⊙ g; where `masked`, a may be infinite (a masked logit) and R is 0 wherever g is."""
    r = a * g
    return r.masked_fill_(g == 0, 0) if masked else r
