"""Evaluates the constants that a model writes into, such as a mask that it fills window by window."""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from fxlrp.capture.symbols import free_symbols
from fxlrp.emit import store
from fxlrp.nodes import values_of, writes_into

aten = torch.ops.aten

FACTORIES = {
    *(aten.zeros, aten.ones, aten.full, aten.empty, aten.arange, aten.eye, aten.scalar_tensor),
    *(aten.new_zeros, aten.new_ones, aten.new_full, aten.new_empty),
    *(aten.zeros_like, aten.ones_like, aten.full_like, aten.empty_like),
}
"""Ops whose result does not depend on the values of a tensor they are given."""


def evaluate_written_constants(gm: fx.GraphModule, literals: Collection[str]) -> None:
    """Replaces the constants that are written into, and what is computed from them alone, by buffers of their values.

    Such writes reach a tensor through its views, which torch's functionalization follows at twice the cost of the
    export.  Does nothing if a value that depends on an input is written into a constant.

    literals: the attributes of `gm` that hold numbers from the model's code.
    """
    constants = _constants(gm.graph, literals)
    writes = [n for n in gm.graph.nodes if writes_into(n)]
    if not any(n in constants for n in writes):
        return
    if any(n not in constants and n.args[0] in constants for n in writes):
        return
    values = dict(_steps(gm, constants))
    written = {storage for n in writes if n in constants for storage in _storages(values[n])}
    folded: set[fx.Node] = set()
    for node in constants:
        if not written.isdisjoint(_storages(values[node])) or not folded.isdisjoint(node.all_input_nodes):
            folded.add(node)
    stored: dict[tuple[fx.Node, int], fx.Node] = {}
    now: dict[fx.Node, Any] = {}
    for node, value in _steps(gm, constants):
        now[node] = value
        for constant in [] if node in constants else [n for n in node.all_input_nodes if n in folded]:
            key = constant, now[constant]._version  # it may be written into again behind this node
            if key not in stored:
                name, mode = f"_written_{constant.name}_{node.name}", constant.meta["val"].fake_mode
                stored[key] = store(node, name, now[constant].clone(), mode)
                stored[key].meta = {**constant.meta, **stored[key].meta}
            node.replace_input_with(constant, stored[key])
    for node in reversed(list(constants)):
        if node in folded:
            gm.graph.erase_node(node)
    gm.graph.eliminate_dead_code()


def _constants(graph: fx.Graph, literals: Collection[str]) -> dict[fx.Node, None]:
    """The nodes whose values depend on no input, weight or random number, and have a fixed shape."""
    found: dict[fx.Node, None] = {}
    for node in graph.nodes:
        schema = getattr(node.target, "_schema", None)
        if node.op == "get_attr":
            constant = node.target in literals
        elif schema is None or torch.Tag.nondeterministic_seeded in node.target.tags:
            constant = False
        elif node.target.overloadpacket in FACTORIES:
            constant = all(n in found or isinstance(n.meta["val"], Tensor) for n in node.all_input_nodes)
        else:
            constant = bool(node.all_input_nodes) and all(n in found for n in node.all_input_nodes)
        if constant and not any(free_symbols(size) for t in values_of(node) for size in t.shape):
            found[node] = None
    return found


def _steps(gm: fx.GraphModule, constants: Collection[fx.Node]) -> Iterator[tuple[fx.Node, Any]]:
    """Runs the constants of a graph; each node comes with its value, None for those that are no constants."""
    values: dict[fx.Node, Any] = {}

    def known(n: fx.Node) -> Any:
        if n in values:
            return values[n]
        like = n.meta["val"]  # an activation, of which a factory takes the type and perhaps the shape
        shape = like.shape if all(isinstance(size, int) for size in like.shape) else ()
        return torch.empty(shape, dtype=like.dtype, device=like.device)

    with torch.no_grad():
        for node in gm.graph.nodes:
            if node not in constants:
                yield node, None
                continue
            if node.op == "get_attr":
                values[node] = operator.attrgetter(str(node.target))(gm).clone()
            else:
                args, kwargs = fx.map_arg((node.args, node.kwargs), known)
                values[node] = node.target(*args, **kwargs)
            yield node, values[node]


def _storages(value: Any) -> list[int]:
    return [t.untyped_storage()._cdata for t in pytree.tree_leaves(value) if isinstance(t, Tensor)]
