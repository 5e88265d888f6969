"""Explains ops of which only the values are known: functions with a custom backward, ops of a library.

Calls them to find out what they do to the one tensor that carries relevance.  Weighted products (whose weights may be
packed in 4 bits, or rounded) are explained as products, whose weights come from the derivative or, without one, from
values; entrywise functions are explained as activations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from fxlrp.capture.confine import without_warnings
from fxlrp.capture.functions import Entrywise, OwnBackward, Stepwise
from fxlrp.emit import store
from fxlrp.errors import FxlrpError
from fxlrp.nodes import calls_at, target_of
from fxlrp.ops import NOTHING, about
from fxlrp.reports.report import row_of
from fxlrp.rules.registry import Structural
from fxlrp.rules.values import nearly, stands_for

if TYPE_CHECKING:
    from fxlrp.graph.facts import Facts

aten = torch.ops.aten
KNOWN = ("aten", "prims", "prim")
LARGEST = 2**14
"""The maximum number of rows or columns of a product that is tested for."""
ROUNDED = 0.05
"""The maximum deviation of a product's values from those by its weights, relative to the largest value."""


def explain_opaque(gm: fx.GraphModule, facts: Facts) -> bool:
    """Replaces opaque ops by what they are found to be, and leaves the rest as they are.  Raises FxlrpError if one of
    the rest has no derivative."""
    opaque = [n for n in gm.graph.nodes if facts.carries(n) and _is_opaque(n, facts)]
    if not opaque:
        return False
    calls = calls_at(gm, opaque, facts.captured.inputs)
    for node in opaque:
        active = [n for n in node.all_input_nodes if facts.carries(n)]
        if len(active) == 1 and isinstance(node.meta["val"], Tensor) and node.meta["val"].is_floating_point():
            (x,) = active
            with without_warnings():  # torch warns of ops without a derivative
                _explain(facts, node, x, Seen(_function_of(node, x, *calls[node]), _value(node, x, *calls[node])))
    gm.recompile()
    return True


def _is_opaque(node: fx.Node, facts: Facts) -> bool:
    if isinstance(node.target, OwnBackward):
        return True
    library = isinstance(node.target, torch._ops.OpOverload) and node.target.namespace not in KNOWN
    return library and about(node.target) is NOTHING and isinstance(facts.entry(node), Structural | None)


def _function_of(node: fx.Node, x: fx.Node, args: tuple, kwargs: dict) -> Callable[[Tensor], Tensor]:
    """The op as a function of x alone."""
    are_x = [a is x for a in node.args]
    return lambda t: target_of(node)(*(t if is_x else a for is_x, a in zip(are_x, args, strict=True)), **kwargs)


def _value(node: fx.Node, x: fx.Node, args: tuple, kwargs: dict) -> Tensor:
    return next(a for n, a in zip(node.args, args, strict=True) if n is x)


