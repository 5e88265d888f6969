"""The generic rule, which is the specification of all others, and the few patterns fast rules are made by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fxlrp.errors import FxlrpError
from fxlrp.rules.contributions import ByContributions, Contributions, diagonal
from fxlrp.rules.quantities import by_parts, outside_vmap, over_abs, where_positive

aten = torch.ops.aten


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


def differentiable(t: Any) -> bool:
    """Whether t is a tensor of real or complex numbers."""
    return isinstance(t, Tensor) and (t.is_floating_point() or t.is_complex())


def generic(op: Callable[..., Tensor], shares: tuple[int, ...]) -> Callable[..., list[Tensor]]:
    """The rule for an op of which nothing is known but its derivative.

    g_a = J_f(a; θ)ᵀ s + sign(a) ⊙ J_f(|a|; |θ|)ᵀ s,  s = R / |z|   (Vukadin et al. 2024, the absLRP rule, times 1/a)

    shares: which of the call's leaves, in pytree order, are a; all other tensors are θ.
    """

    def rule(g: Tensor, z: Tensor, *args: Any, **kwargs: Any) -> list[Tensor]:
        leaves, spec = pytree.tree_flatten((args, kwargs))

        def call(*xs: Tensor, absolute: bool) -> Tensor:
            new = [by_parts(torch.abs, t) if absolute and differentiable(t) else t for t in leaves]
            for i, x in zip(shares, xs, strict=True):
                new[i] = x
            a, k = pytree.tree_unflatten(new, spec)
            return op(*a, **k)

        call.__name__ = str(op)
        xs = [leaves[i] for i in shares]
        s = over_abs(g, z)
        plain = vjp(partial(call, absolute=False), xs, s)
        absolute = vjp(partial(call, absolute=True), [by_parts(torch.abs, x) for x in xs], s)

        def both(p: Tensor, a: Tensor, x: Tensor) -> Tensor:
            # at a = 0, R = a g is 0 whatever the derivative, which may be infinite there
            return (p + x.sign() * a).masked_fill(x == 0, 0)

        return [by_parts(both, p, a, x) for p, x, a in zip(plain, xs, absolute, strict=True)]

    rule.__name__ = "generic"
    return rule


def by_definition(h: Callable[..., Tensor], h_abs: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The rule g = (J_h + J_h_abs)ᵀ s for a function and its absolute companion, by autograd.

    What is a constant of the method (a mean, a norm, a denominator) is detached inside h and h_abs.
    """

    def rule(g: Tensor, z: Tensor, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        s = over_abs(g, z)
        return vjp(lambda t: h(t, *args, **kwargs), [x], s)[0] + vjp(lambda t: h_abs(t, *args, **kwargs), [x], s)[0]

    rule.__name__ = h.__name__.strip("_")
    return rule


def activation(f: Callable[..., Tensor]) -> ByContributions:
    """An elementwise non-linearity: relevance goes to positive inputs, R_x = 2 x⁺ f'(x) s.

    The absLRP rule with companion f_abs whose derivative is sign(x) f'(x): |x|·gate(x) for gated units such as GELU,
    f(|x|) for odd functions such as tanh.  f must not fall where x > 0.
    """

    def rule(z: Tensor, x: Tensor, *args: Any, **kwargs: Any) -> Contributions:
        ones = x.new_ones(()).expand_as(x)
        if f in SLOPES:
            slope = SLOPES[f](ones, x, *args, **kwargs)
        else:
            (slope,) = vjp(lambda t: f(t, *args, **kwargs), [x], ones)
        return diagonal(x, where_positive(slope, x), 2)

    rule.__name__ = f.__name__.split(".")[0]
    rule.__doc__ = activation.__doc__
    return ByContributions(rule)


SLOPES = {aten.gelu.default: aten.gelu_backward.default, aten.silu.default: aten.silu_backward.default}
"""Derivatives of what is dear to compute once more."""
