"""Compares a graph's output with the model's own, and compiled relevance with eager relevance."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from fxlrp.errors import FxlrpError


def share_apart(output: Tensor, expected: Tensor) -> float:
    """The largest difference relative to the largest entry of `expected`, which is finite; infinite if the shapes
    differ or `output` has NaN."""
    if output.shape != expected.shape:
        return float("inf")
    difference = (output - expected).abs().max().double()
    return float((difference / expected.abs().max()).nan_to_num(float("inf"), float("inf"))) if difference else 0.0


def apart(relevance: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest ‖relevance − expected‖ / ‖expected‖ of several; entries that are NaN in both count as equal."""
    worst = 0.0
    for f, e in zip(relevance, expected, strict=True):
        f, e = f.detach().to(torch.promote_types(f.dtype, torch.float32)), e.detach()
        comparable = ~(f.isnan() & e.isnan())
        f, e = f[comparable], e[comparable]
        if not torch.equal(f, e):
            ratio = float((f - e).abs().norm() / e.abs().norm())
            worst = max(worst, ratio if ratio == ratio else float("inf"))
    return worst


@contextmanager
def no_fast_attention() -> Iterator[None]:
    """Within it, turns off the fast path of nn.TransformerEncoder in the whole process, so that inference computes the
    same as training."""
    was_enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(was_enabled)


EXACT = {torch.float64: 1e-8}
CLOSE = 1e-3
"""The relative difference allowed to outputs by rounding, and to compiled relevance before it is examined further."""
ROUNDINGS = 30.0
"""The difference allowed to outputs and relevance, in multiples of the effect of rounding the inputs once."""


def check_compiled(
    compiled: Sequence[Tensor], eager: Callable[[Sequence[Tensor]], Sequence[Tensor]], inputs: Sequence[Tensor]
) -> None:
    """Compares relevance by a compiled graph with that of the eager one, a function of the inputs.

    Raises FxlrpError if they differ by more than rounding explains; its effect is large for a contrast of nearly equal
    maps, and where a maximum changes place.
    """
    expected = eager(inputs)
    off = apart(compiled, expected)
    if off <= EXACT.get(expected[0].dtype, CLOSE):
        return
    rounded = apart(eager([moved_by_rounding(t) for t in inputs]), expected)
    if off > ROUNDINGS * rounded + (0.25 if _tf32(inputs) else 0.0):
        raise FxlrpError(
            f"The compiled graph gives another relevance than the eager one: {off:.1e} of it is wrong, and rounding "
            f"accounts for {rounded:.0e}. This is a fault of the compiler: leave out compile(), try another backend "
            'or mode (compile(backend="aot_eager")), and report it to torch with explainer.joint().traced.'
        )


def is_noise(output: Tensor, expected: Tensor, inputs: Sequence[Tensor]) -> bool:
    """Whether two outputs differ by no more than rounding leaves of inputs of this size that cancel each other."""
    sizes = [float(t.detach().abs().max()) for t in inputs if t.is_floating_point() and t.numel()]
    if output.shape != expected.shape or not expected.is_floating_point() or not sizes:
        return False
    return bool((output - expected).abs().max() <= ROUNDINGS * torch.finfo(expected.dtype).eps * max(sizes))


def rounding(output: Tensor) -> float:
    """The difference between two runs of one network that rounding allows, relative to the output's largest value."""
    return 1e-2 if _tf32([output]) else EXACT.get(output.dtype, CLOSE)


def _tf32(inputs: Sequence[Tensor]) -> bool:
    """Whether products are rounded to 10 bits, which eager and compiled kernels do differently."""
    cuda = any(t.is_cuda for t in inputs)
    return cuda and (torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32)


def moved_by_rounding(t: Tensor, period: int = 2) -> Tensor:
    """A float tensor with each entry moved by a few units in its last place, every `period`-th up and the others down;
    other tensors unchanged."""
    if not t.is_floating_point():
        return t
    signs = ((torch.arange(t.numel(), device=t.device) % period == 1) * 2 - 1).view(t.shape).to(t.dtype)
    return t * (1 + 4 * torch.finfo(t.dtype).eps * signs)
