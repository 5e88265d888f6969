"""Sums and products of complex numbers → those of their real and imaginary parts, which the rules speak of."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from fxlrp.patterns.emit import replace

aten = torch.ops.aten
PRODUCTS = (aten.mul.Tensor, aten.matmul.default, aten.mm.default, aten.bmm.default)
SUMS = (aten.add.Tensor, aten.sub.Tensor)


def split_complex(gm: fx.GraphModule) -> None:
    """(a + ib)(c + id) → (ac − bd) + i(ad + bc), and so for every active sum and product with complex operands."""
    for node in list(gm.graph.nodes):
        if node.meta["active"] and node.target in (*PRODUCTS, *SUMS) and node.meta["val"].is_complex():
            write = _product if node.target in PRODUCTS else _sum
            if all(isinstance(a, fx.Node) for a in node.args):
                replace(node, lambda call, *args, op=node.target, write=write, **kw: write(call, op, *args, **kw))


def _parts(call: Any, t: fx.Node) -> tuple[fx.Node, fx.Node | None]:
    return (call(aten.real.default, t), call(aten.imag.default, t)) if t.meta["val"].is_complex() else (t, None)


def _product(call: Any, op: Any, x: fx.Node, y: fx.Node) -> fx.Node:
    (a, b), (c, d) = _parts(call, x), _parts(call, y)
    if b is None or d is None:  # one of them is real
        real, imaginary = call(op, a, c), call(op, a, d) if b is None else call(op, b, c)
    else:
        real = call(aten.sub.Tensor, call(op, a, c), call(op, b, d))
        imaginary = call(aten.add.Tensor, call(op, a, d), call(op, b, c))
    return call(aten.complex.default, real, imaginary)


def _sum(call: Any, op: Any, x: fx.Node, y: fx.Node, **alpha: Any) -> fx.Node:
    (a, b), (c, d) = _parts(call, x), _parts(call, y)
    real = call(op, a, c, **alpha)
    imaginary = b if d is None else call(op, b if b is not None else call(aten.zeros_like.default, a), d, **alpha)
    return call(aten.complex.default, real, imaginary)