@dataclass
class Seen:
    """An opaque function of one tensor, and an example of the tensor."""

    f: Callable[[Tensor], Tensor]
    x: Tensor
    derivable: bool = True  # until `pull` finds no derivative

    def pull(self, x: Tensor, g: Tensor) -> Tensor | None:
        """J_f(x)ᵀ g; None if f has no derivative."""
        with torch.enable_grad():
            leaf = x.detach().clone().requires_grad_()
            try:
                z = self.f(leaf)
                (d,) = torch.autograd.grad(z, leaf, g.to(z), allow_unused=True)
            except (RuntimeError, NotImplementedError):  # no derivative, or none that is implemented
                d = None
        self.derivable &= d is not None
        return None if d is None or not d.any() else d

    def entrywise(self) -> bool:
        """Whether each entry of the value depends only on the same entry of x."""
        z = self.f(self.x)
        if z.shape != self.x.shape:
            return False
        changed = torch.rand(self.x.shape, generator=torch.Generator().manual_seed(0)).to(self.x.device) < 0.5
        other = self.f(torch.where(changed, self.x.flip(0, -1), self.x))
        return bool(torch.equal(torch.where(changed, 0, other), torch.where(changed, 0, z)))

    def straight_through(self) -> bool:
        """Whether its derivative is that of the identity."""
        g = torch.rand(self.x.shape, generator=torch.Generator().manual_seed(0)).to(self.x)
        z = self.f(self.x)
        d = self.pull(self.x, g) if z.shape == self.x.shape else None
        return d is not None and torch.allclose(d, g)

    def smooth(self) -> bool:
        """Whether a small step changes its value as its derivative predicts."""
        step = 1e-3 * self.x.abs().max() * torch.ones_like(self.x)
        moved, slope = self.f(self.x + step) - self.f(self.x), self.pull(self.x, step)
        return slope is not None and torch.allclose(moved, slope, rtol=0.1, atol=0.1 * float(slope.abs().max()))

    def product(self) -> tuple[Tensor, Tensor] | None:
        """The weight and bias if it is, up to rounding, a linear function of the last axis; else None."""
        z = self.f(self.x)
        columns, rows = self.x.shape[-1], z.shape[-1] if z.ndim else 0
        if z.shape[:-1] != self.x.shape[:-1] or not rows or max(rows, columns) > LARGEST:
            return None
        try:
            return self._product(rows, columns)
        except RuntimeError:  # it refuses tensors of another shape
            return None

    def _product(self, rows: int, columns: int) -> tuple[Tensor, Tensor] | None:
        def shaped(t: Tensor) -> Tensor:
            return t.view(*[1] * (self.x.ndim - 2), *t.shape).to(self.x)

        random = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))
        weight = self.pull(shaped(random), shaped(torch.eye(rows)))
        bias = self.f(shaped(torch.zeros(2, columns))).view(2, rows)[0]
        if weight is None:
            weight = (self.f(shaped(torch.eye(columns))).view(columns, rows) - bias).t().contiguous()
        weight, bias = weight.detach().view(rows, columns), bias.detach()
        values = self.f(shaped(random)).view(rows, rows).detach()
        deviation = (values - torch.nn.functional.linear(shaped(random).view(rows, columns), weight, bias)).abs().max()
        same = bool(weight.any()) and bool(deviation <= ROUNDED * (values - bias).abs().max())
        return (weight, bias) if same else None


def _explain(facts: Facts, node: fx.Node, x: fx.Node, seen: Seen) -> None:
    seen.x = seen.x.detach()
    with torch.no_grad():
        entrywise = seen.x.ndim > 0 and seen.entrywise()
        has_own_backward = isinstance(node.target, OwnBackward)
        is_straight_through = has_own_backward and seen.straight_through()
        derivative = seen.pull(seen.x, torch.ones_like(seen.f(seen.x))) is not None
        product = None if entrywise or is_straight_through or seen.x.ndim < 2 else seen.product()
    if is_straight_through or (entrywise and not derivative):
        facts.replace_uses(node, lambda call: call(stands_for, x, node))
        _without_gradient(facts, node, x)
    elif product is not None:
        linear = (aten.linear.default, x, *(_stored(node, t) for t in product))
        facts.replace_uses(node, lambda call: call(nearly, call(*linear), node))
        _without_gradient(facts, node, x)
    elif not seen.derivable:
        row = row_of(node)
        raise FxlrpError(
            f"{row.op} at {row.source or row.module or node.name} has no derivative, and is no product with weights "
            "nor an activation: give it a rule, @fxlrp.rule(op), or a derivative, register_autograd."
        )
    elif entrywise and has_own_backward:
        with torch.no_grad():
            node.target = target_of(node).as_kind(Entrywise if seen.smooth() else Stepwise)


def _without_gradient(facts: Facts, node: fx.Node, x: fx.Node) -> None:
    """Gives an op of which only the values count its input without gradient, which some libraries' kernels refuse."""
    with node.graph.inserting_before(node):
        node.replace_input_with(x, facts.emit(node, aten.detach.default, x))


def _stored(node: fx.Node, t: Tensor) -> fx.Node:
    """Stores a tensor as a buffer of the graph; returns its node."""
    gm: Any = node.graph.owning_module
    return store(node, f"_found_{len(list(gm.named_buffers()))}", t, node.meta["val"].fake_mode)
