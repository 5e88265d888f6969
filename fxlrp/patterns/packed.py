"""Rewrites packed sequences of known lengths as their steps.

Graphs with them are traced for the values of one call, including the lengths (see `fxlrp.capture.model`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from fxlrp.emit import emit, store
from fxlrp.nodes import args_of
from fxlrp.patterns.recurrent import CELLS, write_steps

aten = torch.ops.aten
LAYERS = tuple(op for op in CELLS if op._overloadname == "data")
PACK, PAD = aten._pack_padded_sequence.default, aten._pad_packed_sequence.default


def spell_packed(gm: fx.GraphModule, inputs: Sequence[Tensor]) -> None:
    """Rewrites every packed sequence of the graph, with its lengths in the example inputs."""
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
                write_steps(node, sizes[node])
    gm.graph.eliminate_dead_code()
    gm.recompile()


def _sizes(gm: fx.GraphModule, inputs: Sequence[Tensor], nodes: Sequence[fx.Node]) -> dict[fx.Node, list[int]]:
    """The number of sequences at each step, for every node that packs, pads or takes packed sequences."""
    sizes: dict[fx.Node, list[int]] = {}

    class Looking(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            if n in nodes:
                sizes[n] = (value[1] if n.target is PACK else self.env[args_of(n)[1]]).tolist()
            return value

    with torch.no_grad():
        Looking(gm).run(*(t.clone() for t in inputs))
    return sizes


def _places(node: fx.Node, sizes: list[int]) -> list[fx.Node]:
    """The step and the sequence of each row of packed data, in the order of the padded tensor's axes."""
    steps = torch.tensor([t for t, n in enumerate(sizes) for _ in range(n)])
    sequences = torch.tensor([b for n in sizes for b in range(n)])
    batch_first = node.args[2]
    data = args_of(node)[0].meta["val"]
    pair = (sequences, steps) if batch_first else (steps, sequences)
    return [
        store(node, f"_{node.name}_{name}", value.to(data.device), data.fake_mode)
        for name, value in zip(("rows", "columns"), pair, strict=True)
    ]


def _pack(gm: fx.GraphModule, node: fx.Node, sizes: list[int]) -> None:
    data = emit(gm.graph, node, aten.index.Tensor, node.args[0], _places(node, sizes))
    for item in [u for u in node.users if u.args[1] == 0]:
        item.replace_all_uses_with(data)
        gm.graph.erase_node(item)


def _pad(gm: fx.GraphModule, node: fx.Node, sizes: list[int]) -> None:
    padded = next(item for item in node.users if item.args[1] == 0)
    data, shape = node.args[0], [int(n) for n in padded.meta["val"].shape]
    filled = emit(gm.graph, node, aten.new_full.default, data, shape, node.args[3])
    scattered = emit(gm.graph, node, aten.index_put.default, filled, _places(node, sizes), data)
    padded.replace_all_uses_with(scattered)
    gm.graph.erase_node(padded)
