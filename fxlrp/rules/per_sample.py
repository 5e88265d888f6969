"""Sums and scales each sample of a batch, wherever its samples are laid out."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class SampleAxis(NamedTuple):
    """Where the samples of a tensor are: its `axis` is laid out as [before, samples, after]."""

    axis: int
    before: int = 1
    after: int = 1


WHOLE = SampleAxis(-1)
"""The place of samples in a tensor that has one sample, or whose samples can't be told apart (then only batches of one
are explained)."""


class Placement(NamedTuple):
    """Where the samples of an op's output and inputs are, and whether masked (infinite) values may be among them."""

    output: SampleAxis
    inputs: tuple[SampleAxis, ...]
    masked: bool = False


def sample_count(t: Tensor, batch: SampleAxis) -> int:
    """The number of samples in a tensor."""
    return 1 if batch == WHOLE else t.shape[batch.axis] // (batch.before * batch.after)


def entries_of(sample: int, length: int, batch: SampleAxis) -> Tensor:
    """The indices of a sample's entries along the axis where the samples are, which has this length."""
    return torch.arange(length).view(batch.before, -1, batch.after)[:, sample].flatten()


def sample_sum(t: Tensor, batch: SampleAxis) -> Tensor:
    """Sum over everything but the samples: [B], in at least float32."""
    dtype = torch.promote_types(t.dtype, torch.float32)
    if batch == WHOLE:
        return t.sum(dtype=dtype).view(1)
    axis, before, after = batch
    if before * after > 1:
        t, axis = t.reshape(*t.shape[:axis], before, -1, after, *t.shape[axis + 1 :]), axis + 1
    return t.sum([d for d in range(t.ndim) if d != axis], dtype=dtype) if t.ndim > 1 else t.to(dtype)


def along_samples(v: Tensor, t: Tensor, batch: SampleAxis) -> Tensor:
    """v, with an entry for each sample [B], shaped so that t is multiplied by it sample by sample."""
    v = v.to(t.dtype)
    if sample_count(t, batch) == 1:
        return v.view(())
    v = v.view(1, -1, 1).expand(batch.before, -1, batch.after).reshape(-1)
    return v.view([-1 if d == batch.axis else 1 for d in range(t.ndim)])
