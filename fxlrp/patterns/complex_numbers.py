"""Rewrites ops on complex numbers as ops on their real and imaginary parts, which have rules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from fxlrp.emit import Insert
from fxlrp.ops import SUMS, about, of_kind
from fxlrp.rules import passing
from fxlrp.rules.absolute import absolute
from fxlrp.rules.registry import Rule

if TYPE_CHECKING:
    from fxlrp.graph.facts import Facts

aten = torch.ops.aten
PRODUCTS = (
    aten.mul.Tensor,
    aten.linear.default,
    *of_kind("matmul", "convolution"),
)
WRITES = (aten.slice_scatter.default, aten.select_scatter.default)
"""Ops that write into a part of a tensor; they have no derivative for complex numbers."""
KNOWING = (absolute, passing.div, passing.normaliser)
"""Rules that also hold for complex numbers."""


@dataclass(frozen=True)
class OfComplex:
    """An op on complex numbers, to which the op's rules for real numbers do not apply."""

    op: Callable[..., Tensor]

    @property
    def __name__(self) -> str:
        return f"{self.op}_of_complex".replace(".", "_")

    @property
    def tags(self) -> Any:
        return getattr(self.op, "tags", ())

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.op(*args, **kwargs)


def split_complex(gm: fx.GraphModule, facts: Facts) -> bool:
    """Splits active sums and products with complex operands, as (a + ib)(c + id) = (ac − bd) + i(ad + bc), and rewrites
    |a + ib| as the norm of (a, b).  Other ops whose rule is for real numbers only go by their derivative."""
    complex_nodes = [n for n in gm.graph.nodes if facts.carries(n) and any(map(_complex, (n, *n.all_input_nodes)))]
    for node in complex_nodes:
        op, entry = node.target, facts.entry(node)
        if op in PRODUCTS:
            if all(isinstance(a, fx.Node) for a in node.args[:2]):
                facts.replace(node, lambda call, *args, op=op, **kw: _product(call, op, *args, **kw))
        elif op in SUMS:
            facts.replace(node, lambda call, *args, op=op, **kw: _sum(call, op, *args, **kw))
        elif op is aten.rsub.Scalar:
            facts.replace(
                node, lambda call, x, y, alpha=1: _sum(call, aten.sub.Tensor, call(aten.mul.Tensor, x, -alpha), -y)
            )
        elif op is aten.abs.default:
            facts.replace(node, _magnitude)
        elif about(op).kind in ("positive sum", "sum") and _complex(node):
            facts.replace(node, lambda call, *args, op=op, **kw: _apart(call, op, *args, **kw))
        elif isinstance(entry, Rule) and entry.fn not in KNOWING and entry.fn.__module__.startswith("fxlrp."):
            node.target = OfComplex(op)
    return bool(complex_nodes)


def write_apart(gm: fx.GraphModule, facts: Facts) -> bool:
    """Splits writes of complex numbers into a part of a tensor by real and imaginary parts, which have derivatives."""
    writes = [n for n in gm.graph.nodes if n.target in WRITES and facts.carries(n) and _complex(n)]
    for node in writes:
        facts.replace(node, lambda call, *args, op=node.target, **kw: _apart(call, op, *args, **kw))
    return bool(writes)


def _complex(node: object) -> bool:
    value = node.meta.get("val") if isinstance(node, fx.Node) else node
    return value.is_complex() if isinstance(value, Tensor) else isinstance(value, complex)


def _parts(call: Insert, t: Any) -> tuple[Any, Any]:
    """The real part, and the imaginary part or None if t is real."""
    if not _complex(t):
        return t, None
    return (call(aten.real.default, t), call(aten.imag.default, t)) if isinstance(t, fx.Node) else (t.real, t.imag)


def _product(call: Insert, op: Callable, x: fx.Node, y: fx.Node, bias: fx.Node | None = None, *rest: Any) -> fx.Node:
    (a, b), (c, d), (e, f) = _parts(call, x), _parts(call, y), _parts(call, bias)
    with_real, with_imaginary = (() if t is None and not rest else (t, *rest) for t in (e, f))
    plain = (None, *rest) if rest else ()
    if b is None or d is None:  # one factor is real
        real = call(op, a, c, *with_real)
        imaginary = call(op, a, d, *with_imaginary) if b is None else call(op, b, c, *with_imaginary)
    else:
        real = call(aten.sub.Tensor, call(op, a, c, *with_real), call(op, b, d, *plain))
        imaginary = call(aten.add.Tensor, call(op, a, d, *with_imaginary), call(op, b, c, *plain))
    return call(aten.complex.default, real, imaginary)


def _magnitude(call: Insert, z: fx.Node) -> fx.Node:
    pair = call(aten.view_as_real.default, call(aten.resolve_conj.default, z))
    return call(aten.linalg_vector_norm.default, pair, 2, [-1])


def _sum(call: Insert, op: Callable, x: fx.Node | complex, y: fx.Node | complex, alpha: complex = 1) -> fx.Node:
    (a, b), (c, d) = _parts(call, x), _parts(call, y)
    more = {} if alpha == 1 else {"alpha": alpha}
    real = call(op, a, c, **more)
    if d is None:
        imaginary = call(aten.add.Tensor, b, call(aten.zeros_like.default, real))  # in the shape of the sum
    else:
        imaginary = call(op, b if b is not None else call(aten.zeros_like.default, a), d, **more)
    return call(aten.complex.default, real, imaginary)


def _apart(call: Insert, op: Callable, *args: Any, **kwargs: Any) -> fx.Node:
    """Applies an op without parameters to the real parts and to the imaginary parts."""

    def of(part: int) -> fx.Node:
        return call(op, *(_parts(call, a)[part] if _complex(a) else a for a in args), **kwargs)

    return call(aten.complex.default, of(0), of(1))
