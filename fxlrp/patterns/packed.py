"""Packed sequences, of lengths that are known → the steps they are made of.

Graphs with them are recorded for the values of one call, lengths included (see `fxlrp.capture`).
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._decomp import decomposition_table

from fxlrp.patterns.emit import emit
from fxlrp.patterns.take_apart import inline, trace

aten = torch.ops.aten
LAYERS = tuple(getattr(aten, name).data for name in ("lstm", "gru", "rnn_tanh", "rnn_relu"))
PACK, PAD = aten._pack_padded_sequence.default, aten._pad_packed_sequence.default


def spell_packed(gm: fx.GraphModule, inputs: Sequence[Tensor]) -> None:
    """Write out every packed sequence of the graph, as long as they are in its example inputs."""
    nodes = [n for n in gm.graph.nodes if n.target in (*LAYERS, PACK, PAD)]
    if not nodes:
        return
    sizes = _sizes(gm, inputs, nodes)
    for node in nodes:
        with gm.graph.inserting_before(node):
            if node.target is PACK:
                _pack(gm, node, sizes[node])
            elif node.target is PAD:
                _pad(gm, node, sizes[node])
            else:
                _steps(gm, node, sizes[node])
    gm.graph.eliminate_dead_code()
    gm.recompile()


def _sizes(gm: fx.GraphModule, inputs: Sequence[Tensor], nodes: Sequence[fx.Node]) -> dict[fx.Node, list[int]]:
    """How many sequences there are at each step, for every node of packed ones."""
    found: dict[fx.Node, list[int]] = {}

    class Looking(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            if n in nodes:
                found[n] = (value[1] if n.target is PACK else self.env[n.args[1]]).tolist()
            return value

    with torch.no_grad():
        Looking(gm).run(*(t.clone() for t in inputs))
    return found


def _places(gm: fx.GraphModule, node: fx.Node, sizes: list[int]) -> list[fx.Node]:
    """Of each row of packed data, the step and the sequence, in the order of the axes of what is padded."""
    steps = torch.tensor([t for t, n in enumerate(sizes) for _ in range(n)])
    sequences = torch.tensor([b for n in sizes for b in range(n)])
    batch_first = node.args[2]
    names = [f"_{node.name}_{name}" for name in ("rows", "columns")]
    for name, value in zip(names, (sequences, steps) if batch_first else (steps, sequences), strict=True):
        gm.register_buffer(name, value.to(node.args[0].meta["val"].device), persistent=False)
    return [_constant(gm, node, name) for name in names]


def _constant(gm: fx.GraphModule, node: fx.Node, name: str) -> fx.Node:
    constant = gm.graph.get_attr(name)
    mode = node.args[0].meta["val"].fake_mode
    constant.meta["val"] = mode.from_tensor(getattr(gm, name), static_shapes=True)
    return constant


def _pack(gm: fx.GraphModule, node: fx.Node, sizes: list[int]) -> None:
    data = emit(gm.graph, node, aten.index.Tensor, node.args[0], _places(gm, node, sizes))
    for item in [u for u in node.users if u.args[1] == 0]:
        item.replace_all_uses_with(data)
        gm.graph.erase_node(item)


def _pad(gm: fx.GraphModule, node: fx.Node, sizes: list[int]) -> None:
    padded = next(item for item in node.users if item.args[1] == 0)
    data, shape = node.args[0], [int(n) for n in padded.meta["val"].shape]
    empty = emit(gm.graph, node, aten.new_full.default, data, shape, node.args[3])
    value = emit(gm.graph, node, aten.index_put.default, empty, _places(gm, node, sizes), data)
    padded.replace_all_uses_with(value)
    gm.graph.erase_node(padded)


def _steps(gm: fx.GraphModule, node: fx.Node, sizes: list[int]) -> None:
    """What torch composes a layer of, step by step, but for the product with the input, which is one of all steps as in
    a layer that is not packed: a rule may bring what it gives to a mass, product by product."""
    data, _, *rest = node.args
    node.args = (data, sizes, *rest)
    before = set(gm.graph.nodes)
    inline(node, trace(node, decomposition_table[node.target]))
    for split in gm.graph.find_nodes(op="call_function", target=aten.split_with_sizes.default):
        if split in before:
            continue
        products: dict[tuple, dict[int, fx.Node]] = {}
        for piece in split.users:
            for user in piece.users:
                if user.target is aten.linear.default and user.args[0] is piece:
                    products.setdefault(user.args[1:], {})[piece.args[1]] = user
        for weights, parts in products.items():
            if len(parts) == len(split.args[1]) > 1:
                _product_of_all(gm.graph, split, weights, parts)


def _product_of_all(graph: fx.Graph, split: fx.Node, weights: tuple, parts: dict[int, fx.Node]) -> None:
    first = next(n for n in graph.nodes if n in parts.values())
    with graph.inserting_before(first):
        whole = emit(graph, first, aten.linear.default, split.args[0], *weights)
        pieces = emit(graph, split, aten.split_with_sizes.default, whole, *split.args[1:])
        items = {i: emit(graph, part, operator.getitem, pieces, i) for i, part in parts.items()}
    for i, part in parts.items():
        part.replace_all_uses_with(items[i])
        graph.erase_node(part)
