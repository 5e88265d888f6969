"""Ops that replace a graph's ops: the same forward value, with a rule as the backward pass.

Every tensor a carries a cotangent g with R = a ⊙ g, so a rule is a modified vector-Jacobian product, and
torch.autograd.grad is the relevance pass.  This module does what all rules share: rescaling per sample
(rules/normalise.py), undoing broadcasts, complex numbers, skipping tensors that get no relevance.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fxlrp.errors import FxlrpError
from fxlrp.ops import is_pointwise
from fxlrp.rules.folded import product_of, unfolded
from fxlrp.rules.normalise import BoundRule, Normalise
from fxlrp.rules.per_sample import Placement
from fxlrp.rules.quantities import as_pair, relevance
from fxlrp.rules.registry import Derivative, Rule, ScaledDerivative


class ReplacedOp:
    """Replaces the op `op`.  Equal replacements share a name when printed: `book.name`."""

    def __init__(self, op: Callable, name: str, book: str, *key: object) -> None:
        self.op = op
        self.__name__ = self.__qualname__ = re.sub(r"\W", "_", name)
        self.__module__ = re.sub(r"\W", "_", book)
        self._key = (type(self), op, name, book, *key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ReplacedOp) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def __repr__(self) -> str:
        return f"{self.__module__}.{self.__name__}"


class ByRule(ReplacedOp):
    """An op whose backward pass is a rule.

    op: the op itself, which the forward pass calls unchanged.
    rule: called as rule.fn(g, z, *args, **kwargs) with the op's own arguments; returns one g per tensor in `argnums`.
    argnums: the leaves of the call's (args, kwargs), in pytree order, that the rule returns g for; relevance of a
        constant among them is lost.
    where: the sample axes of the output and of each tensor of `argnums`.
    """

    def __init__(
        self,
        op: Callable,
        rule: Rule,
        name: str,
        book: str,
        normalise: Normalise,
        argnums: tuple[int, ...],
        where: Placement,
        *key: object,
    ) -> None:
        super().__init__(op, name, book, rule, normalise, argnums, where, *key)
        self.rule, self.normalise, self.argnums, self.where = rule, normalise, argnums, where
        self.pointwise = is_pointwise(op)
        self.product = product_of(op)
        available = {"op": self.product, "argnums": argnums}
        self.keywords = {keyword: value for keyword, value in available.items() if rule.wants(keyword)}

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        leaves, spec, places, tensors = self.flattened(args, kwargs)
        return _ByRule.apply(self, leaves, spec, places, *tensors)

    def flattened(self, args: tuple, kwargs: dict) -> tuple[list, pytree.TreeSpec, list[int], Sequence[Tensor]]:
        """The leaves of a call and their pytree spec, the indices of the tensors among them, and the tensors."""
        leaves, spec = pytree.tree_flatten((args, kwargs))
        places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        tensors: Sequence[Tensor] = [leaves[i] for i in places]
        if self.pointwise:  # rules see broadcast operands at full size; autograd sums their cotangents
            tensors = torch.broadcast_tensors(*tensors)
        return leaves, spec, places, tensors

    def propagate(
        self, g: Tensor, z: Tensor, xs: Sequence[Tensor], args: tuple, kwargs: dict[str, Any]
    ) -> Sequence[Tensor | None]:
        """The cotangents of xs, the tensors of `argnums`, for g at the output z."""
        rule, join, g, z, xs = self.in_real_numbers(g, z, xs, args, kwargs)
        return join(self.normalise.scale(rule, g, z, xs, self.where))

    def in_real_numbers(
        self, g: Tensor, z: Tensor, xs: Sequence[Tensor], args: tuple, kwargs: dict[str, Any]
    ) -> tuple[BoundRule, Callable[[list[Tensor]], list[Tensor]], Tensor, Tensor, Sequence[Tensor]]:
        """The rule's call, the function that completes its rescaled cotangents, g, z and xs, all in real numbers: a
        complex tensor is taken as its real and imaginary parts, which each have relevance."""
        keeps_relevance = getattr(self.rule.fn, "keeps_relevance", False)
        rule = BoundRule(lambda g: self.call_rule(g, z, xs, args, kwargs), keeps_relevance)
        if not any(t.is_complex() for t in (z, *xs)):
            return rule, list, g, z, xs

        def like(t: Tensor, a: Tensor) -> Tensor:
            return torch.view_as_complex(t.contiguous()) if a.is_complex() else t

        def pairs(part: Tensor) -> list[Tensor]:
            return [as_pair(c) for c in rule(like(part, z))]

        def join(cs: list[Tensor]) -> list[Tensor]:
            return [like(c, x) for c, x in zip(cs, xs, strict=True)]

        return BoundRule(pairs), join, as_pair(g), as_pair(z), [*map(as_pair, xs)]

    def call_rule(
        self, g: Tensor, z: Tensor, xs: Sequence[Tensor], args: tuple, kwargs: dict[str, Any]
    ) -> Sequence[Tensor]:
        """The rule's cotangents before rescaling.  Raises FxlrpError if their shapes are not those of xs."""
        args, kwargs = unfolded(self.op, args, kwargs)
        cotangents = self._checked(self.rule.fn(g, z, *args, **kwargs, **self.keywords), g, z, xs)
        shapes = [tuple(c.shape) for c in cotangents]
        if shapes != [tuple(x.shape) for x in xs]:
            raise FxlrpError(
                f"Rule {self!r} returned cotangents of shapes {shapes} for arguments of shapes "
                f"{[tuple(x.shape) for x in xs]}; it must return one like each argument it is registered for."
            )
        return cotangents

    def _checked(self, out: Any, g: Tensor, z: Tensor, xs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """A rule's return value as one g for each input.  Raises FxlrpError for a user's rule that returned nothing,
        NaN, or only zeros for non-zero relevance; to give an input nothing, a rule returns None for it."""
        cotangents = (out,) if isinstance(out, Tensor) else out if out is None else tuple(out)
        if getattr(self.rule.fn, "__module__", "").startswith("fxlrp.") and cotangents is not None:
            return cotangents
        wrong = None
        if cotangents is None:
            wrong = "nothing"
        elif type(g) is Tensor and _fits(cotangents, xs):
            pairs = [(c, x) for c, x in zip(cotangents, xs, strict=True) if c is not None]
            if any(_any(c.isnan()) for c, _ in pairs) and not any(_any(t.isnan()) for t in (g, z, *xs)):
                wrong = "NaN"
            elif pairs and _any(relevance(z, g, True)) and not any(_any(relevance(x, c, True)) for c, x in pairs):
                wrong = "no relevance at all, of some that came"
        if wrong or cotangents is None:
            raise FxlrpError(
                f"Rule {self!r} of {getattr(self.op, '__name__', self.op)} returned {wrong}; it must return a "
                "cotangent for each argument that it gives relevance to, and None for one that gets nothing."
            )
        if len(cotangents) != len(xs):
            return cotangents
        return tuple(torch.zeros_like(x) if c is None else c for c, x in zip(cotangents, xs, strict=True))


class _ByRule(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, replaced: ByRule, leaves: list, spec: pytree.TreeSpec, places: list[int], *tensors: Tensor
    ) -> Tensor:
        args, kwargs = pytree.tree_unflatten(leaves, spec)
        z = replaced.op(*args, **kwargs)
        ctx.save_for_backward(z, *tensors)
        ctx.replaced, ctx.spec, ctx.places = replaced, spec, places
        ctx.leaves = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        ctx.cast = cast_by_autocast(z)
        return z

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple:
        replaced: ByRule = ctx.replaced
        z, *tensors = ctx.saved_tensors
        leaves = list(ctx.leaves)
        for i, t in zip(ctx.places, tensors, strict=True):
            leaves[i] = as_the_op_was_run(t, ctx.cast)
        args, kwargs = pytree.tree_unflatten(leaves, ctx.spec)
        cotangents = replaced.propagate(g, z, [leaves[i] for i in replaced.argnums], args, kwargs)
        grads = dict(zip(replaced.argnums, cotangents, strict=True))
        return None, None, None, None, *(grads.get(i) for i in ctx.places)


def cast_by_autocast(z: Tensor) -> torch.dtype | None:
    """The dtype that an op ran in, if autocast chose it."""
    return z.dtype if torch.is_autocast_enabled(z.device.type) else None


def as_the_op_was_run(t: Tensor, dtype: torch.dtype | None) -> Tensor:
    """A tensor in the dtype that autocast ran the op in."""
    return t.to(dtype) if dtype is not None and t.is_floating_point() else t


def _fits(cs: Sequence[Tensor | None], xs: Sequence[Tensor]) -> bool:
    return len(cs) == len(xs) and all(c is None or c.shape == x.shape for c, x in zip(cs, xs, strict=True))


def _any(t: Tensor) -> bool:
    return bool(t.any())


class ByDerivative(ReplacedOp):
    """An op that keeps its own backward pass, applied to the cotangent that `entry` makes of g."""

    def __init__(self, op: Callable, entry: Derivative, book: str) -> None:
        self.entry = entry
        super().__init__(op, entry.name, book, entry)

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        return _Adjustment.apply(self.entry, self.op(*args, **kwargs))


class _Adjustment(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, entry: Derivative, z: Tensor) -> Tensor:
        ctx.entry = entry
        ctx.save_for_backward(z)
        return z.view_as(z)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple:
        (z,) = ctx.saved_tensors
        return None, ctx.entry.adjust(g, z, **dict(ctx.entry.parameters))


class ByScaledDerivative(ReplacedOp):
    """An op that keeps its own backward pass, whose result for each leaf in `argnums` is multiplied by the entry's
    factor."""

    def __init__(self, op: Callable, entry: ScaledDerivative, argnums: tuple[int, ...], book: str) -> None:
        self.factors = tuple(zip(argnums, entry.factors, strict=bool(entry.factors)))
        super().__init__(op, entry.name, book, self.factors)

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        leaves, spec = pytree.tree_flatten((args, kwargs))
        most = max((factor for _, factor in self.factors), default=1)
        for i, factor in self.factors:
            leaves[i] = _Scaling.apply(leaves[i], factor / most) if factor < most else leaves[i]
        args, kwargs = pytree.tree_unflatten(leaves, spec)
        z = self.op(*args, **kwargs)
        return _Scaling.apply(z, most) if most < 1 else z


class _Scaling(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple:
        return g * ctx.factor, None


@dataclass(frozen=True)
class Item:
    """One output of an op with several outputs, as an op of its own."""

    op: Callable
    index: int

    @property
    def __name__(self) -> str:
        return f"{getattr(self.op, '__name__', self.op)}_{self.index}".replace(".", "_")

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.op(*args, **kwargs)[self.index]


def readout(x: Tensor) -> Tensor:
    """The same values as a leaf, where the relevance pass ends and relevance is read."""
    return x.detach().requires_grad_()


def constant(x: Tensor) -> Tensor:
    """The same values, detached: an input that gets no relevance."""
    return x.detach()
