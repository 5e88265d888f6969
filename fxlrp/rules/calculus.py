"""Calculus that rules are written with: the vector-Jacobian product of a function."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch._functorch import pyfunctorch

from fxlrp.errors import FxlrpError

outside_vmap = pyfunctorch.temporarily_clear_interpreter_stack
"""A context in which values that are the same for all passes of a batch are computed as for one."""


def vjp(f: Callable[..., Tensor], xs: Sequence[Tensor], g: Tensor) -> list[Tensor]:
    """J_f(xs)ᵀ g, zero where f does not depend on an x."""
    return pullback(f, *xs)[1](g)


def pullback(f: Callable[..., Tensor], *xs: Tensor) -> tuple[Tensor, Callable[[Tensor], list[Tensor]]]:
    """f(xs), and g ↦ J_f(xs)ᵀ g, to be called once."""
    with torch.enable_grad(), outside_vmap():  # where xs may need a gradient
        leaves = [x.detach().requires_grad_() for x in xs]
        value = f(*leaves)

    def pull(g: Tensor) -> list[Tensor]:
        if not value.requires_grad:
            name = getattr(getattr(f, "func", f), "__name__", f)
            raise FxlrpError(f"{name} has no derivative in torch {torch.__version__}: give it a rule, @fxlrp.rule(op).")
        grads = torch.autograd.grad(value, leaves, g, allow_unused=True)
        return [torch.zeros_like(x) if d is None else d.resolve_conj() for x, d in zip(xs, grads, strict=True)]

    return value.detach(), pull


def differentiable(t: object) -> bool:
    """Whether t is a tensor of real or complex numbers."""
    return isinstance(t, Tensor) and (t.is_floating_point() or t.is_complex())


def slope(f: Callable[..., Tensor], x: Tensor) -> Tensor:
    """f'(x) of a function that works entry by entry."""
    return vjp(f, [x], x.new_ones(()).expand_as(x))[0]
