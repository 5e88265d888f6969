"""Unrolls recurrent layers into their steps: traces one step per shape of operands, and inserts it for every step.

    LSTM:  (i, f, g, o) = W x_t + b + U h + b',   c ← σ(f) c + σ(i) tanh(g),   h ← σ(o) tanh(c), projected if asked
    GRU:   (r, z, n) = W x_t + b,  (r', z', n') = U h + b',   n = tanh(n + σ(r + r') n'),   h ← n + σ(z + z') (h - n)
    RNN:   h ← tanh(W x_t + b + U h + b'), or relu

(the formulas of torch.nn's documentation).  W x_t + b is one product for all steps.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from fxlrp.emit import emit, write_in
from fxlrp.nodes import args_of, target_of

aten = torch.ops.aten


def lstm(
    x: Tensor, h: Tensor, c: Tensor, u: Tensor, b: Tensor | None = None, projection: Tensor | None = None
) -> tuple[Tensor, ...]:
    """One step; x is W x_t + b."""
    i, f, g, o = (torch.nn.functional.linear(h, u, b) + x).chunk(4, -1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    h = o.sigmoid() * c.tanh()
    return (h if projection is None else torch.nn.functional.linear(h, projection)), c


def gru(x: Tensor, h: Tensor, u: Tensor, b: Tensor | None = None) -> tuple[Tensor]:
    """One step; x is W x_t + b."""
    (r, z, n), (hr, hz, hn) = x.chunk(3, -1), torch.nn.functional.linear(h, u, b).chunk(3, -1)
    n = (n + hn * (hr + r).sigmoid()).tanh()
    return ((h - n) * (hz + z).sigmoid() + n,)


def rnn(f: Callable[[Tensor], Tensor]) -> Callable[..., tuple[Tensor]]:
    """The step of a layer whose only activation is f; x is W x_t + b."""
    return lambda x, h, u, b=None: (f(torch.nn.functional.linear(h, u, b) + x),)


CELLS: dict[torch._ops.OpOverload, Callable[..., tuple[Tensor, ...]]] = {
    getattr(packet, kind): cell
    for packet, cell in (
        (aten.lstm, lstm),
        (aten.gru, gru),
        (aten.rnn_tanh, rnn(torch.tanh)),
        (aten.rnn_relu, rnn(torch.relu)),
    )
    for kind in ("input", "data")
}
"""The step of each recurrent layer of torch, by its op on padded (`input`) or packed (`data`) sequences."""


@dataclass
class _Steps:
    """Inserts the steps of a node before it; traces one step per shape of operands."""

    node: fx.Node
    sizes: Sequence[int] | None  # the number of sequences at each step, if they are packed
    traced: dict[tuple, fx.Graph] = field(default_factory=dict)

    def write(self, op: Callable, *args: Any) -> fx.Node:
        return emit(self.node.graph, self.node, op, *args)

    def split(self, x: fx.Node, op: Callable, *args: Any) -> list[fx.Node]:
        """The tensors that an op splits x into."""
        several = self.write(op, x, *args)
        return [self.write(operator.getitem, several, i) for i in range(len(several.meta["val"]))]

    def cell(self, *operands: fx.Node | None) -> list[fx.Node]:
        """Inserts one step; returns the new states."""
        nodes = [n for n in operands if n is not None]
        kind = tuple(None if n is None else tuple(map(str, n.meta["val"].shape)) for n in operands)
        if kind not in self.traced:

            def call(*values: Tensor) -> tuple[Tensor, ...]:
                value_of = dict(zip(nodes, values, strict=True))
                return CELLS[target_of(self.node)](*(None if n is None else value_of[n] for n in operands))

            values = [n.meta["val"] for n in nodes]
            with values[0].fake_mode:
                self.traced[kind] = make_fx(call, pre_dispatch=True)(*values).graph
        return write_in(self.node, self.traced[kind], nodes)

    def layer(self, x: fx.Node, initial: list[fx.Node], weights: list[fx.Node], biases: bool, back: bool) -> Any:
        """Inserts one layer in one direction; returns its outputs and its last states."""
        w, u, *more = weights
        b, *rest = more if biases else (None, None, *more)
        product = self.write(aten.linear.default, x, w, b)
        if self.sizes is None:
            steps = self.split(product, aten.unbind.int, 0)
        else:
            steps = self.split(product, aten.split_with_sizes.default, list(self.sizes))
        states, ended = initial, list[list[fx.Node]]()
        if back and self.sizes is not None:  # backwards, the longest sequences start first
            states = self.rows(states, 0, self.sizes[-1])
        outputs: list[Any] = [None] * len(steps)
        for t in reversed(range(len(steps))) if back else range(len(steps)):
            if self.sizes is not None:
                count, next_count = states[0].meta["val"].shape[0], self.sizes[t]
                if next_count < count:
                    ended.append(self.rows(states, next_count, count))
                    states = self.rows(states, 0, next_count)
                elif next_count > count:
                    states = self.beside([states, self.rows(initial, count, next_count)])
            states = self.cell(steps[t], *states, u, *rest)
            outputs[t] = states[0]
        joined = self.write(aten.stack.default if self.sizes is None else aten.cat.default, outputs)
        return joined, self.beside([states, *reversed(ended)]) if ended else states

    def rows(self, states: list[fx.Node], start: int, end: int) -> list[fx.Node]:
        return [self.write(aten.slice.Tensor, s, 0, start, end) for s in states]

    def beside(self, several: list[list[fx.Node]]) -> list[fx.Node]:
        return [self.write(aten.cat.default, list(parts)) for parts in zip(*several, strict=True)]


def write_steps(node: fx.Node, sizes: Sequence[int] | None = None) -> None:
    """Replaces a recurrent layer by its steps.

    sizes: the number of sequences at each step, if they are packed.
    """
    args = args_of(node)
    args = args if sizes is None else (args[0], *args[2:], False)
    x, hx, weights, biases, layers, dropout, train, bidirectional, batch_first = args
    with node.graph.inserting_before(node):
        steps = _Steps(node, sizes)
        initial = [steps.split(s, aten.unbind.int, 0) for s in (hx if isinstance(hx, list | tuple) else [hx])]
        x = steps.write(aten.transpose.int, x, 0, 1) if batch_first else x
        last: list[list[fx.Node]] = []
        parts = iter(_parts(weights, layers * (1 + bidirectional)))
        for i in range(layers):
            directions = []
            for back in (False, True)[: 1 + bidirectional]:
                states = [s[len(last)] for s in initial]
                out, states = steps.layer(x, states, next(parts), biases, back)
                directions.append(out)
                last.append(states)
            x = steps.write(aten.cat.default, directions, -1) if bidirectional else directions[0]
            if train and dropout and i < layers - 1:
                x = steps.write(aten.dropout.default, x, dropout, True)
        x = steps.write(aten.transpose.int, x, 0, 1) if batch_first else x
        ends = [steps.write(aten.stack.default, list(s)) for s in zip(*last, strict=True)]
        for item in [u for u in node.users if u.target is operator.getitem]:
            item.replace_all_uses_with((x, *ends)[args_of(item)[1]])
            node.graph.erase_node(item)
    node.graph.erase_node(node)


def _parts(weights: Sequence[fx.Node], count: int) -> Iterator[list[fx.Node]]:
    """The weights of each layer and direction."""
    each = len(weights) // count
    return (list(weights[i : i + each]) for i in range(0, len(weights), each))
