"""Runs a rewritten graph with its inside at hand: values at places are kept, cut or replaced there.

A rulebook that rescales relevance (mass, unit) is not linear in it: what two parts of it become does not add up to what
the whole becomes.  `Shares` remembers by which factors the whole was shared out, and shares its parts out by the same.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from fxlrp.engine.replaced import ByRule
from fxlrp.graph.plan import Plan
from fxlrp.rules.normalise import Give
from fxlrp.rules.registry import Rulebook


class Shares:
    """The shares by which each node of a graph passed on the whole of relevance, by the nodes' names.

    measuring: whether the pass that runs is the whole's, whose factors are noted, or that of a part.
    """

    def __init__(self) -> None:
        self.factors: dict[str, Give] = {}
        self.measuring = True


class Opened(fx.Interpreter):
    """Runs the graph of a plan and keeps the values at some of its nodes.

    values: the values of the nodes `kept`, by name; relevance ends there if they are `cut`.
    arrived: the same before they were cut.
    instead: what takes the place of a node's value, as a function of it.
    shares: what a rulebook that rescales relevance shares it out by; None for one that does not.
    """

    def __init__(
        self,
        plan: Plan,
        kept: Collection[str] = (),
        *,
        cut: bool = False,
        shares: Shares | None = None,
        instead: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
    ) -> None:
        super().__init__(plan.graph)
        self.kept, self.cut, self.shares, self.instead = set(kept), cut, shares, dict(instead or {})
        self.values: dict[str, Tensor] = {}
        self.arrived: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        if self.shares is not None and isinstance(n.target, ByRule) and n.target.normalise.measure:
            args, kwargs = self.fetch_args_kwargs_from_env(n)
            value = _by_shares(n.target, self.shares, n.name, args, kwargs)
        else:
            value = super().run_node(n)
        if n.name in self.instead:
            value = self.instead[n.name](value)
        if n.name in self.kept:
            self.arrived[n.name] = value
            value = self.values[n.name] = value.detach().requires_grad_() if self.cut else value
        return value


def shares_of(book: Rulebook) -> Shares | None:
    """What a pass by a rulebook shares relevance out by, if that has to be remembered."""
    return Shares() if book.normalise.measure else None


def _by_shares(op: ByRule, shares: Shares, name: str, args: tuple, kwargs: dict[str, Any]) -> Tensor:
    plain: ByRule = getattr(op, "plain", op)  # without a kernel, which may write over what is kept
    leaves, spec, places, tensors = plain.flattened(args, kwargs)
    return _ByShares.apply(plain, shares, name, leaves, spec, places, *tensors)


class _ByShares(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, op: ByRule, shares: Shares, name: str, leaves: list, spec: Any, places: list[int], *tensors: Tensor
    ) -> Tensor:
        args, kwargs = pytree.tree_unflatten(leaves, spec)
        z = op.op(*args, **kwargs)
        ctx.save_for_backward(z, *tensors)
        ctx.op, ctx.shares, ctx.name, ctx.spec, ctx.places = op, shares, name, spec, places
        ctx.leaves = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        return z

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple:
        op, shares = ctx.op, ctx.shares
        z, *tensors = ctx.saved_tensors
        leaves = list(ctx.leaves)
        for i, t in zip(ctx.places, tensors, strict=True):
            leaves[i] = t
        args, kwargs = pytree.tree_unflatten(leaves, ctx.spec)
        rule, join, part, z, xs = op.in_real_numbers(g, z, [leaves[i] for i in op.argnums], args, kwargs)
        if shares.measuring:
            shares.factors[ctx.name] = op.normalise.measure(rule, part, z, xs, op.where)
        grads = dict(zip(op.argnums, join(shares.factors[ctx.name](rule, part)), strict=True))
        return *[None] * 6, *(grads.get(i) for i in ctx.places)
