"""Inserts nodes into a captured graph with the metadata (`val`, stack trace, module) that later passes read."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils import _pytree as pytree

from fxlrp.nodes import target_of

aten = torch.ops.aten

Insert = Callable[..., fx.Node]
"""insert(op, *args, **kwargs) writes a node into a graph and returns it."""
KEPT = ("stack_trace", "nn_module_stack")
"""The metadata of a node that is copied to the nodes that replace it."""


def emit(
    graph: fx.Graph, like: fx.Node, op: Callable, *args: Any, known: dict[Hashable, object] | None = None, **kwargs: Any
) -> fx.Node:
    """Inserts op(*args, **kwargs) at the graph's insertion point, with the metadata of `like`.

    known: the values of ops that were inserted before, by their arguments' shapes and types; blocks repeat.
    """
    node = graph.call_function(op, args, kwargs)
    node.meta = {k: v for k, v in like.meta.items() if k in KEPT}
    mode = next(v.fake_mode for n in graph.nodes if isinstance(v := n.meta.get("val"), FakeTensor))
    node.meta["val"] = traced_value(node, mode, {} if known is None else known)
    return node


def traced_value(node: fx.Node, mode: FakeTensorMode, known: dict[Hashable, Any]) -> Any:
    """The fake value of a call of fake values.

    known: the values of calls before, by their arguments' shapes and types."""
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
    leaves, structure = pytree.tree_flatten((args, kwargs))
    key = (node.target, structure, *map(_kind, leaves))
    if torch.Tag.dynamic_output_shape in getattr(node.target, "tags", ()):  # each result counts its size anew
        known = {}
    if key not in known:
        with mode, enable_python_dispatcher():  # without it, matmul in torch 2.11 fixes a symbolic batch
            known[key] = target_of(node)(*args, **kwargs)
    return known[key]


def _kind(value: object) -> Hashable:
    """What an op's result has from an argument while it is traced: a tensor's shape and type, anything else whole."""
    if not isinstance(value, Tensor):
        return type(value), str(value)
    strides = map(str, value.stride()) if value.layout is torch.strided else ()
    return value.dtype, value.device, value.layout, value.requires_grad, *map(str, value.shape), "by", *strides


def store(before: fx.Node, name: str, value: Tensor, mode: FakeTensorMode) -> fx.Node:
    """Inserts a buffer of the graph that holds `value`, under a name of its own, before a node.

    mode: the one that the graph's fake values are of.
    """
    gm: Any = before.graph.owning_module
    gm.register_buffer(name, value, persistent=False)
    with before.graph.inserting_before(before):
        node = before.graph.get_attr(name)
    node.meta["val"] = mode.from_tensor(value, static_shapes=True)
    return node


def replace(node: fx.Node, write: Callable[..., fx.Node], append: Callable[..., fx.Node] | None = None) -> fx.Node:
    """Replaces `node` by what `write(call, *args, **kwargs)` builds; call(op, …) inserts a node by
    `append(node, op, …)`, or by `emit` if it is None."""
    append = append or (lambda like, op, *a, **k: emit(like.graph, like, op, *a, **k))
    with node.graph.inserting_before(node):
        new = write(partial(append, node), *node.args, **node.kwargs)
    node.replace_all_uses_with(new)
    node.graph.erase_node(node)
    return new


def write_in(node: fx.Node, inner: fx.Graph, operands: Sequence[fx.Node]) -> Any:
    """Copies a graph, with `operands` as its inputs, before a node, with the node's metadata; returns its outputs."""
    copies = dict(zip(inner.find_nodes(op="placeholder"), operands, strict=True))
    with node.graph.inserting_before(node):
        outputs = node.graph.graph_copy(inner, copies)
    place = {k: node.meta[k] for k in KEPT if k in node.meta}
    for copy in copies.values():
        if copy not in operands:
            copy.meta = {**copy.meta, **place}
            if copy.target in (aten.view.default, aten._unsafe_view.default):  # views hold only for the traced strides
                copy.target = aten.reshape.default
    return outputs


def cut_out(
    top: fx.Node, inside: Sequence[fx.Node], *inputs: fx.Node, instead: Mapping[Callable | str, Callable] | None = None
) -> tuple[fx.Graph, list[fx.Node]]:
    """Copies the nodes `inside`, in order, which compute `top` from `inputs`, into a graph of their own; returns it and
    the further inputs that it takes after `inputs`.  instead: maps ops to their replacements."""
    further = list(dict.fromkeys(n for m in inside for n in m.all_input_nodes if n not in inputs and n not in inside))
    body = fx.Graph()
    copies = {n: body.placeholder(f"t{i}") for i, n in enumerate([*inputs, *further])}
    for node in inside:
        copies[node] = body.node_copy(node, copies.__getitem__)
        copies[node].target = (instead or {}).get(node.target, node.target)
    body.output(copies[top])
    return body, further
