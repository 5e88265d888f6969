"""Untyped access to nodes of torch.fx graphs, whose arguments and targets torch types as very wide unions."""

from __future__ import annotations

import operator
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree


def args_of(node: fx.Node) -> tuple[Any, ...]:
    """The positional arguments of a node's call."""
    return node.args


def target_of(node: fx.Node) -> Any:
    """The function that a node calls."""
    return node.target


def leaves(node: fx.Node) -> list[Any]:
    """The leaves of a node's positional and keyword arguments, in pytree order."""
    return pytree.tree_leaves((node.args, node.kwargs))


def values_of(node: fx.Node) -> list[Tensor]:
    """The tensors in a node's traced value."""
    return [v for v in pytree.tree_leaves(node.meta.get("val")) if isinstance(v, Tensor)]


def writes_into(node: fx.Node) -> bool:
    """Whether a node's op writes into one of its arguments."""
    return getattr(getattr(node.target, "_schema", None), "is_mutable", False)


def aliases(node: fx.Node) -> bool:
    """Whether a node's value may share memory with its first argument: a view, or an element of a list."""
    schema = getattr(node.target, "_schema", None)
    return node.target is operator.getitem or (schema is not None and any(r.alias_info for r in schema.returns))


def outputs_of(gm: fx.GraphModule) -> list[fx.Node]:
    """The nodes whose values a graph returns."""
    outputs: Any = gm.graph.output_node().args[0]
    return list(outputs)


def copied(gm: fx.GraphModule) -> tuple[fx.GraphModule, dict[fx.Node, fx.Node]]:
    """A copy of a graph over the same modules, and a map from each node to its copy."""
    graph = fx.Graph()
    nodes: dict[fx.Node, fx.Node] = {}
    graph.output(graph.graph_copy(gm.graph, nodes))
    return fx.GraphModule(gm, graph), nodes


def calls_at(
    gm: fx.GraphModule, nodes: Collection[fx.Node], inputs: Sequence[Tensor]
) -> dict[fx.Node, tuple[tuple, dict[str, Any]]]:
    """The (args, kwargs) that each of these nodes is called with when the graph runs on copies of `inputs`."""
    calls: dict[fx.Node, tuple[tuple, dict[str, Any]]] = {}

    class Noting(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            if n in nodes:
                calls[n] = self.fetch_args_kwargs_from_env(n)
            return super().run_node(n)

    with torch.no_grad():
        Noting(gm).run(*(t.detach().clone() for t in inputs))
    return calls
