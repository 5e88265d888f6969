"""Fast replaced ops: with a kernel in the place of their rule, and with what is known of their place in a graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fxlrp.engine.replaced import ByRule, as_the_op_was_run, cast_by_autocast
from fxlrp.fast.contributions import Contributions
from fxlrp.fast.kernels import Kernel
from fxlrp.fast.masses import keep_mass, keep_mass_of_one_side, share, size_of
from fxlrp.fast.memory import borrow, is_eager, sample_dot
from fxlrp.rules.folded import FoldedProduct, unfolded
from fxlrp.rules.normalise import MASS
from fxlrp.rules.per_sample import sample_count


@dataclass(frozen=True)
class InGraph:
    """Facts about an op's place in a graph.

    one_sided: whether all relevance that comes here is ≥ 0.
    rectified: whether a ReLU follows, whose value is this op's.
    has_handle: whether it returns (z, handle), where the handle's cotangent is the mass of relevance at z [B].
    any_scale: which of `argnums`, by their order, come from an op with a handle and go nowhere else, so that their g
        may have any scale.
    recompute: whether its value is computed again in the relevance pass instead of kept.
    recomputed: the leaves that are computed again instead of kept, and by which op.
    """

    one_sided: bool = False
    rectified: bool = False
    has_handle: bool = False
    any_scale: tuple[int, ...] = ()
    recompute: bool = False
    recomputed: tuple[tuple[int, Callable], ...] = ()


class Fast(ByRule):
    """An op whose backward pass is a rule, by its kernel if it has one.

    nonnegs: whether each argument that takes relevance is known to be ≥ 0.
    here: facts about its place in the graph.
    """

    def __init__(
        self, plain: ByRule, kernel: Kernel | None, nonnegs: tuple[bool, ...], here: InGraph | None = None
    ) -> None:
        self.plain, self.kernel, self.nonnegs, self.here = plain, kernel, nonnegs, here or InGraph()
        made = (plain.rule, plain.__name__, plain.__module__, plain.normalise, plain.argnums, plain.where)
        super().__init__(plain.op, *made, kernel, nonnegs, self.here)
        available = {"op": self.product, "nonneg": nonnegs[:1] == (True,), "nonnegs": nonnegs}
        self.kernel_takes = {keyword: value for keyword, value in available.items() if kernel and kernel.wants(keyword)}

    def knowing(self, **facts: Any) -> Fast:
        """A copy that knows more about its place in the graph."""
        return Fast(self.plain, self.kernel, self.nonnegs, replace(self.here, **facts))

    @property
    def contributions(self) -> Callable[..., Contributions] | None:
        """The contributions that the rule shares relevance by, if it does."""
        return self.kernel.contributions if self.kernel else None

    @property
    def keeps_sign(self) -> bool:
        """Whether relevance that is ≥ 0 stays so."""
        return self.kernel is not None and self.kernel.keeps_sign

    def __call__(
        self, *args: Any, handles: Sequence[Tensor | None] = (), sources: Sequence[Any] = (), **kwargs: Any
    ) -> Any:
        """The op's value, and its handle if it has one.

        handles: those of the tensors of `argnums` that have one.
        sources: the (args, kwargs) that the leaves in `recomputed` are computed from.
        """
        leaves, spec, places, tensors = self.flattened(args, kwargs)
        with_handle = [h is not None for h in handles]
        more, made_of = pytree.tree_flatten(sources)
        return _Fast.apply(self, leaves, spec, places, with_handle, made_of, len(more), *more, *handles, *tensors)

    def propagate(
        self, g: Tensor, z: Tensor, xs: Sequence[Tensor], args: tuple, kwargs: dict[str, Any]
    ) -> Sequence[Tensor | None]:
        if self.normalise is MASS and self.contributions and not _complex(z, *xs):
            return keep_mass(self._contributions(z, args, kwargs), g, z, self.where, self.here.rectified)
        return super().propagate(g, z, xs, args, kwargs)

    def propagate_mass(
        self, g: Tensor, z: Tensor, xs: Sequence[Tensor], args: tuple, kwargs: dict[str, Any], mass: Tensor | None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """`propagate` of relevance that is ≥ 0 and whose mass may be known. Also returns the mass at each of xs."""
        s = share(g, z, self.here.rectified)
        if mass is None:  # before anything is given, which may write to s
            mass = sample_dot(size_of(z, self.here.rectified, self.where.masked), s, self.where.output)
        by = self.contributions and self._contributions(z, args, kwargs)
        raw = by.give(s) if by else self.call_rule(g, z, xs, args, kwargs)
        return keep_mass_of_one_side(raw, mass, xs, self.where, self.here.any_scale)

    def call_rule(
        self, g: Tensor, z: Tensor, xs: Sequence[Tensor], args: tuple, kwargs: dict[str, Any]
    ) -> Sequence[Tensor]:
        if self.kernel is None or _complex(z, *xs):
            return super().call_rule(g, z, xs, args, kwargs)
        if self.contributions:
            return self._contributions(z, args, kwargs).rule(g, z)
        if self.kernel.rule is None:
            return super().call_rule(g, z, xs, args, kwargs)
        args, kwargs = _unfolded(self.op, args, kwargs)
        cotangents = self.kernel.rule(g, z, *args, **kwargs, **self.kernel_takes)
        return (cotangents,) if isinstance(cotangents, Tensor) else cotangents

    def _contributions(self, z: Tensor, args: tuple, kwargs: dict[str, Any]) -> Contributions:
        args, kwargs = _unfolded(self.op, args, kwargs)
        assert self.contributions is not None
        return self.contributions(z, *args, **kwargs, **self.kernel_takes)


def _complex(*ts: Tensor) -> bool:
    return any(t.is_complex() for t in ts)


def _unfolded(op: Callable, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """As `unfolded`, with the scaled weight in scratch memory."""
    return unfolded(op, args, kwargs, lambda w: borrow("weight", w))


class _Fast(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        fast: Fast,
        leaves: list,
        spec: pytree.TreeSpec,
        places: list[int],
        with_handle: list[bool],
        made_of: pytree.TreeSpec,
        count: int,
        *tensors: Any,
    ) -> Any:
        sources, tensors = tensors[:count], tensors[count + len(with_handle) :]
        args, kwargs = pytree.tree_unflatten(leaves, spec)
        z = fast.op(*args, **kwargs)
        folded = isinstance(fast.op, FoldedProduct)  # then a tensor of the call is the value
        if fast.here.rectified:
            z = z.relu_() if is_eager(z) and not folded else z.relu()
        skip = {i for i, _ in fast.here.recomputed} | {
            i for i, t in enumerate(leaves) if folded and t is kwargs["value"]
        }
        kept = [None if i in skip else t for i, t in zip(places, tensors, strict=True)]
        ctx.save_for_backward(
            None if fast.here.recompute else z, *kept, *(t if isinstance(t, Tensor) else None for t in sources)
        )
        ctx.fast, ctx.spec, ctx.places, ctx.with_handle = fast, spec, places, with_handle
        ctx.made_of, ctx.sources = made_of, [None if isinstance(t, Tensor) else t for t in sources]
        ctx.leaves = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        ctx.cast = cast_by_autocast(z)
        return (z, z.new_empty(sample_count(z, fast.where.output))) if fast.here.has_handle else z

    @staticmethod
    def backward(ctx: Any, g: Tensor, mass: Tensor | None = None) -> tuple:
        fast: Fast = ctx.fast
        z, *saved = ctx.saved_tensors
        tensors, sources = saved[: len(ctx.places)], saved[len(ctx.places) :]
        leaves = list(ctx.leaves)
        for i, t in zip(ctx.places, tensors, strict=True):
            leaves[i] = t if t is None else as_the_op_was_run(t, ctx.cast)
        made_of = [c if t is None else t for c, t in zip(ctx.sources, sources, strict=True)]
        for (i, op), (args, kwargs) in zip(
            fast.here.recomputed, pytree.tree_unflatten(made_of, ctx.made_of), strict=True
        ):
            leaves[i] = op(*args, **kwargs)
        args, kwargs = pytree.tree_unflatten(leaves, ctx.spec)
        z = fast.op(*args, **kwargs) if fast.here.recompute else z
        xs = [leaves[i] for i in fast.argnums]
        masses: Sequence[Tensor | None] = [None] * len(xs)
        cotangents: Sequence[Tensor | None]
        if fast.here.one_sided and not _complex(z, *xs):
            cotangents, masses = fast.propagate_mass(g, z, xs, args, kwargs, mass)
        else:
            cotangents = fast.propagate(g, z, xs, args, kwargs)
        grads = dict(zip(fast.argnums, cotangents, strict=True))
        at_handles = [m if asked else None for m, asked in zip(masses, ctx.with_handle, strict=False)]
        return *[None] * (7 + len(sources)), *at_handles, *(grads.get(i) for i in ctx.places)
