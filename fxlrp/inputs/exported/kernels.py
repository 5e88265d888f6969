"""Replace operators whose kernels trust their arguments: indices, counts, sizes of statistics."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._decomp import decomposition_table

from fxlrp.inputs.exported.operators import NAMES, operators


def _max_pool_backward(g: Tensor, x: Tensor, *args: Any) -> Tensor:
    """Compute the derivative of max pooling: scatter, unlike its own kernel, looks at the indices."""
    *_, indices = args
    axes = len(args[0])
    zeros = g.new_zeros(x.shape).flatten(-axes)
    return zeros.scatter_add(-1, indices.flatten(-axes), g.flatten(-axes)).view(x.shape)


def _by_autograd(op: Callable[..., Tensor], g: Tensor, x: Tensor, *args: Any) -> Tensor:
    """Compute the derivative of an op by its first input: unlike kernels of derivatives, autograd looks at sizes."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        return torch.autograd.grad(op(x, *args), x, g)[0]


def _adaptive_pool_backward(pool: Callable[..., Tensor], g: Tensor, x: Tensor) -> Tensor:
    """Compute the derivative of adaptive average pooling to the size of g."""
    return _by_autograd(pool, g, x, g.shape[2 - g.ndim :])


def _recurrent(
    op: Callable[..., Any],
    gates: int,
    x: Tensor,
    state: Any,
    weights: Sequence[Tensor],
    biases: bool,
    layers: int,
    dropout: float,
    train: bool,
    both_ways: bool,
    batch_first: bool,
) -> Any:
    """Run a recurrent network.  Raises ValueError if the sizes of its weights and its state don't fit each other."""
    ways, states = 1 + both_ways, list(state) if isinstance(state, list | tuple) else [state]
    size, batch = states[0].shape[-1], x.shape[0 if batch_first else 1]
    wanted: list[tuple[int, ...]] = []
    for layer in range(min(layers, 64)):
        width = x.shape[-1] if layer == 0 else size * ways
        rows = ((gates * size, width), (gates * size, size), *[(gates * size,)] * (2 * biases))
        wanted += rows * ways
    fits = x.ndim == 3 and [tuple(w.shape) for w in weights] == wanted
    if (
        not fits
        or any(tuple(h.shape) != (layers * ways, batch, size) for h in states)
        or len(states) != (gates == 4) + 1
    ):
        raise ValueError("a recurrent network whose sizes don't fit each other")
    return op(x, state, weights, biases, layers, dropout, train, both_ways, batch_first)


def _batch_norm(x: Tensor, w: Any, b: Any, mean: Tensor, var: Tensor, momentum: float, eps: float) -> tuple:
    """Compute a batch norm by its running statistics; those of the batch, which it returns too, are empty."""
    z = torch.ops.aten.batch_norm(x, w, b, mean, var, False, momentum, eps, False)
    return z, x.new_empty(0), x.new_empty(0)


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """Scale v to the norms g along an axis."""
    others = [d for d in range(v.ndim) if d != dim % v.ndim]
    return v * (g / v.square().sum(others, keepdim=True).sqrt())


def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout: float = 0.0,
    causal: bool = False,
    *,
    attn_mask: Tensor | None = None,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute softmax(q kᵀ · scale + mask) v, and the logarithm of the softmax's denominators."""
    scores = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    if attn_mask is not None:
        scores = scores + attn_mask
    if causal:
        ahead = torch.ones_like(scores[0, 0], dtype=torch.bool).triu(1)
        scores = scores.masked_fill(ahead, float("-inf"))
    return scores.softmax(-1) @ v, scores.logsumexp(-1)


def _attention_backward(
    g: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    denominators: Tensor,
    dropout: float,
    causal: bool,
    *,
    attn_mask: Tensor | None = None,
    scale: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the derivative of attention by q, k and v."""
    with torch.enable_grad():
        q, k, v = (t.detach().requires_grad_() for t in (q, k, v))
        z, _ = _attention(q, k, v, dropout, causal, attn_mask=attn_mask, scale=scale)
        dq, dk, dv = torch.autograd.grad(z, (q, k, v), g)
    return dq, dk, dv


# The operators whose kernels trust what they are given, and what is run instead, which is made of ops that don't;
# None stands for torch's own decomposition.
_TRUSTING: dict[str, Callable[..., Any] | None] = {
    "max_pool2d_with_indices_backward.default": _max_pool_backward,
    "max_pool3d_with_indices_backward.default": _max_pool_backward,
    "_scaled_dot_product_flash_attention_for_cpu.default": _attention,
    "_scaled_dot_product_flash_attention_for_cpu_backward.default": _attention_backward,
    "_weight_norm.default": _weight_norm,
    **{
        f"_adaptive_avg_pool{n}d_backward.default": functools.partial(
            _adaptive_pool_backward, getattr(torch.ops.aten, f"_adaptive_avg_pool{n}d").default
        )
        for n in (2, 3)
    },
    **{
        f"{name}_backward.default": functools.partial(_by_autograd, getattr(torch.ops.aten, name).default)
        for name in (
            "avg_pool2d",
            "avg_pool3d",
            "reflection_pad1d",
            "reflection_pad2d",
            "replication_pad1d",
            "replication_pad2d",
        )
    },
    **{name: None for name in NAMES if "batch_norm_" in name or name.startswith(("native_", "_fused_rms"))},
    "_native_batch_norm_legit_no_training.default": _batch_norm,
    **{
        f"{name}.input": functools.partial(_recurrent, getattr(torch.ops.aten, name).input, gates)
        for name, gates in (("lstm", 4), ("gru", 3), ("rnn_tanh", 1), ("rnn_relu", 1))
    },
    **{f"{name}_backward.default": None for name in ("embedding_dense", "unfold")},
    **{f"{name}_backward_data.default": None for name in ("_softmax", "_log_softmax")},
}


@functools.cache
def replacements() -> dict[Any, Callable[..., Any]]:
    """Return what is run in the place of each operator whose kernel trusts its arguments."""
    replaced = {}
    for name, ours in _TRUSTING.items():
        op = operators().get(f"torch.ops.aten.{name}")
        if op is not None:
            replaced[op] = run = ours or decomposition_table[op]
            if isinstance(run, functools.partial):  # torch.fx writes the names of what it calls
                run.__name__ = run.__qualname__ = re.sub(r"\W", "_", name)  # type: ignore[attr-defined]
                run.__module__ = __name__
    for view in (torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default):
        replaced[view] = torch.ops.aten.reshape.default  # a replacement may lay its result out otherwise
    return replaced
